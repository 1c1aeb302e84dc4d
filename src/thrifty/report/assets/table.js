// The same figures as a table: sorted by any column, chosen by click or keys, taken away as CSV or JSON.

const number = (key) => ({
  label: FIGURES[key].label,
  number: true,
  text: (row) => figureText(row, key),
  sort: (row) => row.figures[key] && row.figures[key].value,
});

// The speed first: it is what was asked for. The recipe last: it is the longest.
const TABLE = [
  { label: "trial", text: (row) => row.name, sort: (row) => ROWS.indexOf(row) },
  number("speedup"),
  number("drop"),
  { label: "standing", text: standingText, sort: (row) => Object.keys(STATUSES).indexOf(row.status) },
  ...(ROWS.some(({ trial }) => trial.tags.length)
    ? [{ label: "tags", text: ({ trial }) => trial.tags.join(", "), sort: ({ trial }) => trial.tags.join(", ") || null }]
    : []),
  number("latency"),
  number("bytes"),
  number("training"),
  {
    label: "verdict",
    text: ({ trial }) => (trial.inference ? trial.inference.speedup.verdict : NOT_MEASURED),
    sort: ({ trial }) => trial.inference && trial.inference.speedup.verdict,
  },
  number("quality"),
  number("compiled"),
  number("memory"),
  number("throughput"),
  {
    label: "break-even",
    number: true,
    text: ({ trial }) => breakEven(trial.break_even_requests, state.perDay),
    sort: (row) => (row.trial.break_even_requests === "never" ? Infinity : row.trial.break_even_requests),
  },
  ...(letters.size > 1
    ? [
        {
          label: "environment",
          text: (row) => letters.get(row.environment),
          sort: (row) => letters.get(row.environment),
        },
      ]
    : []),
  { label: "recipe", text: (row) => row.recipe, sort: (row) => row.recipe },
];

// What was not measured comes last either way.
function sorted(rows) {
  const { column, down } = state.sort;
  const read = TABLE[column].sort;
  const order = (a, b) => (a < b ? -1 : Number(a > b));
  return [...rows].sort((a, b) => {
    const [left, right] = [read(a), read(b)];
    if (left == null || right == null) return Number(left == null) - Number(right == null);
    return down ? order(right, left) : order(left, right);
  });
}

function heading({ label, number: right }, column) {
  const { sort } = state;
  const direction = sort.column === column ? (sort.down ? "descending" : "ascending") : "none";
  const press = () => {
    change({ sort: { column, down: sort.column === column && !sort.down } });
    by("table").querySelectorAll("thead button")[column].focus();
  };
  return element(
    "th",
    { scope: "col", "aria-sort": direction, class: right && "number" },
    element("button", { type: "button", onclick: press }, label),
  );
}

// One line, and the reason on demand.
function failure(recipe, reason, ...more) {
  return element(
    "details",
    { class: "failure" },
    element("summary", {}, "failed: ", element("code", {}, recipe)),
    element("p", {}, reason || "no reason was given"),
    ...more,
  );
}

function tableRow(row) {
  const pick = element("button", { type: "button", class: "link pick", tabindex: -1 }, row.name);
  if (row.trial.status === "failed")
    return element(
      "tr",
      { "data-id": row.id, class: "failed", onclick: () => choose(row.id) },
      element("th", { scope: "row" }, pick),
      element("td", { colspan: TABLE.length - 1 }, failure(row.recipe, row.trial.error)),
    );
  const cells = TABLE.slice(1).map(({ label, text, number: right }) => {
    const kind = { standing: "status", recipe: "recipe", tags: "tags" }[label] || (right && "number");
    return element("td", { class: kind }, label === "standing" && mark(row), text(row));
  });
  return element(
    "tr",
    { "data-id": row.id, onclick: () => choose(row.id) },
    element("th", { scope: "row" }, pick),
    ...cells,
  );
}

// One row alone is in the order of the tab key; arrows move on from it.
function moveIn(event) {
  const picks = [...by("table").querySelectorAll(".pick")];
  const here = picks.indexOf(event.target);
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: picks.length - 1 }[event.key];
  if (here < 0 || to === undefined) return;
  event.preventDefault();
  const next = picks[Math.min(picks.length - 1, Math.max(0, to))];
  picks.forEach((pick) => {
    pick.tabIndex = -1;
  });
  next.tabIndex = 0;
  next.focus();
}

function listed() {
  return shown().filter((row) => !state.selected || state.selected.has(row.id));
}

function drawTable() {
  const rows = sorted(listed());
  fill(
    "table",
    element(
      "table",
      { onkeydown: moveIn },
      element(
        "caption",
        {},
        element(
          "span",
          {},
          state.selected ? `${rows.length} selected of ${counted(shown().length, "trial")}` : counted(rows.length, "trial"),
          ", with 95% intervals in brackets. A heading sorts; arrow keys move between trials, Enter chooses.",
        ),
      ),
      element("thead", {}, element("tr", {}, ...TABLE.map(heading))),
      element("tbody", {}, ...rows.map(tableRow)),
    ),
  );
  by("clear").disabled = !state.selected;
  markChosen();
}

function markChosen() {
  const rows = [...by("table").querySelectorAll("tbody tr")];
  for (const row of rows) {
    const is = row.dataset.id === state.chosen;
    row.classList.toggle("chosen", is);
    row.querySelector(".pick").setAttribute("aria-pressed", is);
    row.querySelector(".pick").tabIndex = is ? 0 : -1;
  }
  if (rows.length && !rows.some((row) => row.dataset.id === state.chosen)) rows[0].querySelector(".pick").tabIndex = 0;
}

// -- taken away ----------------------------------------------------------------------------------------------------

// Nested figures by their path, "inference.speedup.low"; lists of records are in the JSON alone.
function flat(value, path = "") {
  if (Array.isArray(value))
    return value.some((part) => part !== null && typeof part === "object") ? [] : [[path, value.join(" ")]];
  if (value === null || typeof value !== "object") return [[path, value]];
  return Object.entries(value).flatMap(([key, part]) => flat(part, path ? `${path}.${key}` : key));
}

// A text that a spreadsheet would take for a formula is told to be one.
function csvCell(value) {
  if (value == null) return "";
  if (typeof value !== "string") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const rows = ROWS.map(
    (row) => new Map([...flat(row.trial), ["standing", row.status], ["by", row.by], ["not_ranked", row.reason]]),
  );
  const leaves = new Set(rows.flatMap((row) => [...row.keys()]));
  const columns = [...leaves].filter((name) => ![...leaves].some((other) => other.startsWith(`${name}.`))); // "inference" is null where it failed
  return (
    [columns, ...rows.map((row) => columns.map((name) => row.get(name)))]
      .map((cells) => cells.map(csvCell).join(","))
      .join("\r\n") + "\r\n"
  );
}

function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function buildTableControls() {
  const filter = element("input", {
    type: "search",
    id: "filter",
    placeholder: "recipe, tag or note",
    oninput: () => {
      const part = filter.value.toLowerCase();
      const texts = ({ recipe, trial }) => [recipe, ...trial.tags, trial.note].map((text) => text.toLowerCase());
      change({
        selected: part
          ? new Set(ROWS.filter((row) => texts(row).some((text) => text.includes(part))).map((row) => row.id))
          : null,
      });
    },
  });
  const perDay = element("input", {
    type: "number",
    id: "per-day",
    min: 1,
    step: "any",
    placeholder: "unknown",
    value: state.perDay,
    oninput: () => change({ perDay: Number(perDay.value) > 0 ? Number(perDay.value) : null }),
  });
  const clear = () => {
    filter.value = "";
    change({ selected: null });
    say("The selection was cleared.");
  };
  fill(
    "table-controls",
    labelled("select", filter),
    element("button", { type: "button", id: "clear", onclick: clear }, "Clear selection"),
    labelled("requests per day", perDay),
    element(
      "button",
      { type: "button", id: "csv", class: "push", onclick: () => download("trials.csv", "text/csv", csv()) },
      "CSV",
    ),
    element(
      "button",
      { type: "button", id: "json", onclick: () => download("study.json", "application/json", JSON.stringify(STUDY)) },
      "JSON",
    ),
  );
}
