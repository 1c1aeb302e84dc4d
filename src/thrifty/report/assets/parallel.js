// Every figure of every trial on parallel axes, the better end at the bottom.

const PARALLEL = ["drop", "training", "latency", "compiled", "bytes", "memory", "throughput", "even"];

function parallelAxes(rows) {
  return PARALLEL.map((key) => {
    const { log, less } = FIGURES[key];
    const values = placed(rows, key).map((row) => row.figures[key].value);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const bend = log && low > 0 ? Math.log : (value) => value;
    const place = (value) => (bend(value) - bend(low)) / (bend(high) - bend(low));
    return { key, low, high, place: less ? place : (value) => 1 - place(value) };
  }).filter(({ low, high }) => high > low);
}

function parallelTrace({ status, screened, rows }, axes, dimmed) {
  const points = rows.flatMap((row) => [
    ...axes.map(({ key, place }, i) => {
      const found = row.figures[key];
      return {
        x: i,
        y: found ? place(found.value) : null,
        id: row.id,
        text: `<b>${row.name}</b> ${FIGURES[key].label} ${literal(figureText(row, key))}`,
      };
    }),
    { x: axes.length - 1, y: null, id: row.id, text: "" },
  ]);
  const many = rows.length > MANY ? 0.35 : 0.7;
  const tint = colour(status, dimmed ? 0.06 : status === "front" ? 0.9 : many);
  return {
    type: "scatter",
    mode: "lines+markers",
    x: points.map((p) => p.x),
    y: points.map((p) => p.y),
    customdata: points.map((p) => p.id),
    hoverinfo: dimmed ? "skip" : "text",
    hovertext: points.map((p) => p.text),
    connectgaps: false,
    showlegend: false,
    line: { color: tint, width: status === "front" ? 1.8 : 1, dash: screened ? "dot" : "solid" },
    marker: { symbol: STATUSES[status].symbol + (screened ? "-open" : ""), size: 5, color: tint },
    selected: { marker: { opacity: 1 } },
    unselected: { marker: { opacity: 1 } },
  };
}

function chosenTrace(rows, axes) {
  const row = rows.find((each) => each.id === state.chosen);
  const points = row
    ? axes.map(({ key, place }, i) => [i, row.figures[key] ? place(row.figures[key].value) : null])
    : [];
  return {
    type: "scatter",
    mode: "lines+markers",
    x: points.map(([x]) => x),
    y: points.map(([, y]) => y),
    hoverinfo: "skip",
    showlegend: false,
    connectgaps: false,
    line: { color: colour("ink"), width: 2.5 },
    marker: { size: 7, color: colour("ink") },
    unselected: { marker: { opacity: 1 } },
  };
}

function drawParallel() {
  const rows = shown().filter((row) => row.trial.status === "done");
  const axes = parallelAxes(rows);
  by("parallel-section").hidden = axes.length < 2; // nothing to compare
  const end = (text, i, y, anchor) => ({
    x: i,
    y,
    text: literal(text),
    showarrow: false,
    yanchor: anchor,
    font: { size: 11, color: colour("soft") },
  });
  const annotations = axes.flatMap(({ key, low, high }, i) => {
    const { text, less } = FIGURES[key];
    const [good, bad] = less ? [low, high] : [high, low];
    return [end(text(good), i, -0.03, "top"), end(text(bad), i, 1.03, "bottom")];
  });
  const shapes = axes.map((_, i) => ({
    type: "line",
    x0: i,
    x1: i,
    y0: 0,
    y1: 1,
    layer: "below",
    line: { color: colour("line"), width: 1 },
  }));
  const within = (row) => !state.selected || state.selected.has(row.id);
  const traces = [
    ...(state.selected
      ? grouped(rows.filter((row) => !within(row))).map((group) => parallelTrace(group, axes, true))
      : []),
    ...grouped(rows.filter(within)).map((group) => parallelTrace(group, axes, false)),
    chosenTrace(rows, axes),
  ];
  Plotly.react(
    "parallel",
    traces,
    {
      ...baseLayout(),
      margin: { l: 40, r: 40, t: 20, b: 44 },
      annotations,
      shapes,
      xaxis: {
        tickvals: axes.map((_, i) => i),
        ticktext: axes.map(({ key }) => FIGURES[key].label),
        range: [-0.25, Math.max(1, axes.length - 1) + 0.25],
        showgrid: false,
        zeroline: false,
        fixedrange: true,
        tickfont: { size: 13, color: colour("ink") },
      },
      yaxis: { visible: false, range: [-0.12, 1.12], fixedrange: true },
    },
    CONFIG,
  );
  fill(
    "parallel-text",
    `Each line is a trial over ${axes.map(({ key }) => FIGURES[key].label).join(", ")}; the better end of every axis is at the bottom. ` +
      "Drag over an axis to select the trials that pass there; the selection shows above and in the table. Dotted: screened.",
  );
}
