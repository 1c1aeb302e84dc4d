// What the two charts share.

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const NARROW = matchMedia("(max-width: 640px)"); // a phone
const CONFIG = {
  displayModeBar: !NARROW.matches, // which covers the chart where there is little room
  responsive: true,
  displaylogo: false,
  doubleClickDelay: 400,
  modeBarButtons: [["toImage"], ["select2d", "lasso2d", "zoom2d", "pan2d", "resetScale2d"]], // named: by default one would send the chart to a cloud
};
const PAPER_WIDTH = 700;
const MANY = 60; // more trials than this show intervals of the front alone, unless asked

// "Log" needs what is above 0, which neither a drop nor a quality is sure to be.
function onLog(axis) {
  return state[`log-${axis}`] && Boolean(FIGURES[state[axis]].log);
}

function placed(rows, ...keys) {
  return rows.filter((row) => keys.every((key) => row.figures[key]));
}

// A trace for each standing, apart for trials that were only screened: what the legend shows is what is drawn.
function grouped(rows) {
  return Object.keys(STATUSES)
    .reverse()
    .flatMap((status) =>
      [true, false].map((screened) => ({
        status,
        screened,
        name: STATUSES[status].says + (screened ? ", screened" : ""),
        rows: rows.filter((row) => row.status === status && row.screened === screened),
      })),
    )
    .filter((group) => group.rows.length);
}

function baseLayout() {
  return {
    width: state.paper ? PAPER_WIDTH : undefined,
    font: { family: FONT, size: 12, color: colour("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest",
    dragmode: "select",
    selections: [],
    newselection: { line: { color: colour("soft"), width: 1, dash: "dot" } },
    hoverlabel: {
      align: "left",
      bgcolor: colour("raised"),
      bordercolor: colour("line"),
      font: { family: FONT, size: 12, color: colour("ink") },
      namelength: 0,
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("ink"), orientation: "h" },
  };
}
