// What was logged in training.

function showCurves() {
  const rate = DATA.curves["learning rate"];
  const points = { mode: "lines+markers", marker: { size: 5 } };
  plot("curve-loss", () => ({
    traces: [
      curve("train/batch_loss", "batch", { line: { color: colour("middle"), width: 1 } }),
      curve("train/loss", "train", { line: { color: colour("down"), width: 2 }, ...points }),
      curve("validation/loss", "validation", { line: { color: colour("up"), width: 2 }, ...points }),
    ],
    layout: curveLayout("loss, nats"),
  }));
  const measure = DATA.language?.measure ?? "accuracy",
    name = measure.replaceAll(" ", "_");
  plot("curve-score", () => ({
    traces: [
      curve(`train/${name}`, "train", { line: { color: colour("down"), width: 2 }, ...points }),
      curve(`validation/${name}`, "validation", { line: { color: colour("up"), width: 2 }, ...points }),
    ],
    layout: curveLayout(measure, { yaxis: scoreAxis(measure, name) }),
  }));
  if (DATA.curves["train/disagreement"].steps.length === 0) byId("curve-disagreement").remove();
  else {
    plot("curve-disagreement", () => ({
      traces: [curve("train/disagreement", "train", { line: { color: colour("down"), width: 2 }, ...points })],
      layout: curveLayout("disagreement with the evidence", { showlegend: false }),
    }));
  }
  plot("curve-norm", () => ({
    traces: [curve("train/gradient_norm", "norm", { line: { color: colour("up"), width: 1.2 } })],
    layout: curveLayout("gradient norm, before clipping", {
      showlegend: false,
      yaxis: logAxis("", DATA.curves["train/gradient_norm"].values),
    }),
  }));
  if (rate === null) {
    byId("curve-rate").remove();
    return;
  }
  plot("curve-rate", () => ({
    traces: [curve("learning rate", "rate", { line: { color: colour("up"), width: 2 } })],
    layout: curveLayout("learning rate", { showlegend: false, yaxis: axis("", { rangemode: "tozero" }) }),
  }));
}

function scoreAxis(measure, name) {
  if (measure === "accuracy") return axis("", { tickformat: ".0%" });
  if (measure !== "perplexity") return axis("");
  return logAxis("", [...DATA.curves[`train/${name}`].values, ...DATA.curves[`validation/${name}`].values]);
}

function curve(name, label, more) {
  const { steps, values } = DATA.curves[name];
  return {
    x: steps,
    y: values,
    name: label,
    mode: "lines",
    hovertemplate: `step %{x}: %{y:.5g}<extra>${label}</extra>`,
    ...more,
  };
}

/** Returns a layout with a dashed line at the step of the weights that were kept. */
function curveLayout(text, more = {}) {
  const { best } = DATA.curves;
  const line = { color: colour("soft"), width: 1, dash: "dash" };
  return {
    title: { text, font: { size: 13 }, x: 0.02 },
    shapes: best === null ? [] : [{ type: "line", x0: best, x1: best, yref: "paper", y0: 0, y1: 1, line }],
    xaxis: axis("step"),
    yaxis: axis(""),
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1.16, bgcolor: "transparent" },
    ...more,
  };
}
