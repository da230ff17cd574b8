"use strict";

// The parts of this file, in their order: arrays, tokens, the RNN, its readings, writing, plots, panels.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MODEL = DATA.model;
const TWO = MODEL.classes.length === 2;
const byId = (id) => document.getElementById(id);

// Arrays.

/** Returns { shape, data } of an array that Python has packed; data is a Float32Array. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.base64), (character) => character.charCodeAt(0));
  return { shape: packed.shape, data: new Float32Array(bytes.buffer) };
}

/** Adds matrix (rows, columns) times vector (columns) to out (rows). */
function addProduct(out, matrix, vector) {
  for (let i = 0, k = 0; i < out.length; i++) {
    let sum = 0;
    for (let j = 0; j < vector.length; j++, k++) sum += matrix[k] * vector[j];
    out[i] += sum;
  }
}

// Tokens.

const SPACE = "\\t\\n\\v\\f\\r\\x1c-\\x1f \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const SPACES = new RegExp(`[${SPACE}]+`, "g");
const REPLACED = [
  ["'", " '  "],
  ['"', ""],
  [".", " . "],
  ["<br />", " "],
  [",", " , "],
  ["(", " ( "],
  [")", " ) "],
  ["!", " ! "],
  ["?", " ? "],
  [";", " "],
  [":", " "],
];

/** Returns the tokens of torchtext's "basic_english" tokenizer, in which \s is Python's. */
function tokenize(text) {
  let line = text.toLowerCase();
  for (const [from, to] of REPLACED) line = line.replaceAll(from, to);
  return line.split(SPACES).filter((token) => token !== "");
}

/** Returns a function from a token to its id; 0 stands for every other token. */
function encoder(vocabulary) {
  const ids = new Map(vocabulary.map((word, i) => [word, i]));
  return (token) => ids.get(token) ?? 0;
}

// The RNN: h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh).

const NONLINEARITIES = { tanh: Math.tanh, relu: (a) => (a > 0 ? a : 0), linear: (a) => a };

/** Unpacks the weights; products are summed in float64. */
function makeRNN(weights, settings) {
  const layers = weights.layers.map((directions) =>
    directions.map(({ Wxh, Whh, bh }) => ({ Wxh: unpack(Wxh), Whh: unpack(Whh).data, bh: unpack(bh).data })),
  );
  const Why = unpack(weights.Why);
  return {
    layers,
    Why: Why.data,
    by: unpack(weights.by).data,
    H: settings.hidden_size,
    C: Why.shape[0],
    width: Why.shape[1],
    f: NONLINEARITIES[settings.nonlinearity],
    readout: settings.readout,
  };
}

/** Returns the top layer's states, an array of T * width numbers, and those of each layer and direction at its end. */
function computeStates(rnn, ids) {
  const T = ids.length,
    H = rnn.H;
  let input = null,
    inputWidth = 0,
    last = [];
  for (const directions of rnn.layers) {
    const width = directions.length * H,
      states = new Float64Array(T * width);
    directions.forEach((weights, direction) => {
      let h = new Float64Array(H);
      for (let step = 0; step < T; step++) {
        const t = direction ? T - 1 - step : step;
        h = nextState(rnn, weights, h, ids[t], input && input.subarray(t * inputWidth, (t + 1) * inputWidth));
        states.set(h, t * width + direction * H);
      }
      last.push(h);
    });
    input = states;
    inputWidth = width;
  }
  return { states: input, last };
}

/** Returns h[t] from h[t-1] and an id, or, above the first layer, from the states below. */
function nextState(rnn, { Wxh, Whh, bh }, before, id, below) {
  const h = Float64Array.from(bh);
  if (below === null) {
    for (let i = 0, k = id * rnn.H; i < rnn.H; i++, k++) h[i] += Wxh.data[k];
  } else {
    addProduct(h, Wxh.data, below);
  }
  addProduct(h, Whh, before);
  for (let i = 0; i < rnn.H; i++) h[i] = rnn.f(h[i]);
  return h;
}

/** Returns Why h + by. */
function logitsOf(rnn, h) {
  const logits = Float64Array.from(rnn.by);
  addProduct(logits, rnn.Why, h);
  return logits;
}

/** Returns the probability of each class: one logit stands for a sigmoid, several for a softmax. */
function probabilitiesOf(logits) {
  if (logits.length === 1) {
    const p = 1 / (1 + Math.exp(-logits[0]));
    return [1 / (1 + Math.exp(logits[0])), p];
  }
  const highest = logits.reduce((a, b) => Math.max(a, b)),
    exps = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = exps.reduce((a, b) => a + b, 0);
  return exps.map((value) => value / sum);
}

// Readings.

/** Reads a text. Returns what `readIds` returns, and tokens (those that are read), ids and skipped (those before). */
function readText(rnn, encode, maxlen, text) {
  const all = tokenize(text),
    tokens = all.slice(-maxlen),
    ids = tokens.map(encode);
  return { tokens, ids, skipped: all.slice(0, all.length - tokens.length), ...readIds(rnn, ids) };
}

/**
 * Reads ids.
 *
 * Returns states (T arrays of numbers), logits, probabilities, contributions (T arrays of one number for each logit;
 * with `start`, by, they sum to the logits), and running (T arrays: the logits after each word).
 */
function readIds(rnn, ids) {
  const { states } = computeStates(rnn, ids),
    T = ids.length,
    { width, C } = rnn;
  const shares = sharesOf(rnn, states, T),
    pooled = new Float64Array(width);
  const contributions = [],
    moved = new Float64Array(width);
  for (let t = 0; t < T; t++) {
    for (let j = 0; j < width; j++) {
      const before = j < rnn.H ? t - 1 : t + 1;
      const h = states[t * width + j],
        past = before < 0 || before >= T ? 0 : states[before * width + j];
      moved[j] = (h - past) * shares(t, j);
      pooled[j] += moved[j];
    }
    const part = new Float64Array(C);
    addProduct(part, rnn.Why, moved);
    contributions.push(part);
  }
  const logits = logitsOf(rnn, pooled);
  return {
    states: Array.from({ length: T }, (_, t) => states.subarray(t * width, (t + 1) * width)),
    logits: Array.from(logits),
    probabilities: probabilitiesOf(logits),
    start: Array.from(rnn.by),
    contributions,
    running: runningLogits(rnn, states, contributions),
  };
}

/** Returns a function: the share with which the change of unit j at step t counts in what is read. */
function sharesOf(rnn, states, T) {
  const { H, width, readout } = rnn;
  if (readout === "mean") return (t, j) => (j < H ? T - t : t + 1) / T;
  if (readout !== "max") return () => 1;
  const highest = new Int32Array(width);
  for (let t = 1; t < T; t++) {
    for (let j = 0; j < width; j++) {
      if (states[t * width + j] > states[highest[j] * width + j]) highest[j] = t;
    }
  }
  return (t, j) => ((j < H ? t <= highest[j] : t >= highest[j]) ? 1 : 0);
}

/** Returns the logits of the text that ends after each word; with two directions, by and the parts so far. */
function runningLogits(rnn, states, contributions) {
  const T = contributions.length,
    { width } = rnn;
  if (rnn.layers[0].length === 2) {
    const sum = Float64Array.from(rnn.by);
    return contributions.map((part) => Float64Array.from(part, (value, c) => (sum[c] += value)));
  }
  const pooled = new Float64Array(width).fill(rnn.readout === "max" ? -Infinity : 0),
    running = [];
  for (let t = 0; t < T; t++) {
    const h = states.subarray(t * width, (t + 1) * width);
    if (rnn.readout === "mean") {
      for (let j = 0; j < width; j++) pooled[j] += (h[j] - pooled[j]) / (t + 1);
    } else if (rnn.readout === "max") {
      for (let j = 0; j < width; j++) pooled[j] = Math.max(pooled[j], h[j]);
    } else {
      pooled.set(h);
    }
    running.push(logitsOf(rnn, pooled));
  }
  return running;
}

/** Returns the reading that Python has stored, in the form of `readText`. */
function storedReading({ tokens, skipped, ids, contributions, running, logits, states, path, by }) {
  const rows = (packed) => {
    const { shape, data } = unpack(packed);
    return Array.from({ length: shape[0] }, (_, t) => data.subarray(t * shape[1], (t + 1) * shape[1]));
  };
  return {
    tokens,
    ids,
    skipped,
    logits,
    probabilities: probabilitiesOf(logits),
    start: by,
    contributions: rows(contributions),
    running: rows(running),
    states: rows(states),
    path: rows(path),
  };
}

// Writing, token by token.

/** Returns a function that reads one id after the other and returns the logits after it. */
function makeStream(rnn) {
  let state = rnn.layers.map(() => new Float64Array(rnn.H));
  return (id) => {
    let below = null;
    state = rnn.layers.map(([weights], layer) => (below = nextState(rnn, weights, state[layer], id, below)));
    return { states: below, logits: logitsOf(rnn, below) };
  };
}

/** Returns a prompt's tokens; of an empty one that with which a text begins: a line's end, for words a full stop. */
function promptTokens(unit, prompt) {
  const tokens = unit === "characters" ? Array.from(prompt) : tokenize(prompt);
  return tokens.length ? tokens : [unit === "characters" ? "\n" : "."];
}

/** Reads a text. Returns tokens and ids, and for each of them the top layer's states and the logits after it. */
function readStream({ rnn, vocabulary, tokens: unit }, text) {
  const tokens = unit === "characters" ? Array.from(text) : tokenize(text),
    ids = tokens.map(encoder(vocabulary)),
    read = ids.map(makeStream(rnn));
  return { tokens, ids, states: read.map(({ states }) => states), logits: read.map(({ logits }) => logits) };
}

/** Returns the places of the n largest numbers, the largest first. */
function largest(values, n) {
  const places = [];
  for (let i = 0; i < values.length; i++) {
    if (places.length === n && !(values[i] > values[places[n - 1]])) continue;
    let k = places.length;
    while (k > 0 && values[i] > values[places[k - 1]]) k--;
    places.splice(k, 0, i);
    if (places.length > n) places.pop();
  }
  return places;
}

/** Draws an id from logits divided by the temperature; at 0 the most probable one. `uniform` is in 0..1. */
function draw(logits, temperature, uniform) {
  if (temperature === 0) return largest(logits, 1)[0];
  const p = probabilitiesOf(logits.map((logit) => logit / temperature));
  let rest = uniform,
    i = 0;
  while (i < p.length - 1 && rest >= p[i]) rest -= p[i++];
  return i;
}

/**
 * Continues a prompt; an iterator that makes one step for each token that is read.
 *
 * Each step yields the same object: tokens and ids, given (how many of them are the prompt's), next (for each token
 * the five most probable next ones, [token, probability]), held (the probability that each token had; the first one
 * has none) and path (the states in the plane of the state space).
 */
function* writeSteps({ rnn, vocabulary, tokens: unit }, prompt, length, temperature, random) {
  const tokens = promptTokens(unit, prompt),
    ids = tokens.map(encoder(vocabulary)),
    push = makeStream(rnn),
    given = tokens.length;
  const written = { tokens, ids, given, next: [], held: [null], path: DATA.states ? [] : null };
  for (let t = 0; t < given + length; t++) {
    const { states, logits } = push(ids[t]),
      p = probabilitiesOf(logits);
    written.path?.push(project(states));
    written.next.push(largest(p, 5).map((i) => [vocabulary[i], p[i]]));
    if (t >= given - 1 && tokens.length < given + length) {
      ids.push(draw(logits, temperature, random()));
      tokens.push(vocabulary[ids.at(-1)]);
    }
    if (t + 1 < tokens.length) written.held.push(p[ids[t + 1]]);
    yield written;
  }
}

/** Continues a prompt; returns what the last step of `writeSteps` yields. */
function writeText(model, prompt, length, temperature, random = Math.random) {
  let last = null;
  for (const written of writeSteps(model, prompt, length, temperature, random)) last = written;
  return last;
}

// Small things of the document.

/** Makes an element; text is always shown as text, never as markup. */
function make(tag, { text, children = [], ...attributes } = {}) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

const number = (value) => value.toLocaleString("en");
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}\u00a0%`;
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const CLASS_COLOURS = {
  light: ["#0072B2", "#D55E00", "#789669", "#782D3C", "#2D96FF", "#443862", "#7E7376", "#A50000"],
  dark: ["#56B4E9", "#F08A3C", "#CAF2B9", "#794AFF", "#ACADAA", "#4E8063", "#C13604", "#726681"],
};
const classColour = (i) => CLASS_COLOURS[theme()][i % 8];
const theme = () => document.documentElement.dataset.theme;

// Plots.

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

/** Returns a logarithmic axis, with ticks at powers of ten or more; for values close to each other a linear one. */
function logAxis(title, values) {
  const positive = values.filter((value) => value > 0),
    decades = Math.log10(Math.max(...positive) / Math.min(...positive));
  if (!(decades > 0.4)) return axis(title);
  return axis(title, {
    type: "log",
    exponentformat: "power",
    dtick: decades > 5 ? Math.ceil(decades / 5) : decades > 1.5 ? 1 : "D2",
  });
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

// Panels: result and training.

function showSummary(cards) {
  byId("summary").append(
    ...cards.map(([value, label]) =>
      make("div", { children: [make("strong", { text: value }), make("span", { text: label })] }),
    ),
  );
}

function resultCards() {
  const { test, validation } = DATA.result.splits;
  return [
    [percent(test.accuracy, 2), `test accuracy, 95 % interval ${percent(test.low)} to ${percent(test.high)}`],
    [test.loss.toPrecision(3), "test loss, nats"],
    [percent(validation.accuracy, 2), `validation accuracy, of ${number(validation.n)}`],
    [number(test.n), DATA.model.readout === "every" ? "outputs tested" : "examples tested"],
    [number(DATA.about.parameters), "parameters"],
  ];
}

function languageCards() {
  const { rows, measure, tokens, V } = DATA.language;
  return [
    ...rows.map(({ name, score }) => [scoreText(score), `${name}, ${measure}`]),
    [rows[0].loss.toPrecision(4), `${rows[0].name} loss, nats`],
    [number(rows[0].n), `${rows[0].name} ${tokens}`],
    [number(V), `V, ${tokens} in the vocabulary`],
    [number(DATA.about.parameters), "parameters"],
  ];
}

/** Returns bits per character with three digits after the point, a perplexity with four in all. */
const scoreText = (value) =>
  DATA.language.tokens === "characters"
    ? value.toFixed(3)
    : value < 1000
      ? value.toPrecision(4)
      : number(Math.round(value));

/** Shows the scores of a language model as bars beside two models that read no text before. */
function showLanguage() {
  const { rows, references, measure, tokens } = DATA.language,
    all = [...rows.map((row) => ({ ...row, own: true })), ...references],
    most = Math.max(...all.map(({ loss }) => loss));
  const head = [
    ["", "text"],
    ["", "bar"],
    [measure, "count"],
    ["loss, nats", "count"],
    [tokens, "count size"],
  ].map(([text, name]) => make("th", { text, class: name, scope: "col" }));
  const body = all.map(({ name, score, loss, n, own }) =>
    make("tr", {
      class: own ? "own" : null,
      children: [
        make("th", { text: own ? `this model, ${name}` : name, scope: "row", class: "text" }),
        make("td", { class: "bar", children: [make("i", { style: `width: ${(100 * loss) / most}%` })] }),
        ...[scoreText(score), loss.toFixed(4)].map((text) => make("td", { text, class: "count" })),
        make("td", { text: n === undefined ? "" : number(n), class: "count size" }),
      ],
    }),
  );
  byId("language-scores").append(
    make("table", {
      class: "bars up language",
      children: [make("thead", { children: [make("tr", { children: head })] }), make("tbody", { children: body })],
    }),
  );
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

// Panels: memory.

function showMemory() {
  const { gradients, spectra } = DATA.memory,
    end = DATA.language ? "prediction" : "end";
  const tones = () => ({ before: colour("down"), after: colour("up") });
  if (gradients.after.length > 2) {
    for (const element of byId("memory").querySelectorAll(".plot")) element.classList.add("tall");
  }
  plot("gradients", () => ({
    traces: Object.entries(gradients).flatMap(([when, directions]) =>
      directions.map(({ name, distances, norms }, d) => ({
        x: distances,
        y: norms,
        name: directions.length > 1 ? `${name}, ${when}` : when,
        mode: "lines",
        line: { color: tones()[when], width: 2, dash: ["solid", "dash", "dot", "dashdot"][d % 4] },
        hovertemplate: `%{x} steps before the ${end}: %{y:.3g}<extra></extra>`,
      })),
    ),
    layout: {
      ...above(gradients.after.length),
      xaxis: axis(`steps before the ${end}`),
      yaxis: logAxis(
        "mean |dL/dh[t]|",
        Object.values(gradients)
          .flat()
          .flatMap(({ norms }) => norms),
      ),
    },
  }));
  if (spectra.length) showSpectra(spectra, Object.keys(gradients), tones);
}

/** Shows the eigenvalues of one Whh; of several, that of the top layer at first. */
function showSpectra(spectra, times, tones) {
  let shown = spectra.length - 1;
  const choices = spectra.map(({ name }, i) => {
    const input = make("input", { type: "radio", name: "spectrum", value: i, checked: i === shown ? "" : null });
    input.addEventListener("change", () => {
      shown = i;
      refresh("spectrum");
    });
    return make("label", { children: [input, ` ${name}`] });
  });
  if (choices.length > 1) byId("spectrum-choice").append(...choices);
  plot("spectrum", () => ({
    traces: times.map((when) => ({
      x: spectra[shown][when].map(([re]) => re),
      y: spectra[shown][when].map(([, im]) => im),
      mode: "markers",
      name: when,
      showlegend: true,
      marker: { color: tones()[when], size: 7, opacity: 0.8, symbol: when === "before" ? "circle-open" : "circle" },
      text: spectra[shown][when].map(([re, im]) => `|λ| = ${Math.hypot(re, im).toFixed(4)}`),
      hovertemplate: "%{x:.3f} + %{y:.3f} i<br>%{text}<extra></extra>",
    })),
    layout: complexPlane(""),
  }));
}

/** Returns a layout with room for the legend of n curves before and n after training. */
function above(n) {
  if (n < 2) return {};
  const legend = { orientation: "h", x: 0, y: 1.03, yanchor: "bottom", bgcolor: "transparent" };
  return { legend, margin: { l: 52, r: 12, t: 24 + 22 * n, b: 44 } };
}

// Panels: state space.

const FEW = 12; // classes that have a colour of their own in the state space
const space = { chosen: 0, path: { x: [], y: [], labels: [] }, diamonds: -1, colour: "kind" };

function project(h) {
  const { mean, axes } = DATA.states;
  return axes.map((along) => along.reduce((sum, a, j) => sum + a * (h[j] - mean[j]), 0));
}

/** Returns the traces of a sequence run's states: with two classes on one scale of colour, with more one for each. */
function stateTraces() {
  const { points, said, last, labels } = DATA.states;
  const says = (i) => (TWO ? `${percent(said[i])} ${MODEL.classes[1]}` : MODEL.classes[said[i]]);
  const trace = (rows, marker, name) => ({
    ...dots(points, rows, name, marker),
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
    ...dots(points, rows, name, marker),
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

/** Makes spaces and ends of lines visible. */
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");

/** Escapes what Plotly would take for its few tags. */
function escapeText(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function spacePlot() {
  const { slow, explained, readout } = DATA.states;
  const traces = DATA.language ? languageTraces() : stateTraces();
  const many = traces.length > 1;
  const diamonds = slow ? slow.points : [];
  const order = slowOrder();
  traces.push({
    x: order.map((i) => diamonds[i][0]),
    y: order.map((i) => diamonds[i][1]),
    mode: "markers",
    name: "slow points",
    showlegend: false,
    marker: {
      symbol: "diamond",
      size: order.map((_, k) => (k === space.chosen ? 15 : 9)),
      color: colour("card"),
      line: { color: colour("text"), width: order.map((_, k) => (k === space.chosen ? 3 : 1.5)) },
    },
    text: order.map((i) => slowLabel(i)),
    hovertemplate: "slow point<br>%{text}<extra></extra>",
  });
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

function pathTraces() {
  const { x, y, labels, marks } = space.path,
    end = x.length - 1;
  const line = {
    x,
    y,
    text: marks,
    textposition: "top center",
    textfont: { size: 14, color: colour("text"), shadow: `0 0 3px ${colour("card")}, 0 0 2px ${colour("card")}` },
    hovertext: labels,
    mode: marks ? "lines+markers+text" : "lines+markers",
    name: "your text",
    showlegend: false,
    line: { color: colour("text"), width: marks ? 1 : 1.8 },
    marker: { size: x.length > 80 ? 2.5 : 5, color: colour("text") },
    hovertemplate: "%{hovertext}<extra></extra>",
  };
  const star = {
    x: x.slice(end),
    y: y.slice(end),
    mode: "markers",
    hoverinfo: "skip",
    showlegend: false,
    marker: { symbol: "star", size: 17, color: colour("text"), line: { color: colour("card"), width: 1.5 } },
  };
  return [line, star];
}

/** Draws the path of a reading; the plot follows when typing pauses. */
function showPath(reading) {
  const steps = (reading.path ?? reading.states).map(project);
  const labels = reading.tokens.map(
    (token, t) => `${escapeText(token)}<br>${escapeText(saysAfter(reading.running[t]))}`,
  );
  const start = project(new Float64Array(DATA.states.mean.length));
  const all = [start, ...steps];
  space.path = { x: all.map(([x]) => x), y: all.map(([, y]) => y), labels: ["the start", ...labels] };
  byId("path").dataset.points = JSON.stringify(all);
  refreshPath(160);
}

function refreshPath(milliseconds) {
  clearTimeout(space.timer);
  space.timer = setTimeout(() => refresh("path"), milliseconds);
}

const TAIL = { characters: 16, words: 10 };

/** Draws the path of a written text: its last tokens up to a place, each beside its state. */
function showWrittenPath({ tokens, path, next }, place, unit) {
  const from = Math.max(0, place + 1 - TAIL[unit]),
    shown = path.slice(from, place + 1),
    read = tokens.slice(from, place + 1).map(visible);
  const labels = read.map((token, i) => {
    const following = next[from + i].slice(0, 3).map(([text, p]) => `${visible(text)} ${percent(p, 0)}`);
    return `after ${escapeText(token)}<br>next: ${escapeText(following.join(", "))}`;
  });
  space.path = { x: shown.map(([x]) => x), y: shown.map(([, y]) => y), labels, marks: read.map(escapeText) };
  refreshPath(40);
}

/** Returns the slow points from one end of the line to the other. */
function slowOrder() {
  const { slow } = DATA.states;
  const along = ([x]) => x;
  return slow ? Array.from(slow.points.keys()).sort((a, b) => along(slow.points[a]) - along(slow.points[b])) : [];
}

function slowLabel(i) {
  const { slow } = DATA.states,
    values = slow.eigenvalues[i],
    [re, im] = values[slowest(values)];
  return `${escapeText(slowSays(i))}<br>${DATA.language ? "largest" : "closest to 1"}: |λ| = ${Math.hypot(re, im).toFixed(4)}`;
}

function showSpace() {
  const { slow } = DATA.states;
  for (const choice of document.querySelectorAll("[name=space-colour]")) {
    choice.addEventListener("change", () => {
      space.colour = choice.value;
      refresh("path");
    });
  }
  plot("path", spacePlot, (element) =>
    element.on("plotly_click", ({ points: [point] }) => {
      if (point.curveNumber === space.diamonds) choose(point.pointNumber);
    }),
  );
  if (!slow || slow.points.length === 0) {
    byId("slow").remove();
    byId("space").querySelector(".pair").classList.remove("pair");
    return;
  }
  const slider = byId("slow-point"),
    order = slowOrder();
  slider.max = order.length - 1;
  slider.hidden = byId("slow-label").hidden = order.length === 1;
  slider.value = space.chosen = Math.floor(order.length / 2);
  plot("jacobian", () => jacobianPlot(order[space.chosen]));
  const choose = (k) => {
    space.chosen = k;
    slider.value = k;
    slider.setAttribute("aria-valuetext", `slow point ${k + 1} of ${order.length}`);
    describeSlowPoint(order[k], k, order.length);
    refresh("jacobian");
    refresh("path");
  };
  slider.addEventListener("input", () => choose(Number(slider.value)));
  choose(space.chosen);
}

function jacobianPlot(i) {
  const values = DATA.states.slow.eigenvalues[i],
    marked = slowest(values);
  const trace = (shown, tone, size) => ({
    x: shown.map(([re]) => re),
    y: shown.map(([, im]) => im),
    mode: "markers",
    showlegend: false,
    marker: { color: colour(tone), size },
    text: shown.map(([re, im]) => `|λ| = ${Math.hypot(re, im).toFixed(4)}`),
    hovertemplate: "%{x:.3f} + %{y:.3f} i<br>%{text}<extra></extra>",
  });
  const others = values.filter((_, k) => k !== marked);
  return {
    traces: [trace(others, "up", others.length > 300 ? 4 : 7), trace([values[marked]], "down", 12)],
    layout: complexPlane("eigenvalues of dF/dh at the slow point"),
  };
}

/** Says what comes out at a slow point, how long a change along the marked eigenvalue lasts, and how many others grow. */
function describeSlowPoint(i, k, n) {
  const { slow } = DATA.states,
    values = slow.eigenvalues[i];
  const [re, im] = values[slowest(values)],
    z = Math.hypot(re, im),
    time = steps(Math.abs(Math.log(2) / Math.log(z))),
    outside = values.filter((value) => Math.hypot(...value) > 1).length;
  const fate = Math.abs(z - 1) < 5e-4 ? "is kept" : z > 1 ? `doubles in ${time}` : `halves in ${time}`;
  const which = DATA.language ? "largest eigenvalue" : "eigenvalue closest to 1",
    modulus = DATA.language ? `, |λ| = ${z.toFixed(3)}` : "";
  byId("slow-text").textContent =
    `${n > 1 ? `${k + 1} of ${n}, from left to right` : "At the slow point"}: ${slowSays(i)}. The ${which} is ${complex(re, im)}${modulus}; a change ` +
    `along it ${fate}. ${number(outside)} of ${number(values.length)} eigenvalues are outside the circle.`;
}

/** Says what the model makes of a slow point. */
function slowSays(i) {
  const { logits, next } = DATA.states.slow;
  if (!next) return `the model says ${saysAfter(logits[i])}`;
  return `next comes ${next[i].map(([token, p]) => `“${visible(token)}” (${percent(p, 0)})`).join(", ")}`;
}

/** Returns the place of the eigenvalue that is marked; a language model's is the largest. */
const slowest = (values) => (DATA.language ? 0 : closestToOne(values));

const complex = (re, im) =>
  (re < 0 ? "−" : "") + Math.abs(re).toFixed(4) + (Math.abs(im) < 1e-6 ? "" : ` ${im < 0 ? "−" : "+"} ${Math.abs(im).toFixed(4)} i`);

function steps(n) {
  const whole = Math.max(1, Math.round(n));
  return whole === 1 ? "a step" : `${number(whole)} steps`;
}

/** Returns the place of the eigenvalue that is closest to 1 on the complex plane. */
function closestToOne(values) {
  const distances = values.map(([re, im]) => Math.hypot(re - 1, im));
  return distances.indexOf(Math.min(...distances));
}

// Panels: words.

function showWords() {
  const { logits } = DATA.words;
  const buttons = TWO ? [] : MODEL.classes.map((text) => make("button", { text, type: "button" }));
  const show = (c) => {
    const most = Math.max(...[...logits[c].up, ...logits[c].down].map((row) => Math.abs(row.mean)));
    byId("word-lists").replaceChildren(...["up", "down"].map((way) => wordTable(way, c, most)));
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", k === c));
  };
  buttons.forEach((button, c) => button.addEventListener("click", () => show(c)));
  byId("word-classes").append(...buttons);
  show(TWO ? logits.length - 1 : 0);
}

/** Returns the table of the words that raise ("up") or lower ("down") a logit; the longest bar is that of `most`. */
function wordTable(way, logit, most) {
  const head = [
    ["word", "text"],
    ["mean part", "bar"],
    ["", "amount"],
    ["test", "count"],
    ["train", "count"],
  ];
  const rows = DATA.words.logits[logit][way].map(({ word, mean, test, train }) => {
    const bar = make("i", { style: `width: ${(100 * Math.abs(mean)) / most}%` });
    const cells = [
      make("td", { text: word, class: "text" }),
      make("td", { class: "bar", children: [bar] }),
      make("td", { text: signed(mean), class: "amount" }),
      make("td", { text: number(test), class: "count" }),
      make("td", { text: number(train), class: "count" }),
    ];
    return make("tr", { children: cells });
  });
  const names = make("tr", { children: head.map(([text, name]) => make("th", { text, class: name, scope: "col" })) });
  const caption = TWO
    ? `towards ${MODEL.classes[way === "up" ? 1 : 0]}`
    : `${way === "up" ? "towards" : "away from"} ${MODEL.classes[logit]}`;
  return make("table", {
    class: `bars ${way}`,
    children: [
      make("caption", { text: caption }),
      make("thead", { children: [names] }),
      make("tbody", { children: rows }),
    ],
  });
}

// Panels: reading.

const view = { reading: null, readIds: null, without: false, shown: null, chosen: -1, left: 38, width: 0 };

/** The logit whose parts are shown: the only one, with two classes the second, else that of the chosen class. */
function shownLogit() {
  if (view.reading.logits.length === 1) return 0;
  return TWO ? 1 : (view.shown ?? mostProbable(view.reading.probabilities));
}

const mostProbable = (p) => p.indexOf(Math.max(...p));

function saysAfter(logits) {
  const p = probabilitiesOf(logits),
    best = mostProbable(p);
  return TWO ? `${percent(p[1])} ${MODEL.classes[1]}` : `${MODEL.classes[best]} ${percent(p[best])}`;
}

function showReading() {
  const { vocabulary, maxlen, weights, texts } = DATA.reading;
  const field = byId("text");
  let read = null;
  if (weights) {
    const rnn = makeRNN(weights, MODEL),
      encode = encoder(vocabulary);
    read = (text) => readText(rnn, encode, maxlen, text);
    view.rnn = rnn;
    view.readIds = (ids) => readIds(rnn, ids);
    field.addEventListener("input", () => {
      byId("texts").value = "";
      update(read(field.value));
    });
    window.torch_rnn = { read, tokenize, maxlen, classes: MODEL.classes };
  }
  for (const choice of document.querySelectorAll("[name=shows]")) {
    choice.addEventListener("change", () => {
      view.without = choice.value === "without";
      showTokens();
    });
  }
  fillTexts(texts);
  const choose = (text) => {
    field.value = text.text;
    byId("texts").value = texts.indexOf(text);
    update(read ? read(text.text) : storedReading(text.reading));
  };
  byId("texts").addEventListener("change", (event) => choose(texts[Number(event.target.value)]));
  if (texts.length) choose(firstText(texts));
  else if (read) update(read(""));
  listenToPointing();
}

/** Shows a word's numbers when it, or its column in the strip, is pointed at or reached with the arrow keys. */
function listenToPointing() {
  const words = byId("words"),
    strip = byId("strip");
  words.addEventListener("keydown", moveByKey);
  words.addEventListener("pointerover", ({ target }) => {
    if (target.dataset.place !== undefined) pointAt(Number(target.dataset.place));
  });
  for (const kind of ["pointermove", "pointerdown"]) {
    strip.addEventListener(kind, (event) => {
      const place = Math.floor((event.clientX - strip.getBoundingClientRect().left - view.left) / view.width);
      if (view.reading && place >= 0 && place < view.reading.tokens.length) pointAt(place, true);
    });
  }
  new ResizeObserver(() => view.reading && drawStrip()).observe(strip.parentElement);
}

/** Prefers a short random text for the first sight: its words fit on the screen. */
function firstText(texts) {
  const random = texts.filter((text) => text.kind === "at random");
  return random.sort((a, b) => Math.abs(a.text.length - 260) - Math.abs(b.text.length - 260))[0] ?? texts[0];
}

function fillTexts(texts) {
  const kinds = [...new Set(texts.map((text) => text.kind))];
  byId("texts").append(
    make("option", { value: "", text: "Choose a text", hidden: "" }),
    ...kinds.map((kind) =>
      make("optgroup", {
        label: kind,
        children: texts.flatMap((text, i) =>
          text.kind === kind ? [make("option", { value: i, text: textLabel(text) })] : [],
        ),
      }),
    ),
  );
}

function textLabel({ text, label, p }) {
  const called = mostProbable(p),
    line = text.trim().replace(/\s+/g, " "),
    words = line.length > 70 ? `${line.slice(0, 70)} …` : line;
  const verdict = `${MODEL.classes[called]} (${percent(p[called])})`;
  return called === label ? `${verdict}: ${words}` : `called ${verdict}, is ${MODEL.classes[label]}: ${words}`;
}

/** Shows a reading: the probability and the words at once, the path in the state space when typing pauses. */
function update(reading) {
  view.reading = reading;
  view.chosen = -1;
  showProbability();
  showTokens();
  drawStrip();
  byId("word").textContent = reading.tokens.length
    ? "Point at a word, or move with the arrow keys, to see its numbers."
    : "An empty text is judged from the initial state.";
  byId("cursor").hidden = true;
  showPath(reading);
}

function showProbability() {
  const { probabilities: p } = view.reading,
    box = byId("probability"),
    best = mostProbable(p);
  if (box.childElementCount !== p.length) {
    box.replaceChildren(
      ...p.map((_, c) => {
        const row = make(TWO ? "div" : "button", {
          class: "class",
          type: TWO ? null : "button",
          children: [
            make("b", { text: MODEL.classes[c] }),
            make("span", { class: "track", children: [make("span", { class: "fill" })] }),
            make("span", { class: "number" }),
          ],
        });
        if (!TWO)
          row.addEventListener("click", () => {
            view.shown = c;
            update(view.reading);
          });
        return row;
      }),
    );
  }
  if (TWO) box.dataset.value = p[1];
  else box.dataset.value = p[best];
  box.dataset.label = MODEL.classes[TWO ? 1 : best];
  [...box.children].forEach((row, c) => {
    row.dataset.class = MODEL.classes[c];
    row.dataset.value = p[c];
    row.classList.toggle("other", TWO && c === 0);
    if (!TWO) row.setAttribute("aria-pressed", c === shownLogit());
    row.querySelector(".fill").style.width = `${100 * p[c]}%`;
    row.querySelector(".fill").style.background = TWO ? "" : classColour(c);
    row.querySelector(".number").textContent = percent(p[c], 2);
  });
}

function showTokens() {
  const { tokens, ids, contributions, skipped } = view.reading,
    c = shownLogit();
  const values = shownValues(),
    sizes = values.map(Math.abs).sort((a, b) => a - b);
  const scale = Math.max(0.3, sizes[Math.floor(0.97 * sizes.length)] ?? 0);
  const parts = document.createDocumentFragment();
  if (skipped.length) {
    const text = `${number(skipped.length)} words before are not read: … ${skipped.slice(-12).join(" ")}`;
    parts.append(make("span", { class: "skipped", text }), " ");
  }
  tokens.forEach((token, t) => {
    const value = values[t],
      strength = Math.min(1, Math.abs(value) / scale);
    const word = document.createElement("span");
    word.className = ids[t] === 0 ? "word unknown" : "word";
    word.id = `word-${t}`;
    word.setAttribute("role", "option");
    word.dataset.contribution = contributions[t][c];
    word.dataset.place = t;
    word.style.background = `rgb(var(--${value < 0 ? "down" : "up"}-rgb) / ${(0.62 * strength).toFixed(3)})`;
    word.textContent = token;
    parts.append(word, " ");
  });
  byId("words").replaceChildren(parts);
}

const MOST_WITHOUT = 4e7; // products within a tenth of a second

/** Returns what the colours of the words show; of a text that would take too long, their parts of the logit. */
function shownValues() {
  const { ids, contributions, logits } = view.reading,
    c = shownLogit();
  const { H, layers } = view.rnn ?? {},
    products = ids.length ** 2 * H * H * layers?.flat().length;
  if (!view.without || products > MOST_WITHOUT) return contributions.map((part) => part[c]);
  return ids.map((_, place) => logits[c] - view.readIds(without(ids, place)).logits[c]);
}

const without = (ids, place) => ids.filter((_, t) => t !== place);

/** Shows the numbers of a word. */
function pointAt(place, scroll = false) {
  const { tokens, ids, contributions, running } = view.reading,
    c = shownLogit();
  const word = byId(`word-${place}`),
    list = byId("words");
  select(list, document.querySelector(".word.chosen"), word);
  view.chosen = place;
  if (scroll) list.scrollTop = word.offsetTop - list.offsetTop - list.clientHeight / 2;
  const unknown = ids[place] === 0 ? " (not in the vocabulary)" : "";
  byId("word").replaceChildren(
    make("b", { text: tokens[place] }),
    `${unknown}, word ${place + 1} of ${tokens.length}: moves the logit${TWO ? "" : ` of ${MODEL.classes[c]}`} by `,
    make("b", { text: signed(contributions[place][c], 3) }),
    `; after it the logit is ${signed(running[place][c], 3)}, ${saysAfter(running[place])}. ${withoutIt(place)}`,
  );
  const cursor = byId("cursor");
  cursor.hidden = false;
  cursor.style.left = `${view.left + place * view.width - 1}px`;
  cursor.style.width = `${Math.max(4, view.width + 2)}px`;
}

/** Chooses another option of a list, for the eye and for a screen reader. */
function select(list, before, option) {
  before?.classList.remove("chosen");
  before?.removeAttribute("aria-selected");
  option.classList.add("chosen");
  option.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", option.id);
}

/** Says what the text would be called without the word. */
function withoutIt(place) {
  if (view.readIds === null) return "";
  const { logits } = view.readIds(without(view.reading.ids, place));
  return `Without this word the text is ${saysAfter(logits)}.`;
}

function moveByKey(event) {
  const T = view.reading.tokens.length;
  const places = { ArrowRight: view.chosen + 1, ArrowLeft: view.chosen - 1, Home: 0, End: T - 1 };
  if (!(event.key in places) || T === 0) return;
  event.preventDefault();
  pointAt(Math.min(T - 1, Math.max(0, places[event.key])), true);
}

/* The strip: the probability as a line, and below it h[t] as a heat map with one column for each word. */

const LINE = 96,
  GAP = 22;

function drawStrip() {
  const canvas = byId("strip"),
    { states, tokens } = view.reading,
    T = tokens.length,
    units = unitOrder();
  const width = canvas.parentElement.clientWidth,
    rowHeight = Math.max(1.5, Math.min(7, 260 / Math.max(1, units.length)));
  const height = LINE + GAP + rowHeight * units.length + 8,
    ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  view.width = T ? Math.min(170, (width - view.left - 2) / T) : 0;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  drawGrid(context, width);
  if (T === 0) return;
  drawLine(context);
  drawLabels(context);
  context.imageSmoothingEnabled = false;
  context.drawImage(heatMap(states, units), view.left, LINE + GAP, view.width * T, rowHeight * units.length);
  context.save();
  context.translate(12, LINE + GAP + (rowHeight * units.length) / 2);
  context.rotate(-Math.PI / 2);
  context.fillStyle = colour("soft");
  context.textAlign = "center";
  context.fillText(units.length > 20 ? "h[t], units by Why" : "h[t]", 0, 4);
  context.restore();
}

function drawGrid(context, width) {
  context.fillStyle = colour("soft");
  context.strokeStyle = colour("line");
  context.textAlign = "right";
  for (const value of [0, 0.5, 1]) {
    const y = lineHeight(value);
    context.beginPath();
    context.moveTo(view.left, y);
    context.lineTo(width, y);
    context.stroke();
    context.fillText(percent(value, 0), view.left - 5, y + 4);
  }
}

const lineHeight = (p) => 8 + (LINE - 14) * (1 - p);

/** Draws the probability after each word: of the second class of two, or of the class that is shown. */
function drawLine(context) {
  const { running, start } = view.reading,
    c = TWO ? 1 : shownLogit();
  const [up, down] = TWO ? [colour("up"), colour("down")] : [classColour(c), classColour(c)];
  const values = [start, ...running].map((logits) => probabilitiesOf(logits)[c]);
  const x = (t) => view.left + (t + 0.5) * view.width - view.width / 2;
  context.lineWidth = 2;
  context.lineJoin = "round";
  for (let t = 1; t < values.length; t++) {
    context.strokeStyle = values[t] < 0.5 ? down : up;
    context.beginPath();
    context.moveTo(x(t - 1), lineHeight(values[t - 1]));
    context.lineTo(x(t), lineHeight(values[t]));
    context.stroke();
  }
}

/** Writes the words above their columns where they fit. */
function drawLabels(context) {
  if (view.width < 26) return;
  context.textAlign = "center";
  context.fillStyle = colour("soft");
  view.reading.tokens.forEach((token, t) => {
    let text = token;
    while (text.length > 1 && context.measureText(text).width > view.width - 3) text = text.slice(0, -1);
    context.fillText(text, view.left + (t + 0.5) * view.width, LINE + GAP - 7);
  });
}

/** Returns the units in the order of their weights in Why for the logit that is shown, the largest first. */
function unitOrder() {
  const c = shownLogit(),
    weights = DATA.reading.order[c];
  return Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]);
}

function heatMap(states, units) {
  const image = document.createElement("canvas"),
    T = states.length;
  image.width = T;
  image.height = units.length;
  const context = image.getContext("2d"),
    pixels = context.createImageData(T, units.length);
  const rgb = (name) => colour(name).match(/\d+/g).map(Number);
  const tones = { up: rgb("up-rgb"), down: rgb("down-rgb") };
  const most =
    MODEL.nonlinearity === "tanh"
      ? 1
      : Math.max(1e-9, ...states.map((h) => h.reduce((a, b) => Math.max(a, Math.abs(b)), 0)));
  for (let t = 0; t < T; t++) {
    units.forEach((unit, row) => {
      const value = states[t][unit] / most,
        k = 4 * (row * T + t);
      pixels.data.set(tones[value < 0 ? "down" : "up"], k);
      pixels.data[k + 3] = 255 * Math.min(1, Math.abs(value));
    });
  }
  context.putImageData(pixels, 0, 0);
  return image;
}

// Panels: writing.

const SLICE = 40; // milliseconds of writing between two looks at the page

function showWriting() {
  const panel = DATA.writing,
    temperature = byId("temperature");
  if (!panel.weights) {
    const { stored, tokens } = panel;
    byId("generated").append(...stored.tokens.map((_, t) => writtenToken(stored, t, tokens)));
    listenToWritten(stored, tokens);
    return;
  }
  const model = { rnn: makeRNN(panel.weights, MODEL), vocabulary: panel.vocabulary, tokens: panel.tokens };
  const showTemperature = () => {
    byId("temperature-value").textContent = Number(temperature.value).toFixed(2);
  };
  byId("prompt").value = panel.prompt;
  byId("length").value = panel.length;
  temperature.addEventListener("input", showTemperature);
  showTemperature();
  let timer = null;
  const write = () => {
    const length = Math.min(5000, Math.max(1, Math.floor(Number(byId("length").value)) || 1));
    const steps = writeSteps(model, byId("prompt").value, length, Number(temperature.value), Math.random);
    clearTimeout(timer);
    writeOn(steps, panel.tokens, (again) => (timer = setTimeout(again)));
  };
  byId("generate").addEventListener("click", write);
  window.torch_rnn = {
    ...window.torch_rnn,
    read: (text) => readStream(model, text),
    write: (prompt, length, temperature_, random) => writeText(model, prompt, length, temperature_, random),
  };
  write();
}

/** Writes in slices, so that the page answers in between; `later` calls a function after a while. */
function writeOn(steps, unit, later) {
  const box = byId("generated");
  let written = null;
  box.replaceChildren();
  box.dataset.done = "false";
  const slice = () => {
    const start = performance.now();
    let step;
    do {
      step = steps.next();
      written = step.value ?? written;
    } while (!step.done && performance.now() - start < SLICE);
    for (let t = box.childElementCount; t < written.held.length; t++) box.append(writtenToken(written, t, unit));
    if (!step.done) return later(slice);
    box.dataset.done = "true";
    listenToWritten(written, unit);
  };
  slice();
}

/** Makes the element of a token, orange where the model held it improbable; an unknown one is underlined. */
function writtenToken({ tokens, ids, given, held }, t, unit) {
  const bits = held[t] === null ? 0 : -Math.log2(Math.max(held[t], 1e-9)),
    strength = Math.min(1, Math.max(0, bits - 1) / (unit === "characters" ? 8 : 16));
  return make("span", {
    text: unit === "characters" ? tokens[t] : `${tokens[t]} `,
    class: `${t < given ? "given" : "drawn"}${ids[t] === 0 ? " unknown" : ""}`,
    style: `background: rgb(var(--down-rgb) / ${(0.6 * strength).toFixed(3)})`,
    id: `written-${t}`,
    "data-place": t,
    role: "option",
  });
}

/** Shows what could have come after a token when it is pointed at or reached with the arrow keys. */
function listenToWritten(written, unit) {
  const box = byId("generated"),
    { tokens, ids, given } = written,
    unknown = [...new Set(tokens.filter((_, t) => ids[t] === 0 && t < given))];
  byId("unknown").hidden = unknown.length === 0;
  byId("unknown").textContent =
    `Not in the vocabulary, and read as one unknown ${unit.slice(0, -1)}: ` +
    unknown.map((token) => JSON.stringify(token)).join(", ");
  if (written.path) byId("path").dataset.points = JSON.stringify(written.path);
  let chosen = -1;
  const point = (t) => {
    if (!(t >= 0 && t < tokens.length)) return;
    select(box, box.children[chosen], box.children[t]);
    chosen = t;
    showNext(written, t);
    if (written.path) showWrittenPath(written, t, unit);
  };
  box.onpointerover = ({ target }) => point(Number(target.dataset.place ?? NaN));
  box.onkeydown = (event) => {
    const places = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: tokens.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    point(places[event.key]);
  };
  point(given - 1);
}

/** Shows the five most probable tokens after a place, and which one came. */
function showNext({ tokens, given, next, held }, t) {
  const came = tokens[t + 1];
  const rows = next[t].map(([token, p]) =>
    make("div", {
      class: token === came ? "class came" : "class",
      children: [
        make("b", { text: JSON.stringify(token) }),
        make("span", {
          class: "track",
          children: [make("span", { class: "fill", style: `width: ${100 * p}%` })],
        }),
        make("span", { class: "number", text: percent(p) }),
      ],
    }),
  );
  const verb = t + 1 < given ? "is" : "was drawn:";
  const then = came === undefined ? "" : ` What follows ${verb} ${JSON.stringify(came)}, ${percent(held[t + 1])}.`;
  byId("next").replaceChildren(
    make("p", { text: `After ${JSON.stringify(tokens[t])} the most probable are these.${then}` }),
    make("div", { class: "probability", children: rows }),
  );
}

// The page.

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function redraw() {
  for (const element of PLOTS.keys()) refresh(element.id);
  if (view.reading) {
    showProbability();
    drawStrip();
  }
}

function showNavigation() {
  const names = { "words-table": "Words", space: "State space", about: "The run" };
  document
    .querySelector("nav")
    .append(
      ...[...document.querySelectorAll("section.panel")].map((panel) =>
        make("a", { href: `#${panel.id}`, text: names[panel.id] ?? panel.querySelector("h2").textContent }),
      ),
    );
}

function main() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => {
    setTheme(dark.matches ? "dark" : "light");
    redraw();
  });
  byId("theme").addEventListener("click", () => {
    setTheme(theme() === "dark" ? "light" : "dark");
    redraw();
  });
  showNavigation();
  showSummary(DATA.language ? languageCards() : resultCards());
  if (DATA.reading) showReading();
  if (DATA.writing) showWriting();
  if (DATA.words) showWords();
  if (DATA.states) showSpace();
  if (DATA.memory) showMemory();
  if (DATA.result) showScores();
  if (DATA.language) showLanguage();
  showCurves();
  window.addEventListener("load", () => {
    startPlots();
    document.documentElement.dataset.ready = "true";
  });
}

main();
