// The constraints that a trial must meet, and the best trial that meets them.

// A slider stops at every value that some trial has, so that each step lets one more trial in; its last stop is "any".
function stops(key) {
  const ends = placed(
    shown().filter((row) => row.trial.status === "done"),
    key,
  ).map((row) => upper(row.figures[key]));
  return [...new Set(ends)].sort((a, b) => a - b);
}

function barRow(key) {
  const {
    label,
    unit: [factor, unit],
  } = FIGURES[key];
  const slide = element("input", {
    type: "range",
    id: `bar-${key}`,
    min: 0,
    step: 1,
    oninput: () => {
      const values = stops(key);
      limit(key, slide.value >= values.length ? null : values[slide.value]);
    },
  });
  const typed = element("input", {
    type: "number",
    id: `type-${key}`,
    step: "any",
    placeholder: "any",
    "aria-label": `largest ${label}${unit ? `, in ${unit}` : ""}`,
    onchange: () => limit(key, typed.value === "" ? null : Number(typed.value) / factor),
  });
  return [
    element("label", { for: slide.id }, `largest ${label}`),
    slide,
    typed,
    element("span", { class: "unit" }, unit),
  ];
}

function limit(key, value) {
  change({ limits: { ...state.limits, [key]: value } });
}

function buildBars() {
  fill(
    "bars",
    ...BARS.flatMap(barRow),
    element("label", { for: "minimise" }, "and then minimize"),
    select(
      "minimise",
      Object.entries(MINIMISED).map(([key, { label }]) => [key, label]),
      state.minimise,
      { onchange: (event) => change({ minimise: event.target.value }) },
    ),
  );
}

function showBars() {
  for (const key of BARS) {
    const [values, value] = [stops(key), state.limits[key]];
    const {
      text,
      unit: [factor],
    } = FIGURES[key];
    const [slide, typed] = [by(`bar-${key}`), by(`type-${key}`)];
    slide.max = values.length;
    slide.value =
      value == null ? values.length : Math.max(0, values.filter((each) => each <= value + TOLERANCE).length - 1);
    slide.setAttribute("aria-valuetext", value == null ? "any" : `at most ${text(value)}`);
    slide.disabled = typed.disabled = !values.length;
    if (document.activeElement !== typed)
      typed.value = value == null ? "" : String(Number((value * factor).toPrecision(4)));
  }
}

function asked() {
  const bars = BARS.filter((key) => state.limits[key] != null).map(
    (key) => `${FIGURES[key].label} at most ${FIGURES[key].text(state.limits[key])}`,
  );
  return bars.length ? bars.join(", ") : "no constraint";
}

// Why the model as it is should be kept, where no trial is recommended; null where it may miss a bar itself.
function keeping({ nearest, misses }) {
  if (STUDY.doubt) return STUDY.doubt;
  if (!nearest) return null;
  if (misses.length)
    return misses.every((key) => key === "drop" && state.limits.drop >= 0)
      ? `no trial meets this, but it does: ${asked()}`
      : null;
  return `no trial that meets this is significantly ${state.minimise === "inference" ? "faster" : "better and no slower"}: ${asked()}`;
}

function drawAnswer() {
  showBars();
  const { row, nearest, misses, meeting } = state.best;
  const found = row || nearest;
  by("answer").className = row ? "" : "none";
  by("answer").dataset.best = row ? row.id : "";
  by("answer").dataset.nearest = nearest ? nearest.id : "";
  const of =
    found &&
    ["drop", "latency", "speedup", "bytes", "training"].map((key) => [FIGURES[key].label, figureText(found, key)]);
  const name = found && element("p", { class: "name" }, mark(found), row ? "Best: " : "Nearest: ", link(found));
  const kept = row ? null : keeping(state.best);
  by("answer").dataset.keep = kept ? "yes" : "";
  fill(
    "answer",
    row
      ? null
      : element(
          "p",
          {},
          element(
            "strong",
            {},
            kept ? "Keep the model as it is: " : found ? "No trial meets this: " : "No trial has these figures: ",
          ),
          kept || asked(),
          ".",
        ),
    name,
    found && element("code", { class: "recipe" }, found.recipe),
    found && list(of, { class: "figures" }),
    row &&
      element(
        "p",
        { class: "note" },
        `${meeting} of ${shown().length} trials meet ${asked()}, by the upper ends of their intervals; this one has the least ${MINIMISED[state.minimise].label}.`,
      ),
    !row &&
      found &&
      misses.length > 0 &&
      element(
        "p",
        { class: "note" },
        `It misses ${misses.map((key) => `${FIGURES[key].label}: up to ${FIGURES[key].text(upper(found.figures[key]))}`).join("; ")}.`,
      ),
    found &&
      found.screened &&
      element(
        "p",
        { class: "note" },
        "Its speed was screened with one pair and has no interval: measure it again before relying on it.",
      ),
    letters.size > 1 &&
      !state.environment &&
      element(
        "p",
        { class: "note" },
        "Trials from several environments are compared here, and their speeds may not be comparable: choose one at the chart.",
      ),
    searchText(),
  );
}

function searchText() {
  if (!STUDY.bars) return null;
  const words = Object.entries(STUDY.bars)
    .filter(([, value]) => value != null)
    .map(([key, value]) => `${key.replaceAll("_", " ")} ${value}`);
  const none = STUDY.keep ? "says to keep the model as it is; nearest is" : "found none; nearest is";
  const [id, says] = STUDY.recommended ? [STUDY.recommended, "recommended"] : [STUDY.nearest, none];
  return element(
    "p",
    { class: "note" },
    `The search was asked for ${words.join(", ") || "nothing"} and ${says} `,
    BY_ID.has(id) ? link(BY_ID.get(id)) : "nothing",
    ".",
  );
}
