// "Best under": as `thrifty.frontier.best` chooses, with more constraints. Pure.

const MINIMISED = {
  inference: { label: "time of a request", read: (row) => row.relativeTime, speed: true },
  drop: { label: "quality lost", read: (row) => row.figures.drop },
  training: { label: "training", read: (row) => row.figures.training },
  bytes: { label: "size", read: (row) => row.figures.bytes },
  memory: { label: "memory", read: (row) => row.figures.memory },
};
const BARS = ["drop", "latency", "bytes", "training"];
const TOLERANCE = 1e-9; // 0.98 - 0.97 is meant to be 0.01

function upper(figure) {
  return figure.high ?? figure.value;
}

// Whether a trial beats the model as it is: significantly less of what is minimised, and not slower. As `AsItIs.beaten`.
function beatsModel(row, minimise) {
  const time = row.relativeTime;
  if (minimise === "inference") return Boolean(time) && time.high != null && time.high < 1;
  if (time && (time.low ?? time.value) > 1) return false;
  const own = (STUDY.as_it_is || {})[{ training: "seconds", bytes: "bytes" }[minimise]];
  if (minimise === "drop" || own == null) return true;
  const figure = row.figures[minimise];
  return minimise === "training" ? figure.value * 1.05 < own * 0.95 : figure.value < own;
}

// Whether all that is limited was measured, and its upper ends keep to the limits.
function meets(row, limits) {
  return BARS.every(
    (key) => limits[key] == null || (row.figures[key] && upper(row.figures[key]) - limits[key] <= TOLERANCE),
  );
}

// The trial with the least of `minimise` among those whose upper ends meet every limit and that beat the model as it is; of times that
// cannot be told from the least, that with the smallest drop; one that was only screened comes after every one with an interval. Without any, the nearest: the least of its largest excess, in spans of the figure over the study.
function best(rows, limits, minimise) {
  const bars = BARS.filter((key) => limits[key] != null);
  const { read, speed } = MINIMISED[minimise];
  const known = rows.filter(
    (row) =>
      row.trial.status === "done" &&
      row.figures.drop &&
      row.figures.drop.high != null &&
      read(row) &&
      bars.every((key) => row.figures[key]),
  );
  const span = Object.fromEntries(
    bars.map((key) => {
      const ends = known.map((row) => upper(row.figures[key]));
      return [key, Math.max(...ends) - Math.min(...ends) || 1];
    }),
  );
  const excess = (row) =>
    Math.max(
      0,
      ...bars.map((key) => {
        const over = upper(row.figures[key]) - limits[key];
        return over <= TOLERANCE ? 0 : over / span[key];
      }),
    );
  const screened = (row) => Number((speed || limits.latency != null) && row.screened);
  const rank = (row) => [screened(row), upper(read(row)), read(row).value, row.figures.drop.high];
  const ranked = known
    .map((row) => ({ row, key: rank(row), excess: excess(row) }))
    .sort((a, b) => {
      const at = a.key.findIndex((part, i) => part !== b.key[i]);
      return at < 0 ? 0 : a.key[at] - b.key[at];
    });
  const meeting = ranked.filter((each) => each.excess === 0);
  const beating = meeting.filter((each) => beatsModel(each.row, minimise));
  const alike = speed ? beating.filter((each) => each.key[2] <= beating[0].key[1]) : beating.slice(0, 1);
  const smallest = alike.reduce((least, each) => (least && least.key[3] <= each.key[3] ? least : each), null);
  const chosen = STUDY.doubt ? null : smallest;
  const nearest = chosen || meeting[0] || ranked.reduce((least, each) => (!least || each.excess < least.excess ? each : least), null);
  const misses = nearest ? bars.filter((key) => upper(nearest.row.figures[key]) - limits[key] > TOLERANCE) : [];
  return {
    row: chosen ? chosen.row : null,
    nearest: nearest ? nearest.row : null,
    misses,
    meeting: meeting.length,
  };
}

// What the search was asked, as far as the page has it; otherwise a drop of 1 point, or of 1% of the reference.
function firstLimits() {
  const asked = STUDY.bars || {};
  const number = (value) => (typeof value === "number" ? value : null);
  const baseline = quality ? Math.abs(quality.baseline) : 1;
  const read = /^\s*([\d.]+(?:e-?\d+)?)\s*(pt|%|)\s*$/.exec(String(asked.max_drop ?? (IN_POINTS ? "1pt" : "1%")));
  const drop = read && Number(read[1]) * { pt: 0.01, "%": 0.01 * baseline, "": 1 }[read[2]];
  return {
    drop: STUDY.bars && asked.max_drop == null ? null : drop,
    latency: number(asked.max_latency),
    bytes: number(asked.max_bytes),
    training: null,
  };
}

function firstMinimised() {
  const asked =
    { latency: "inference", quality: "drop" }[STUDY.bars && STUDY.bars.minimize] || (STUDY.bars && STUDY.bars.minimize);
  return asked in MINIMISED ? asked : "inference";
}
