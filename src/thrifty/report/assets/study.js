// The study as rows: each trial with its short name, its standing, its phases and whom it shares them with.

const STATUSES = {
  front: { says: "on the front", symbol: "circle", path: "M8 2a6 6 0 1 0 .01 0z" },
  tied: { says: "tied", symbol: "diamond", path: "M8 1l6 7-6 7-6-7z" },
  dominated: { says: "dominated", symbol: "square", path: "M3 3h10v10H3z" },
  unranked: { says: "not ranked", symbol: "triangle-up", path: "M8 2l6 11H2z" },
};

// "a | b(x='|')" -> ["a", "b(x='|')"]: at bars that stand in no bracket and no text.
function phases(recipe) {
  const found = [];
  let [depth, quote, start] = [0, "", 0];
  for (let i = 0; i < recipe.length; i += 1) {
    const c = recipe[i];
    if (quote && c === "\\") i += 1;
    else if (quote) quote = c === quote ? "" : quote;
    else if (c === "'" || c === '"') quote = c;
    else if ("([{".includes(c)) depth += 1;
    else if (")]}".includes(c)) depth -= 1;
    else if (c === "|" && depth === 0) {
      found.push(recipe.slice(start, i).trim());
      start = i + 1;
    }
  }
  return [...found, recipe.slice(start).trim()].filter(Boolean);
}

const letters = new Map(
  Object.keys(STUDY.environments).map((key, i) => [
    key,
    String.fromCharCode(65 + (i % 26)) + (i < 26 ? "" : Math.floor(i / 26)),
  ]),
);
const standings = new Map(STUDY.standings.map((standing) => [standing.id, standing]));
const reasons = new Map(STUDY.not_ranked.map((each) => [each.id, each.reason]));
const environmentOf = new Map(
  Object.entries(STUDY.environments).flatMap(([key, { trials }]) => trials.map((id) => [id, key])),
);

function rowOf(trial) {
  const standing = standings.get(trial.id);
  const speedup = trial.inference && trial.inference.speedup;
  return {
    trial,
    id: trial.id,
    phases: phases(trial.recipe),
    recipe: trial.recipe || "(the model as it comes)",
    status: standing ? standing.status : "unranked",
    by: standing ? standing.by : null,
    reason: reasons.get(trial.id) || null,
    screened: Boolean(speedup) && speedup.value != null && speedup.low == null,
    environment: environmentOf.get(trial.id),
    figures: Object.fromEntries(Object.entries(FIGURES).map(([key, { read }]) => [key, read(trial)])),
    relativeTime: relativeTime(trial),
  };
}

// The front first, then the fastest; what failed comes last.
function before(a, b) {
  const rank = (row) => Object.keys(STATUSES).indexOf(row.status) + (row.trial.status === "failed" ? 1 : 0);
  const speed = (row) => (row.figures.speedup ? row.figures.speedup.value : 0);
  return rank(a) - rank(b) || speed(b) - speed(a);
}

const ROWS = STUDY.trials.map(rowOf).sort(before);
ROWS.forEach((row, i) => {
  row.name = `#${i + 1}`;
});
const BY_ID = new Map(ROWS.map((row) => [row.id, row]));

function nameOf(id) {
  return BY_ID.has(id) ? BY_ID.get(id).name : id;
}

// Checkpoints are shared by trials of one seed with the same first phases.
function prefixOf(row, length) {
  return JSON.stringify([row.trial.seed, row.phases.slice(0, length)]);
}

const prefixes = new Map();
for (const row of ROWS) {
  row.phases.forEach((_, i) => {
    const key = prefixOf(row, i + 1);
    prefixes.set(key, [...(prefixes.get(key) || []), row]);
  });
}

function sharing(row, length) {
  return prefixes.get(prefixOf(row, length)).filter((other) => other !== row);
}

function standingText(row) {
  const says = STATUSES[row.status].says;
  const screened = row.screened ? ", screened" : "";
  if (row.trial.status === "failed") return `failed: ${row.trial.error || "no reason was given"}`;
  if (row.by) return `${says}${row.status === "tied" ? " with" : " by"} ${nameOf(row.by)}${screened}`;
  return (row.reason ? `${says}: ${row.reason}` : says) + screened;
}

function figureText(row, key) {
  const [{ text }, found] = [FIGURES[key], row.figures[key]];
  if (!found) return key === "even" && row.trial.break_even_requests === "never" ? "never" : NOT_MEASURED;
  return found.low == null || found.high == null
    ? text(found.value)
    : `${text(found.value)} [${text(found.low)}, ${text(found.high)}]`;
}
