// Plots: drawn when they come near the screen; their axes and layouts.

const PLOTS = new Map(); // from an element to { draw, drawn, near, stale }
const SHOWN = { displayModeBar: false, responsive: true };
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif';
const TOUCH = window.matchMedia("(pointer: coarse)").matches;

/**
 * Adds a plot, which is drawn when it is stale and near the screen: at first, and when refresh(id) is called.
 *
 * draw() returns { traces, layout }; drawn(element) is called once, after the first time.
 */
function plot(id, draw, drawn = () => {}) {
  PLOTS.set(byId(id), { draw, drawn, near: false, stale: true });
}

function refresh(id) {
  const element = byId(id),
    plot = PLOTS.get(element);
  plot.stale = true;
  if (plot.near) paint(element, plot);
}

function paint(element, plot) {
  const { traces, layout } = plot.draw(),
    first = element.data === undefined;
  Plotly.react(element, traces, { ...baseLayout(), ...layout }, SHOWN);
  plot.stale = false;
  if (first) plot.drawn(element);
}

/** Begins to draw; Plotly is below this script, so that the texts can be read before it is there. */
function startPlots() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        const plot = PLOTS.get(target);
        plot.near = isIntersecting;
        if (plot.near && plot.stale) paint(target, plot);
      }
    },
    { rootMargin: "300px" },
  );
  for (const element of PLOTS.keys()) observer.observe(element);
  window.addEventListener("beforeprint", () => PLOTS.forEach((plot, element) => paint(element, plot)));
}

function baseLayout() {
  return {
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    margin: { l: 52, r: 12, t: 30, b: 44 },
    font: { family: FONT, size: 12.5, color: colour("soft") },
    hovermode: "closest",
    dragmode: TOUCH ? false : "zoom",
    legend: { orientation: "h", x: 0, y: 1.14, bgcolor: "transparent" },
    uirevision: "kept",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("text"), size: 13 } },
  };
}

function axis(title, more = {}) {
  return {
    title: { text: title, standoff: 8 },
    gridcolor: colour("grid"),
    zerolinecolor: colour("line"),
    linecolor: colour("line"),
    tickcolor: colour("line"),
    automargin: true,
    ...more,
  };
}

/** Returns a logarithmic axis, with ticks at powers of ten, of few decades at 1, 2 and 5 times these; else a linear one. */
function logAxis(title, values) {
  const positive = values.filter((value) => value > 0),
    decades = Math.log10(Math.max(...positive) / Math.min(...positive));
  if (!(decades > 0.4)) return axis(title);
  if (decades > 1.5) {
    return axis(title, { type: "log", exponentformat: "power", dtick: decades > 5 ? Math.ceil(decades / 5) : 1 });
  }
  const first = Math.floor(Math.log10(Math.min(...positive))),
    tickvals = [0, 1, 2, 3].flatMap((i) => [1, 2, 5].map((digit) => Number(`${digit}e${first + i}`)));
  return axis(title, { type: "log", tickvals, ticktext: tickvals.map(String) });
}

function circle() {
  return { type: "circle", x0: -1, x1: 1, y0: -1, y1: 1, line: { color: colour("soft"), width: 1, dash: "dot" } };
}

/** Returns a layout for points on the complex plane. */
function complexPlane(title) {
  const more = { zeroline: true, constrain: "domain" };
  return {
    title: { text: title, font: { size: 13 }, x: 0.02 },
    shapes: [circle()],
    xaxis: axis("real part", more),
    yaxis: axis("imaginary part", { ...more, scaleanchor: "x", scaleratio: 1 }),
  };
}
