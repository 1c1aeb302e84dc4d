// This study beside another: what each answers, and the recipes that both have.

const OTHER = OPTIONS.compared || null;

function drawCompared() {
  by("compared-section").hidden = !OTHER;
  if (!OTHER) return;
  by("compared-title").textContent = `Compared with ${OTHER.study}`;
  const sides = (name, mine, its) => [name, mine, its];
  const figure = (read, text) => (side) =>
    side == null || side.value == null
      ? NOT_MEASURED
      : side.low == null
        ? text(read(side))
        : `${text(side.value)} [${text(side.low)}, ${text(side.high)}]`;
  const speed = figure((side) => side.value, times);
  const drop = figure((side) => side.value, points);
  fill(
    "compared",
    OTHER.doubts.length
      ? element("p", { class: "warning", role: "note" }, element("strong", {}, "Not comparable: "), OTHER.doubts.join("; "), ".")
      : null,
    element(
      "div",
      { class: "wide", tabindex: 0, role: "region", "aria-label": "What each study says" },
      plainTable(
        "What each study says",
        [[""], ["this study"], [OTHER.study]],
        [
          sides("answer", STUDY.answer.sentence, OTHER.answer.sentence),
          sides("trials", String(ROWS.length), String(OTHER.trials)),
          sides("on the front", String(STUDY.frontier.length), String(OTHER.front.length)),
          sides("spent", seconds(STUDY.spent.seconds), seconds(OTHER.seconds)),
        ],
      ),
    ),
    OTHER.rows.length
      ? element(
          "div",
          { class: "wide", tabindex: 0, role: "region", "aria-label": "Recipes in both studies" },
          plainTable(
            "Recipes in both studies",
            [["trial"], ["speedup", true], ["there", true], ["difference"], ["drop", true], ["there", true], ["recipe"]],
            OTHER.rows.map((row) => [
              BY_ID.has(row.id) ? link(BY_ID.get(row.id)) : row.id,
              speed(row.speedup.this),
              speed(row.speedup.other),
              row.speedup.says,
              drop(row.drop.this),
              drop(row.drop.other),
              element("code", {}, row.recipe || "(the model as it comes)"),
            ]),
          ),
        )
      : element("p", { class: "note" }, "The two studies have no recipe in common."),
  );
}

// The other study's front, beside this one's trials; nothing where the two cannot be compared.
function otherFront(x, y) {
  if (!OTHER || OTHER.apart) return [];
  const found = OTHER.front
    .map((trial) => ({ trial, figures: { [x]: FIGURES[x].read(trial), [y]: FIGURES[y].read(trial) } }))
    .filter(({ figures }) => figures[x] && figures[y]);
  return found.length
    ? [
        {
          type: "scatter",
          mode: "markers",
          name: literal(`${OTHER.study}, front`),
          x: found.map((row) => at(row, x)),
          y: found.map((row) => at(row, y)),
          hoverinfo: "text",
          hovertext: found.map(({ trial }) => literal(`${OTHER.study}: ${trial.recipe || "(the model as it comes)"}`)),
          marker: { symbol: "x-thin", size: 9, line: { width: 2, color: colour("soft") } },
          unselected: { marker: { opacity: 1 } },
        },
      ]
    : [];
}
