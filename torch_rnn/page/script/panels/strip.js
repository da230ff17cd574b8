// The strip below a reading: the probability as a line, and h[t] as a heat map with one column for each word.

const LINE = 96,
  GAP = 22,
  WIDEST = 8192; // columns of the heat map; a browser draws no canvas of more than 65,535

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

/** Draws the states, of a long text those of every second word, every third and so on. */
function heatMap(states, units) {
  const image = document.createElement("canvas"),
    every = Math.ceil(states.length / WIDEST),
    T = Math.ceil(states.length / every);
  image.width = T;
  image.height = units.length;
  const context = image.getContext("2d"),
    pixels = context.createImageData(T, units.length);
  const rgb = (name) => colour(name).match(/\d+/g).map(Number);
  const tones = { up: rgb("up-rgb"), down: rgb("down-rgb") };
  const most =
    MODEL.nonlinearity === "tanh"
      ? 1
      : states.reduce((most, h) => h.reduce((a, b) => Math.max(a, Math.abs(b)), most), 1e-9);
  for (let t = 0; t < T; t++) {
    units.forEach((unit, row) => {
      const value = states[t * every][unit] / most,
        k = 4 * (row * T + t);
      pixels.data.set(tones[value < 0 ? "down" : "up"], k);
      pixels.data[k + 3] = 255 * Math.min(1, Math.abs(value));
    });
  }
  context.putImageData(pixels, 0, 0);
  return image;
}
