// Everything about the chosen trial.

// As a POSIX shell reads it back, whatever is in it.
function quoted(text) {
  if (/^[\w./:@%+,=-]+$/.test(text)) return text;
  return /["$`\\!\n]/.test(text) ? `'${text.replaceAll("'", "'\\''")}'` : `"${text}"`;
}

function command({ trial }) {
  const { device, threads } = trial.target;
  const options = [
    ["--study", OPTIONS.store],
    ["--device", device === "cpu" ? null : device],
    ["--threads", threads === 1 ? null : threads],
    ["--seed", trial.seed || null],
  ];
  return [
    "thrifty",
    "run",
    quoted(STUDY.source?.startsWith("thrifty.workloads.") ? trial.workload : STUDY.source || trial.workload),
    quoted(trial.recipe) || '""',
    ...options.filter(([, value]) => value != null).flatMap(([name, value]) => [name, quoted(String(value))]),
  ].join(" ");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = element("textarea", { class: "hidden" }); // where a page in a file may not use the clipboard
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  say("Command copied.");
}

function lineage(row) {
  const phase = (text, i) => {
    const kin = sharing(row, i + 1);
    return element(
      "li",
      {},
      element("code", {}, text),
      ...(kin.length ? [" ", element("span", { class: "note" }, "so far as ", ...links(kin))] : []),
    );
  };
  return [
    element("h4", {}, "Recipe, phase by phase"),
    row.phases.length ? element("ol", {}, ...row.phases.map(phase)) : element("p", {}, row.recipe),
  ];
}

// The trials that lack one of its phases and are the same otherwise: what each phase does.
function ablation(row) {
  const found = row.phases.flatMap((phase, i) => {
    const without = JSON.stringify(row.phases.toSpliced(i, 1));
    const other = ROWS.find(
      (each) =>
        JSON.stringify(each.phases) === without && each.trial.seed === row.trial.seed && each.trial.status === "done",
    );
    return other
      ? [[element("code", {}, phase), link(other), figureText(other, "drop"), figureText(other, "speedup")]]
      : [];
  });
  return found.length
    ? [
        element("h4", {}, "Without a phase"),
        element(
          "div",
          { class: "scroll", tabindex: 0 },
          plainTable(
            "The same recipe without one phase",
            [["without"], ["trial"], ["drop", true], ["speedup", true]],
            found,
          ),
        ),
      ]
    : [];
}

function qualityText(found) {
  return (
    found &&
    `${fixed(found.value, 4)} on ${found.split} (reference ${fixed(found.baseline, 4)}), drop ${points(found.drop.value)}` +
      (found.drop.low == null ? "" : ` [${points(found.drop.low)}, ${points(found.drop.high)}]`)
  );
}

function figuresOf(row) {
  const {
    trial,
    trial: { inference, training, artifact },
  } = row;
  return list(
    [
      [quality ? quality.name : "quality", qualityText(trial.quality) || NOT_MEASURED],
      trial.test_quality && ["on test", qualityText(trial.test_quality)],
      ["training", training ? `${seconds(training.seconds)}, ${scaled(training.flops, "FLOP")}` : NOT_MEASURED],
      training && training.speedup && ["to quality", `${significant(training.speedup)}× faster than the reference`],
      training && training.dollars != null && ["dollars", significant(training.dollars)],
      training && training.joules != null && ["joules", significant(training.joules)],
      [
        "latency",
        inference
          ? `p50 ${seconds(inference.latency_seconds.p50)}, p90 ${seconds(inference.latency_seconds.p90)} (${inference.scenario}, ${inference.precision || "precision not measured"})`
          : NOT_MEASURED,
      ],
      ["speedup", inference ? `${figureText(row, "speedup")} ${inference.speedup.verdict}` : NOT_MEASURED],
      [
        "over compiled",
        inference && inference.speedup_over_compiled.value != null
          ? `${figureText(row, "compiled")} ${inference.speedup_over_compiled.verdict}`
          : NOT_MEASURED,
      ],
      ["throughput", figureText(row, "throughput")],
      ["memory", figureText(row, "memory")],
      inference && ["first inference", seconds(inference.first_inference_seconds)],
      [
        "artifact",
        artifact
          ? `${scaled(artifact.bytes, "B")}${artifact.portable ? "" : ", not portable"}, ${artifact.path}`
          : NOT_MEASURED,
      ],
      [
        "break-even",
        breakEven(trial.break_even_requests, state.perDay) +
          (row.screened && typeof trial.break_even_requests === "number" ? " (screened: a point estimate)" : ""),
      ],
      letters.size > 1 && ["environment", letters.get(row.environment)],
      ["seed", String(trial.seed)],
      ["id", trial.id],
      ["measured", trial.created],
    ],
    { class: "list" },
  );
}

function effectsOf({ trial: { effects } }) {
  const rows = effects.map((e) => [e.method, e.what, significant(e.before), significant(e.after), e.read_from]);
  return rows.length
    ? [
        element("h4", {}, "Effects"),
        element(
          "div",
          { class: "scroll", tabindex: 0 },
          plainTable(
            "What each method claims, as probed last",
            [["method"], ["what"], ["before", true], ["after", true], ["read from"]],
            rows,
          ),
        ),
      ]
    : [];
}

function drawDetail() {
  const row = BY_ID.get(state.chosen);
  if (!row) {
    fill(
      "detail",
      element("h3", { id: "detail-title" }, "No trial chosen"),
      element("p", { class: "note" }, "Choose one in the chart, in the table, or above."),
    );
    return;
  }
  const text = command(row);
  fill(
    "detail",
    element("h3", { id: "detail-title" }, mark(row), `Trial ${row.name}`),
    element(
      "p",
      {},
      standingText(row),
      row.by ? " " : null,
      row.by && BY_ID.has(row.by) ? element("span", {}, "(", link(BY_ID.get(row.by)), ")") : null,
    ),
    row.trial.tags.length > 0 && element("p", { class: "tags" }, ...row.trial.tags.map((tag) => element("span", {}, tag))),
    row.trial.note && element("p", { class: "remark" }, row.trial.note),
    row.screened &&
      element("p", { class: "note" }, "Screened: its speed was measured with one pair and has no interval."),
    ...lineage(row),
    element("h4", {}, "Run it again"),
    element(
      "div",
      { class: "command" },
      element("pre", { id: "command" }, text),
      element("button", { type: "button", class: "copy", onclick: () => copy(text) }, "Copy"),
    ),
    element("h4", {}, "Figures"),
    figuresOf(row),
    ...effectsOf(row),
    ...ablation(row),
    ...(row.trial.ledger.length
      ? [
          element("h4", {}, "Its cost, as if alone"),
          element("div", { class: "scroll", tabindex: 0 }, spentTable(row.trial.ledger, "By kind, most expensive first")),
        ]
      : []),
  );
  by("detail").scrollTop = 0;
}
