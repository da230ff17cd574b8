// The RNN: h[t] = tanh(Wxh x[t] + Whh h[t-1] + bh), y = Why h + by.

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

const mostProbable = (p) => p.indexOf(Math.max(...p));
