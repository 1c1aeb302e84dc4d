// The machine, where the time went, what failed.

function sum(charges, key) {
  const known = charges.map((charge) => charge[key]).filter((value) => value != null);
  return known.length ? known.reduce((a, b) => a + b, 0) : null;
}

// One line a kind of charge, the dearest first.
function spentTable(charges, caption) {
  const whole = sum(charges, "seconds");
  const kinds = [...new Set(charges.map((charge) => charge.kind))].map((kind) => ({
    kind,
    part: charges.filter((charge) => charge.kind === kind),
  }));
  kinds.sort((a, b) => sum(b.part, "seconds") - sum(a.part, "seconds"));
  const share = (time) => {
    const bar = element("span", { "aria-hidden": "true" });
    bar.style.width = whole ? `${(100 * time) / whole}%` : "0";
    return bar;
  };
  const known = (key) => charges.some((charge) => charge[key] != null);
  const row = (name, part) => {
    const time = sum(part, "seconds");
    return [
      name,
      String(part.length),
      seconds(time),
      whole ? `${Math.round((100 * time) / whole)}%` : "",
      share(time),
      ...(known("flops") ? [scaled(sum(part, "flops"), "FLOP")] : []),
      ...(known("joules") ? [sum(part, "joules") == null ? NOT_MEASURED : significant(sum(part, "joules"))] : []),
    ];
  };
  const columns = [
    ["spent on"],
    ["times", true],
    ["time", true],
    ["share", true],
    [""],
    ...(known("flops") ? [["FLOPs", true]] : []),
    ...(known("joules") ? [["joules", true]] : []),
  ];
  const made = plainTable(caption, columns, [...kinds.map(({ kind, part }) => row(kind, part)), row("all", charges)]);
  made.querySelectorAll("td:nth-child(5)").forEach((cell) => {
    cell.className = "share";
  });
  return made;
}

function drawSpent() {
  const { charges, dollars } = STUDY.spent;
  fill(
    "spent",
    STUDY.ended ? element("p", { class: "note" }, `The exploration ${STUDY.ended.says}.`) : null,
    charges.length
      ? spentTable(
          charges,
          `All that really ran, failures and measuring too${dollars == null ? "" : `: ${significant(dollars)} dollars at the price given`}.`,
        )
      : element("p", { class: "note" }, "Nothing was charged."),
  );
}

function drawFailures() {
  const lines = STUDY.failures.map(({ recipe, reason, at: when, trial }) =>
    failure(
      recipe || "(the model as it comes)",
      reason,
      element("p", { class: "note" }, when, BY_ID.has(trial) ? element("span", {}, ", trial ", link(BY_ID.get(trial))) : null),
    ),
  );
  fill(
    "failures",
    element(
      "p",
      { class: "note" },
      lines.length ? "Every run that failed, including those that succeeded later; open one to see its reason." : "No run failed.",
    ),
    ...lines,
  );
}

function valueText(value) {
  return value != null && typeof value === "object" ? JSON.stringify(value) : String(value);
}

function drawHeader() {
  fill("workload", STUDY.workload ?? "An empty study");
  const target = Object.entries(STUDY.target || {})
    .filter(([, value]) => value != null)
    .map(([key, value]) => `${key} ${valueText(value)}`);
  fill(
    "target",
    `${target.join(", ")}${target.length ? " · " : ""}${counted(ROWS.length, "trial")}, ${STUDY.frontier.length} on the front over ${STUDY.objectives.join(", ")}`,
  );
  const all = Object.values(STUDY.environments).map(({ values }) => values);
  const keys = [...new Set(all.flatMap(Object.keys))];
  const differ = keys.filter((key) => new Set(all.map((values) => JSON.stringify(values[key]))).size > 1);
  const machines = [...letters].map(([key, letter]) => [
    `environment ${letter}`,
    `${STUDY.environments[key].trials.length} trials: ${differ.map((name) => `${name} ${valueText(STUDY.environments[key].values[name])}`).join(", ")}`,
  ]);
  fill(
    "machine",
    list(keys.filter((key) => !differ.includes(key)).map((key) => [key, valueText(all[0][key])])),
  );
  fill(
    "warning",
    all.length > 1
      ? element(
          "div",
          { class: "warning", role: "note" },
          element(
            "p",
            {},
            element("strong", {}, "Not comparable: "),
            `trials were measured in ${all.length} environments that differ in ${differ.join(", ")}. Compare speeds within one only.`,
          ),
          list(machines),
        )
      : null,
  );
}
