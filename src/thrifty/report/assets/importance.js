// How much each method sets the best quarter of the trials apart.

function importanceTable(shares, what) {
  const rows = Object.entries(shares).slice(0, 12);
  const bar = (share) => {
    const made = element("span", { "aria-hidden": "true" });
    made.style.width = `${100 * share}%`;
    return made;
  };
  const made = plainTable(
    what,
    [["method"], ["share", true], [""]],
    rows.map(([name, share]) => [name, `${Math.round(100 * share)}%`, bar(share)]),
  );
  made.querySelectorAll("td:nth-child(3)").forEach((cell) => {
    cell.className = "share";
  });
  return made;
}

function drawImportance() {
  const found = STUDY.importance;
  const figures = [
    ["speedup", "among the fastest quarter"],
    ["quality", "among the quarter that loses the least quality"],
  ].filter(([key]) => found && Object.keys(found[key]).length);
  by("importance-section").hidden = !figures.length;
  fill(
    "importance",
    element("div", { class: "pair" }, ...figures.map(([key, what]) => importanceTable(found[key], what))),
    element(
      "p",
      { class: "note" },
      "Each method's share in what sets those trials apart from all of them (PED-ANOVA): whether it is in the recipe, and with which settings. " +
        "It says which choices matter, not in which direction.",
    ),
  );
}
