// The result of a sequence run: scores, classes, calibration.

function resultCards() {
  const { test, validation } = DATA.result.splits;
  return [
    [percent(test.accuracy, 2), `test accuracy, 95 % interval ${percent(test.low)} to ${percent(test.high)}`],
    [digits(test.loss, 3), "test loss, nats"],
    [percent(validation.accuracy, 2), `validation accuracy, of ${number(validation.n)}`],
    [number(test.n), DATA.model.readout === "every" ? "outputs tested" : "examples tested"],
    [number(DATA.about.parameters), "parameters"],
  ];
}

function showScores() {
  const { confusion, classes, calibration, scored, of, sequences } = DATA.result;
  if (sequences < of) {
    byId("classes").append(
      make("p", { class: "small", text: `Counted on ${number(sequences)} of ${number(of)} test sequences.` }),
    );
  }
  if (classes) byId("classes").prepend(classTable(classes));
  if (confusion) byId("confusion").append(confusionTable(confusion));
  plot("calibration", () => calibrationPlot(calibration, scored));
}

function classTable(classes) {
  const score = (value) => (value === null ? "–" : percent(value));
  const head = ["class", "precision", "recall", "examples"].map((text) => make("th", { text, scope: "col" }));
  const rows = classes.map(({ name, precision, recall, n }) =>
    make("tr", {
      children: [
        make("th", { text: name, scope: "row" }),
        ...[score(precision), score(recall), number(n)].map((text) => make("td", { text })),
      ],
    }),
  );
  return make("table", { children: [make("tr", { children: head }), ...rows] });
}

function confusionTable(matrix) {
  const names = MODEL.classes;
  const cells = matrix.map((row, i) => {
    const total = row.reduce((a, b) => a + b, 0) || 1;
    return make("tr", {
      children: [
        make("th", { text: names[i], scope: "row" }),
        ...row.map((n, j) =>
          make("td", {
            text: number(n),
            title: `${number(n)} of class ${names[i]} are called ${names[j]}`,
            style: `background: rgb(var(--${i === j ? "up" : "down"}-rgb) / ${0.06 + (0.6 * n) / total})`,
          }),
        ),
      ],
    });
  });
  const head = make("tr", {
    children: [make("th", { text: "is ↓  called →" }), ...names.map((text) => make("th", { text, scope: "col" }))],
  });
  return make("table", { class: "matrix", children: [head, ...cells] });
}

function calibrationPlot({ points, error }, scored) {
  const said = points.map((point) => point.said),
    right = points.map((point) => point.true);
  const diagonal = {
    x: [0, 1],
    y: [0, 1],
    mode: "lines",
    line: { color: colour("middle"), dash: "dot" },
    hoverinfo: "skip",
  };
  const curve = {
    x: said,
    y: right,
    mode: "lines+markers",
    line: { color: colour("up"), width: 2 },
    marker: { size: 8 },
    error_y: {
      type: "data",
      symmetric: false,
      array: points.map((p) => p.high - p.true),
      arrayminus: points.map((p) => p.true - p.low),
      color: colour("up"),
      thickness: 1,
      width: 3,
    },
    text: points.map((p) => `${number(p.n)} outputs`),
    hovertemplate: "says %{x:.1%}, is %{y:.1%}<br>%{text}<extra></extra>",
  };
  const what = TWO ? `probability of ${MODEL.classes[1]}` : "probability of the class that is called";
  return {
    traces: [diagonal, curve],
    layout: {
      title: {
        text: `Calibration: mean error ${percent(error)} over ${number(scored)} outputs`,
        font: { size: 13 },
        x: 0.02,
      },
      showlegend: false,
      xaxis: axis(what, { tickformat: ".0%", range: [-0.03, 1.03] }),
      yaxis: axis(TWO ? "how often it is so" : "how often it is right", { tickformat: ".0%", range: [-0.03, 1.03] }),
    },
  };
}
