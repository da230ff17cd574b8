// Reading: a text, its words in the colour of what they add, and what the model says.

const view = { reading: null, readIds: null, without: false, shown: null, chosen: -1, left: 38, width: 0 };

/** The logit whose parts are shown: the only one, with two classes the second, else that of the chosen class. */
function shownLogit() {
  if (view.reading.logits.length === 1) return 0;
  return TWO ? 1 : (view.shown ?? mostProbable(view.reading.probabilities));
}

function showReading() {
  const { vocabulary, maxlen, weights, texts } = DATA.reading;
  const field = byId("text");
  let read = null;
  if (weights) {
    const rnn = makeRNN(weights, MODEL),
      encode = encoder(vocabulary);
    read = (text) => readText(rnn, encode, maxlen, text);
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
  const parts = document.createDocumentFragment();
  if (skipped.length) {
    const text = `${number(skipped.length)} words before are not read: … ${skipped.slice(-12).join(" ")}`;
    parts.append(make("span", { class: "skipped", text }), " ");
  }
  tokens.forEach((token, t) => {
    const word = document.createElement("span");
    word.className = ids[t] === 0 ? "word unknown" : "word";
    word.id = `word-${t}`;
    word.setAttribute("role", "option");
    word.dataset.contribution = contributions[t][c];
    word.dataset.place = t;
    word.textContent = token;
    parts.append(word, " ");
  });
  byId("words").replaceChildren(parts);
  clearTimeout(view.timer);
  if (view.without) colourByWithout();
  else colourWords(contributions.map((part) => part[c]));
}

/** Colours the first words by their values; only later ones have none yet. */
function colourWords(values) {
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  const scale = Math.max(0.3, sizes[Math.floor(0.97 * sizes.length)] ?? 0);
  values.forEach((value, place) => {
    const strength = Math.min(1, Math.abs(value) / scale);
    byId(`word-${place}`).style.background =
      `rgb(var(--${value < 0 ? "down" : "up"}-rgb) / ${(0.62 * strength).toFixed(3)})`;
  });
  byId("words").dataset.coloured = values.length;
}

/** Colours each word by what changes without it, in slices, so that the page answers in between. */
function colourByWithout() {
  const { ids, logits } = view.reading,
    c = shownLogit(),
    values = [];
  const slice = () => {
    const start = performance.now();
    while (values.length < ids.length && performance.now() - start < SLICE) {
      values.push(logits[c] - view.readIds(without(ids, values.length)).logits[c]);
    }
    colourWords(values);
    if (values.length < ids.length) view.timer = setTimeout(slice);
  };
  slice();
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
