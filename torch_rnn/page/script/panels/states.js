// The state space: states on two principal components.

const FEW = 12; // classes that have a colour of their own in the state space
const space = { chosen: 0, path: { x: [], y: [], labels: [] }, diamonds: -1, colour: "kind" };

function project(h) {
  const { mean, axes } = DATA.states;
  return axes.map((along) => along.reduce((sum, a, j) => sum + a * (h[j] - mean[j]), 0));
}

function showSpace() {
  for (const choice of document.querySelectorAll("[name=space-colour]")) {
    choice.addEventListener("change", () => {
      space.colour = choice.value;
      refresh("path");
    });
  }
  plot("path", spacePlot, (element) =>
    element.on("plotly_click", ({ points: [point] }) => {
      if (point.curveNumber === space.diamonds) chooseSlowPoint(point.pointNumber);
    }),
  );
  showSlowPoints();
}

function spacePlot() {
  const { explained, readout } = DATA.states;
  const traces = DATA.language ? languageTraces() : stateTraces();
  const many = traces.length > 1;
  traces.push(slowTrace());
  space.diamonds = traces.length - 1;
  traces.push(...pathTraces());
  const of = (i) => `component ${i + 1}, ${percent(explained[i], 0)} of the variance`;
  return {
    traces,
    layout: {
      showlegend: many,
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", bgcolor: "transparent", itemsizing: "constant" },
      xaxis: axis(of(0)),
      yaxis: axis(of(1)),
      annotations: TWO ? readoutArrow(readout) : [],
      margin: { l: 52, r: 8, t: many ? 40 : 14, b: 44 },
    },
  };
}

/** Returns the traces of a sequence run's states: with two classes on one scale of colour, with more one for each. */
function stateTraces() {
  const { points, said, last, labels } = DATA.states;
  const says = (i) => (TWO ? `${percent(said[i])} ${MODEL.classes[1]}` : MODEL.classes[said[i]]);
  const trace = (rows, marker, name) => ({
    ...dots(points, rows, name),
    marker: { ...marker, size: rows.map((i) => (last[i] ? 7 : 5)), opacity: 0.72 },
    text: rows.map((i) => (labels ? `… ${escapeText(labels[i])}<br>` : "") + `says ${escapeText(says(i))}`),
  });
  const every = Array.from(points.keys());
  if (TWO) {
    const ofSecond = every.map((i) => said[i]);
    return [trace(every, scaled(ofSecond, [0, 1], ["down", "up"], MODEL.classes[1], ".0%"), "states")];
  }
  if (MODEL.classes.length > FEW) return [trace(every, { color: every.map((i) => classColour(said[i])) }, "states")];
  return MODEL.classes.map((name, c) =>
    trace(
      every.filter((i) => said[i] === c),
      { color: classColour(c), symbol: SYMBOLS[c % SYMBOLS.length] },
      escapeText(name),
    ),
  );
}

/** Returns the traces of a language model's states: one for each kind of token, or one scale of bits. */
function languageTraces() {
  const { points, kinds, kind, bits, labels } = DATA.states,
    unit = DATA.language.tokens.slice(0, -1),
    every = Array.from(points.keys());
  const trace = (rows, marker, name) => ({
    ...dots(points, rows, name),
    marker: { ...marker, size: 6.5, opacity: 0.8 },
    text: rows.map((i) => `… ${escapeText(visible(labels[i]))}<br>next ${unit}: ${bits[i].toFixed(1)} bits`),
  });
  if (space.colour === "bits") {
    const ends = [Math.min(...bits), Math.max(...bits)];
    return [trace(every, scaled(bits, ends, ["up", "down"], "bits", ".1f"), "states")];
  }
  return kinds.map((name, k) =>
    trace(
      every.filter((i) => kind[i] === k),
      { color: classColour(k), symbol: SYMBOLS[k % SYMBOLS.length] },
      name,
    ),
  );
}

const SYMBOLS = ["circle", "triangle-up", "square", "x", "cross", "triangle-down", "hexagon2", "hourglass"];

function dots(points, rows, name) {
  return {
    x: rows.map((i) => points[i][0]),
    y: rows.map((i) => points[i][1]),
    mode: "markers",
    name,
    hovertemplate: "%{text}<extra></extra>",
  };
}

/** Returns a marker whose colour goes from `low` to `high` through grey, with a bar that says so. */
function scaled(values, [low, high], tones, title, tickformat) {
  const scale = [
    [0, colour(tones[0])],
    [0.5, colour("middle")],
    [1, colour(tones[1])],
  ];
  const bar = { thickness: 10, len: 0.6, outlinewidth: 0, tickformat, title: { text: escapeText(title), side: "right" } };
  return { color: values, cmin: low, cmax: high, colorscale: scale, colorbar: bar, showscale: true };
}

/** Returns an arrow along Why: the direction in which the logit of the second class grows.
 *
 * Its head is at the end with the text, (ax, ay) from the other; ay grows downwards. */
function readoutArrow(readout) {
  const [x, y] = readout.length === 1 ? readout[0] : readout[1].map((value, i) => value - readout[0][i]);
  const norm = Math.hypot(x, y) || 1;
  return [
    {
      xref: "paper",
      yref: "paper",
      axref: "pixel",
      ayref: "pixel",
      x: 0.85,
      y: 0.1,
      ax: (46 * x) / norm,
      ay: (-46 * y) / norm,
      arrowcolor: colour("text"),
      arrowwidth: 1.6,
      arrowhead: 0,
      startarrowhead: 2,
      arrowside: "start",
      text: "Why",
      font: { size: 12, color: colour("text") },
    },
  ];
}
