// Figures as words: as `thrifty.report.words` writes them on a terminal.

const NOT_MEASURED = "not measured";

// What rounds to zero has no sign.
function fixed(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : text;
}

function significant(value, digits = 3) {
  const size = Math.abs(value);
  if (value === 0 || size < 1e-3 || size >= 1e6) return String(Number(value.toPrecision(digits)));
  return value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size))));
}

function seconds(value) {
  if (value == null) return NOT_MEASURED;
  if (value === 0) return "0 s";
  if (value < 1e-3) return `${significant(value * 1e6)} µs`;
  if (value < 1) return `${significant(value * 1e3)} ms`;
  if (value < 120) return `${significant(value)} s`;
  const minutes = Math.round(value / 60);
  return minutes < 120
    ? `${minutes} min`
    : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function scaled(value, unit) {
  if (value == null) return NOT_MEASURED;
  for (const [prefix, size] of [
    ["P", 1e15],
    ["T", 1e12],
    ["G", 1e9],
    ["M", 1e6],
    ["k", 1e3],
  ]) {
    if (Math.abs(value) >= size) return `${significant(value / size)} ${prefix}${unit}`;
  }
  return `${Number(value.toPrecision(6))} ${unit}`;
}

function times(value) {
  if (value == null) return NOT_MEASURED;
  return `${Math.abs(value) >= 0.1 && Math.abs(value) < 100 ? value.toFixed(2) : significant(value)}×`;
}

function days(requests, perDay) {
  const found = requests / perDay;
  return `${significant(found)} ${significant(found) === "1.00" ? "day" : "days"}`;
}

function breakEven(requests, perDay) {
  if (requests == null) return NOT_MEASURED;
  if (requests === "never") return "never";
  const after = requests === 0 ? "at once" : `after ${scaled(Math.round(requests), "requests")}`;
  return perDay && requests !== 0 ? `${after}, ${days(requests, perDay)}` : after;
}

function counted(count, what) {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

// "#1, #2 and 5 more"
function several(names, most = 4) {
  const rest = names.length - most;
  return names.slice(0, most).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}

// Plotly reads a little HTML in its texts: what the study says must mean nothing there.
function literal(text) {
  return String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
}
