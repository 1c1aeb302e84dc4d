// The frontier: two figures of every trial, with their intervals, by standing in colour and shape; hollow where only screened.

function hoverText(row) {
  const cut = (text) => literal(text.length > 90 ? `${text.slice(0, 89)}…` : text);
  const lineage = row.phases.length
    ? row.phases.slice(0, 12).map((phase, i) => `${i ? "| " : ""}${cut(phase)}`)
    : [cut(row.recipe)];
  if (row.phases.length > 12) lineage.push(`… ${row.phases.length - 12} more phases`);
  let shared = row.phases.length;
  while (shared > 0 && !sharing(row, shared).length) shared -= 1;
  const kin = shared
    ? [
        `shares its first ${shared === 1 ? "phase" : `${shared} phases`} with ${several(sharing(row, shared).map((other) => other.name))}`,
      ]
    : [];
  const figures = ["drop", "speedup", "latency", "training", "bytes"].map(
    (key) => `${FIGURES[key].label} ${literal(figureText(row, key))}`,
  );
  const machine =
    letters.size > 1 ? [`measured in environment ${letters.get(row.environment)}: not comparable with others`] : [];
  return [
    `<b>${row.name}</b> ${cut(standingText(row))}`,
    "",
    ...lineage,
    "",
    ...figures,
    ...[...kin, ...machine].map(literal),
  ].join("<br>");
}

function errorBar(rows, key, tint) {
  const { scale = 1 } = FIGURES[key];
  const drawn = (row) =>
    state.intervals === "all" || (state.intervals === "front" && (row.status === "front" || row.id === state.chosen));
  const end = (pick) =>
    rows.map((row) => {
      const found = row.figures[key];
      return drawn(row) && found.low != null && found.high != null ? scale * pick(found) : null;
    });
  return {
    type: "data",
    symmetric: false,
    array: end((f) => f.high - f.value),
    arrayminus: end((f) => f.value - f.low),
    thickness: 1.2,
    width: 0,
    color: tint,
  };
}

function at(row, key) {
  return (FIGURES[key].scale || 1) * row.figures[key].value;
}

function scatterTrace({ status, screened, name, rows }) {
  const { x, y, selected } = state;
  const tint = colour(status);
  return {
    type: "scatter",
    mode: "markers",
    name,
    x: rows.map((row) => at(row, x)),
    y: rows.map((row) => at(row, y)),
    customdata: rows.map((row) => row.id),
    hoverinfo: "text",
    hovertext: rows.map(hoverText),
    marker: {
      symbol: STATUSES[status].symbol + (screened ? "-open" : ""),
      size: status === "front" ? 11 : 8,
      color: tint,
      opacity: status === "dominated" ? 0.75 : 1,
      line: { width: screened ? 1.6 : 0.5, color: screened ? tint : colour("raised") },
    },
    error_x: errorBar(rows, x, colour(status, 0.5)),
    error_y: errorBar(rows, y, colour(status, 0.5)),
    selectedpoints: selected ? rows.flatMap((row, i) => (selected.has(row.id) ? [i] : [])) : null,
    selected: { marker: { opacity: 1 } },
    unselected: { marker: { opacity: 0.12 } },
  };
}

function ring(rows) {
  const chosen = rows.filter((row) => row.id === state.chosen);
  return {
    type: "scatter",
    mode: "markers",
    name: "chosen",
    x: chosen.map((row) => at(row, state.x)),
    y: chosen.map((row) => at(row, state.y)),
    hoverinfo: "skip",
    showlegend: false,
    marker: { symbol: "circle-open", size: 21, color: colour("ink"), line: { width: 2 } },
    unselected: { marker: { opacity: 1 } },
  };
}

// From the chosen trial to the one that beats it.
function beaten(rows) {
  const chosen = rows.find((row) => row.id === state.chosen);
  const winner = chosen && rows.find((row) => row.id === chosen.by);
  const pair = winner ? [chosen, winner] : [];
  return {
    type: "scatter",
    mode: "lines",
    x: pair.map((row) => at(row, state.x)),
    y: pair.map((row) => at(row, state.y)),
    hoverinfo: "skip",
    showlegend: false,
    line: { color: colour("soft"), width: 1.2, dash: "dot" },
  };
}

// Its label stands on the side where there is room.
function crosshair(rows) {
  const line = (axis, key) => {
    const value = FIGURES[key].reference && FIGURES[key].reference(STUDY.trials);
    if (value == null) return [];
    const place = (FIGURES[key].scale || 1) * value;
    const span =
      axis === "x"
        ? { x0: place, x1: place, y0: 0, y1: 1, yref: "paper" }
        : { y0: place, y1: place, x0: 0, x1: 1, xref: "paper" };
    const middle = median(rows.map((row) => row.figures[key].value));
    const anchor =
      axis === "x"
        ? { xanchor: value > middle ? "right" : "left", yanchor: "top" }
        : { xanchor: "right", yanchor: "bottom" };
    const label = {
      text: "reference",
      textposition: "end",
      textangle: 0,
      ...anchor,
      font: { size: 11, color: colour("soft") },
    };
    return [{ type: "line", layer: "below", line: { color: colour("soft"), width: 1, dash: "dash" }, label, ...span }];
  };
  return [...line("x", state.x), ...line("y", state.y)];
}

function bestArrow(rows = placed(shown(), state.x, state.y)) {
  const row = rows.find((each) => each === state.best.row);
  const place = (axis) => (onLog(axis) ? Math.log10(at(row, state[axis])) : at(row, state[axis]));
  return row
    ? [
        {
          x: place("x"),
          y: place("y"),
          text: "best under the constraints",
          showarrow: true,
          arrowhead: 0,
          arrowcolor: colour("soft"),
          ax: 0,
          ay: -34,
          standoff: 8,
          font: { size: 12, color: colour("ink") },
          bgcolor: colour("ground", 0.8),
        },
      ]
    : [];
}

function axisLayout(axis) {
  const { title, less, suffix } = FIGURES[state[axis]];
  const log = onLog(axis);
  return {
    title: {
      text: `${literal(title)}, ${less ? "lower" : "higher"} is better`,
      standoff: 12,
      font: { size: 13, color: colour("soft") },
    },
    type: log ? "log" : "linear",
    gridcolor: colour("line", 0.6),
    zeroline: false,
    linecolor: colour("line"),
    automargin: true,
    tickfont: { color: colour("soft") },
    ticksuffix: suffix,
    ...(["s", "B"].includes(suffix) && { tickformat: "~s" }),
    ...(log && { dtick: null, nticks: 8, minor: { showgrid: false } }),
  };
}

function drawScatter() {
  const rows = placed(shown(), state.x, state.y);
  const layout = {
    ...baseLayout(),
    margin: { l: 56, r: 16, t: 34, b: 48 },
    xaxis: axisLayout("x"),
    yaxis: axisLayout("y"),
    shapes: crosshair(rows),
    annotations: bestArrow(rows),
    legend: {
      orientation: "h",
      y: 1.02,
      yanchor: "bottom",
      x: 0,
      traceorder: "reversed",
      ...(NARROW.matches && { entrywidthmode: "fraction", entrywidth: 0.48 }),
      font: { color: colour("soft"), size: NARROW.matches ? 10 : 12 },
      itemclick: false,
      itemdoubleclick: false,
    },
    uirevision: [state.x, state.y, onLog("x"), onLog("y"), state.environment].join(),
  };
  Plotly.react("scatter", [beaten(rows), ...otherFront(state.x, state.y), ...grouped(rows).map(scatterTrace), ring(rows)], layout, CONFIG);
  fill("scatter-text", describe(rows));
}

// A slider moves this alone, and quickly.
function moveArrow() {
  Plotly.relayout("scatter", { annotations: bestArrow() });
}

// What the chart shows, for those who do not see it.
function describe(rows) {
  const [x, y] = [FIGURES[state.x], FIGURES[state.y]];
  const counts = Object.keys(STATUSES)
    .map((status) => [rows.filter((row) => row.status === status).length, STATUSES[status].says])
    .filter(([n]) => n);
  const range = (key) => {
    const found = rows.map((row) => row.figures[key].value);
    return rows.length ? ` (${FIGURES[key].text(Math.min(...found))} to ${FIGURES[key].text(Math.max(...found))})` : "";
  };
  const missing = shown().filter((row) => !rows.includes(row));
  const never = missing.filter(
    (row) => [state.x, state.y].includes("even") && row.trial.break_even_requests === "never",
  ).length;
  const lacking = missing.length - never;
  const why = [
    never && `${never} never break even`,
    lacking && `${lacking} lack${lacking === 1 ? "s" : ""} a figure`,
  ].filter(Boolean);
  const absent = missing.length ? ` Not drawn: ${why.join(", ")}.` : "";
  return (
    `${y.label}${range(state.y)} against ${x.label}${range(state.x)}: ${counts.map(([n, says]) => `${n} ${says}`).join(", ") || "no trial"}.${absent} ` +
    "Hollow: screened, without an interval. Dashed: the reference, eager fp32. Drag to select; the table below holds the same figures."
  );
}
