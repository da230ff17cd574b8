// Writing: a prompt, how it goes on, and what could have come.

function showWriting() {
  const panel = DATA.writing,
    temperature = byId("temperature");
  if (!panel.weights) {
    const { stored, tokens } = panel;
    byId("generated").append(...stored.tokens.map((_, t) => writtenToken(stored, t, tokens)));
    listenToWritten(stored, tokens);
    return;
  }
  const model = {
    rnn: makeRNN(panel.weights, MODEL),
    vocabulary: panel.vocabulary,
    tokens: panel.tokens,
    inPlane: DATA.states ? project : null,
  };
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
