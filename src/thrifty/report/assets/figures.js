// What can be read of a trial and drawn on an axis. `high` and `low` are the ends of its interval, null where it has none.

const quality = STUDY.trials.map((trial) => trial.quality).find(Boolean);
const QUALITY = quality ? quality.name : "quality";
const IN_POINTS = Boolean(quality) && quality.higher_is_better && quality.baseline >= 0 && quality.baseline <= 1;

function interval(value, low = null, high = null) {
  return value == null ? null : { value, low, high };
}

function ratio(found) {
  return found && interval(found.value, found.low, found.high);
}

// The share of a request's time at the baseline: 1 / speedup, what `thrifty.frontier.best` makes small.
function relativeTime(trial) {
  const found = trial.inference && trial.inference.speedup;
  if (!found || !(found.value > 0)) return null;
  return interval(1 / found.value, found.high && 1 / found.high, found.low && 1 / found.low);
}

// Only ratios have intervals: that of the latency is the speedup's, about the latency.
function latency(trial) {
  if (!trial.inference) return null;
  const { value, low, high } = trial.inference.speedup;
  const p50 = trial.inference.latency_seconds.p50;
  return low && high ? interval(p50, (p50 * value) / high, (p50 * value) / low) : interval(p50);
}

function qualityValue({ quality: found }) {
  if (!found) return null;
  const sign = found.higher_is_better ? -1 : 1;
  const ends = [found.drop.low, found.drop.high].map((drop) => (drop == null ? null : found.baseline + sign * drop));
  return interval(found.value, ...(found.higher_is_better ? ends.reverse() : ends));
}

function points(value) {
  return IN_POINTS ? `${fixed(100 * value, 2)} pt` : significant(value, 4);
}

// `scale` and `suffix` are the axis's; `unit` is [factor, name] where a figure is typed in.
const FIGURES = {
  drop: {
    label: "drop",
    title: `drop in ${QUALITY}${IN_POINTS ? " (points)" : ""}`,
    less: true,
    scale: IN_POINTS ? 100 : 1,
    reference: () => 0,
    text: points,
    read: (trial) =>
      trial.quality && interval(trial.quality.drop.value, trial.quality.drop.low, trial.quality.drop.high),
    unit: IN_POINTS ? [100, "pt"] : [1, ""],
  },
  quality: {
    label: "quality",
    title: QUALITY,
    less: Boolean(quality) && !quality.higher_is_better,
    text: (value) => fixed(value, 4),
    reference: (trials) => median(trials.map((trial) => trial.quality && trial.quality.baseline)),
    read: qualityValue,
  },
  latency: {
    label: "latency",
    title: "latency, median",
    less: true,
    log: true,
    suffix: "s",
    text: seconds,
    read: latency,
    unit: [1e3, "ms"],
    reference: (trials) => median(trials.map((trial) => trial.inference && trial.inference.baseline_seconds)),
  },
  speedup: {
    label: "speedup",
    title: "speedup over eager fp32",
    log: true,
    suffix: "×",
    text: times,
    reference: () => 1,
    read: (trial) => trial.inference && ratio(trial.inference.speedup),
  },
  compiled: {
    label: "speedup over compiled",
    title: "speedup over compiled fp32",
    log: true,
    suffix: "×",
    text: times,
    reference: () => 1,
    read: (trial) => trial.inference && ratio(trial.inference.speedup_over_compiled),
  },
  training: {
    label: "training",
    title: "total cost before serving",
    less: true,
    log: true,
    suffix: "s",
    text: seconds,
    unit: [1, "s"],
    read: (trial) => trial.training && interval(trial.training.seconds),
  },
  bytes: {
    label: "size",
    title: "artifact",
    less: true,
    log: true,
    suffix: "B",
    text: (value) => scaled(value, "B"),
    unit: [1e-6, "MB"],
    read: (trial) => trial.artifact && interval(trial.artifact.bytes),
  },
  memory: {
    label: "memory",
    title: "peak memory of serving",
    less: true,
    log: true,
    suffix: "B",
    text: (value) => scaled(value, "B"),
    read: (trial) => trial.inference && interval(trial.inference.peak_memory_bytes),
  },
  throughput: {
    label: "throughput",
    title: "examples per second",
    log: true,
    text: (value) => `${significant(value)}/s`,
    read: (trial) => trial.inference && interval(trial.inference.throughput_per_second),
  },
  even: {
    label: "break-even",
    title: "requests until the cost is paid back",
    less: true,
    log: true,
    text: (value) => scaled(Math.round(value), "requests"),
    read: (trial) => (typeof trial.break_even_requests === "number" ? interval(trial.break_even_requests) : null),
  },
};

function median(values) {
  const known = values.filter((value) => value != null).sort((a, b) => a - b);
  return known.length ? known[Math.floor(known.length / 2)] : null;
}
