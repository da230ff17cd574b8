// Writing: an RNN that predicts the next token continues a text.

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
 * has none) and path (`inPlane` of the states; null without it).
 */
function* writeSteps({ rnn, vocabulary, tokens: unit, inPlane }, prompt, length, temperature, random) {
  const tokens = promptTokens(unit, prompt),
    ids = tokens.map(encoder(vocabulary)),
    push = makeStream(rnn),
    given = tokens.length;
  const written = { tokens, ids, given, next: [], held: [null], path: inPlane ? [] : null };
  for (let t = 0; t < given + length; t++) {
    const { states, logits } = push(ids[t]),
      p = probabilitiesOf(logits);
    written.path?.push(inPlane(states));
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
