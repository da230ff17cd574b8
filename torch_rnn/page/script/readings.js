// Readings: the states of a text, its logits, and how far each word moves them.

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
