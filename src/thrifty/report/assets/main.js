// What is shown now, and what is drawn again when it changes.

const state = {
  x: "speedup",
  y: "drop",
  "log-x": true,
  "log-y": false,
  intervals: ROWS.length > MANY ? "front" : "all",
  environment: "",
  chosen: null,
  selected: null,
  limits: firstLimits(),
  minimise: firstMinimised(),
  best: null,
  sort: { column: 0, down: false },
  perDay: OPTIONS.requests_per_day,
  theme: "",
  paper: false,
};

const VIEWS = [
  { draw: drawAnswer, of: ["limits", "minimise", "environment"] },
  { draw: drawHistory, of: ["limits", "minimise", "environment", "theme", "paper"] },
  {
    draw: drawScatter,
    of: ["x", "y", "log-x", "log-y", "intervals", "environment", "chosen", "selected", "theme", "paper"],
  },
  { draw: moveArrow, of: ["best"] },
  { draw: drawParallel, of: ["environment", "chosen", "selected", "theme", "paper"] },
  { draw: drawDetail, of: ["chosen", "perDay"] },
  { draw: drawTable, of: ["environment", "selected", "sort", "perDay"] },
  { draw: markChosen, of: ["chosen"] },
];

function shown() {
  return state.environment ? ROWS.filter((row) => row.environment === state.environment) : ROWS;
}

function change(parts) {
  const keys = Object.keys(parts);
  Object.assign(state, parts);
  if (["limits", "minimise", "environment"].some((key) => keys.includes(key))) {
    const found = best(shown(), state.limits, state.minimise);
    if (!state.best || found.row !== state.best.row) keys.push("best");
    state.best = found;
  }
  for (const { draw, of } of VIEWS) if (of.some((key) => keys.includes(key))) draw();
}

function choose(id) {
  change({ chosen: id });
  say(`Trial ${nameOf(id)}: ${standingText(BY_ID.get(id))}`);
}

function buildAxes() {
  const options = Object.entries(FIGURES).map(([key, { label }]) => [key, label]);
  const axis = (name, text) => [
    labelled(
      text,
      select(name, options, state[name], {
        onchange: (event) => {
          by(`log-${name}`).disabled = !FIGURES[event.target.value].log;
          change({ [name]: event.target.value });
        },
      }),
    ),
    labelled(
      "log",
      element("input", {
        type: "checkbox",
        id: `log-${name}`,
        checked: state[`log-${name}`],
        disabled: !FIGURES[state[name]].log,
        "aria-label": `logarithmic ${text} axis`,
        onchange: (event) => change({ [`log-${name}`]: event.target.checked }),
      }),
    ),
  ];
  const intervals = [
    ["all", "all"],
    ["front", "on the front and the chosen"],
    ["none", "none"],
  ];
  const places = [["", "all, not comparable"], ...[...letters].map(([key, letter]) => [key, `environment ${letter}`])];
  const reset = () => Plotly.relayout("scatter", { "xaxis.autorange": true, "yaxis.autorange": true });
  fill(
    "axes",
    ...axis("x", "across"),
    ...axis("y", "up"),
    labelled(
      "intervals",
      select("intervals", intervals, state.intervals, {
        onchange: (event) => change({ intervals: event.target.value }),
      }),
    ),
    letters.size > 1
      ? labelled(
          "trials of",
          select("environment", places, "", { onchange: (event) => change({ environment: event.target.value }) }),
        )
      : null,
    element("button", { type: "button", class: "push", onclick: reset }, "Reset zoom"),
  );
}

function listenTo(id) {
  const ids = (event) => event.points.map((point) => point.customdata).filter((each) => typeof each === "string");
  by(id).on("plotly_click", (event) => ids(event).slice(0, 1).forEach(choose));
  by(id).on(
    "plotly_selected",
    (event) => event && event.points.length && setTimeout(() => change({ selected: new Set(ids(event)) })),
  );
  by(id).on("plotly_deselect", () => setTimeout(() => change({ selected: null })));
}

function theme(name) {
  document.documentElement.toggleAttribute("data-theme", Boolean(name));
  if (name) document.documentElement.dataset.theme = name;
  change({ theme: name });
}

// Where there is little room, what is not the answer is opened on demand. A chart drawn while it was closed has no size.
function buildParts() {
  for (const part of document.querySelectorAll("details.part")) {
    part.open = !NARROW.matches;
    part.addEventListener("toggle", () => {
      if (part.open) part.querySelectorAll(".js-plotly-plot").forEach((chart) => Plotly.Plots.resize(chart));
    });
  }
}

// Says so where a table is wider than its place.
function hintScroll() {
  by("table-hint").hidden = by("table").scrollWidth <= by("table").clientWidth + 1;
}

document.querySelectorAll("form").forEach((form) => form.addEventListener("submit", (event) => event.preventDefault()));
buildParts();
buildAxes();
buildBars();
buildTableControls();
drawHeader();
drawSpent();
drawFailures();
drawImportance();
drawCompared();
change(state);
listenTo("scatter");
listenTo("parallel");
hintScroll();
new ResizeObserver(hintScroll).observe(by("table"));
if (ROWS.length) choose((state.best.nearest || ROWS[0]).id);
by("theme").addEventListener("change", (event) => theme(event.target.value));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => change({ theme: state.theme }));
addEventListener("beforeprint", () => {
  document.documentElement.dataset.theme = "light";
  document.querySelectorAll("details").forEach((part) => part.setAttribute("open", ""));
  change({ paper: true });
});
addEventListener("afterprint", () => {
  state.paper = false;
  theme(state.theme);
});
document.documentElement.dataset.ready = "";
