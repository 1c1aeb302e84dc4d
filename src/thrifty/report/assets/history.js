// The best so far, against what the study had spent by then.

const HISTORY = STUDY.history.filter(({ id }) => BY_ID.has(id)).map(({ id, seconds: spent }) => ({ row: BY_ID.get(id), spent }));

function historyFigure() {
  return state.minimise === "inference" ? "speedup" : state.minimise;
}

// Each trial that meets the constraints, and the best of those before it.
function bestSoFar(key) {
  const better = FIGURES[key].less ? (a, b) => a < b : (a, b) => a > b;
  const steps = [];
  for (const { row, spent } of HISTORY) {
    const found = row.figures[key];
    const last = steps.length ? steps[steps.length - 1].value : null;
    if (found && meets(row, state.limits) && (last == null || better(found.value, last)))
      steps.push({ row, spent, value: found.value });
  }
  return steps;
}

function drawHistory() {
  const known = HISTORY.filter(({ row }) => shown().includes(row));
  by("history-section").hidden = known.length < 3;
  if (known.length < 3) return;
  const key = historyFigure();
  const { scale = 1, suffix, log, title, less, text } = FIGURES[key];
  const end = Math.max(...known.map(({ spent }) => spent), STUDY.spent.seconds || 0);
  const [unit, size] = end > 7200 ? ["h", 3600] : end > 300 ? ["min", 60] : ["s", 1];
  const steps = bestSoFar(key).filter(({ row }) => shown().includes(row));
  const drawn = known.filter(({ row }) => row.figures[key]);
  const tint = (row) => colour(meets(row, state.limits) ? row.status : "soft", meets(row, state.limits) ? 1 : 0.45);
  const trials = {
    type: "scatter",
    mode: "markers",
    x: drawn.map(({ spent }) => spent / size),
    y: drawn.map(({ row }) => scale * row.figures[key].value),
    customdata: drawn.map(({ row }) => row.id),
    hoverinfo: "text",
    hovertext: drawn.map(({ row }) => hoverText(row)),
    showlegend: false,
    marker: {
      size: 8,
      symbol: drawn.map(({ row }) => STATUSES[row.status].symbol + (row.screened ? "-open" : "")),
      color: drawn.map(({ row }) => tint(row)),
    },
    unselected: { marker: { opacity: 1 } },
  };
  const line = {
    type: "scatter",
    mode: "lines",
    x: [...steps.map(({ spent }) => spent / size), ...(steps.length ? [end / size] : [])],
    y: [...steps, ...steps.slice(-1)].map(({ value }) => scale * value),
    hoverinfo: "skip",
    showlegend: false,
    line: { shape: "hv", color: colour("front"), width: 2 },
  };
  const axis = { gridcolor: colour("line", 0.6), zeroline: false, linecolor: colour("line"), automargin: true };
  const named = (text) => ({ text: literal(text), standoff: 10, font: { size: 13, color: colour("soft") } });
  Plotly.react(
    "history",
    [line, trials],
    {
      ...baseLayout(),
      dragmode: "zoom",
      margin: { l: 56, r: 16, t: 16, b: 44 },
      xaxis: { ...axis, title: named("spent"), ticksuffix: ` ${unit}`, rangemode: "tozero", tickfont: { color: colour("soft") } },
      yaxis: {
        ...axis,
        title: named(title),
        type: log && drawn.every(({ row }) => row.figures[key].value > 0) ? "log" : "linear",
        ticksuffix: suffix,
        tickfont: { color: colour("soft") },
        ...(["s", "B"].includes(suffix) && { tickformat: "~s" }),
        ...(log && { nticks: 6, minor: { showgrid: false } }),
      },
    },
    CONFIG,
  );
  const last = steps[steps.length - 1];
  fill(
    "history-text",
    last
      ? `The ${less ? "least" : "largest"} ${FIGURES[key].label} within ${asked()}, ${text(last.value)}, ${last.row.screened ? "screened, " : ""}was found after ${seconds(last.spent)} of ${seconds(end)}, by `
      : `No trial met ${asked()}.`,
    last ? link(last.row) : null,
    last ? ". Each mark is a trial where it was first timed; gray ones miss a constraint." : null,
  );
}
