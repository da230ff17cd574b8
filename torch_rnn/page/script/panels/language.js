// The result of a language model, beside models that read no text before.

function languageCards() {
  const { rows, measure, tokens, V } = DATA.language;
  return [
    ...rows.map(({ name, score }) => [scoreText(score), `${name}, ${measure}`]),
    [digits(rows[0].loss, 4), `${rows[0].name} loss, nats`],
    [number(rows[0].n), `${rows[0].name} ${tokens}`],
    [number(V), `V, ${tokens} in the vocabulary`],
    [number(DATA.about.parameters), "parameters"],
  ];
}

/** Returns bits per character with three digits after the point, a perplexity with four in all. */
function scoreText(value) {
  if (value !== null && DATA.language.tokens === "characters") return value.toFixed(3);
  return value === null || value < 1000 ? digits(value, 4) : number(Math.round(value));
}

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
        ...[scoreText(score), loss === null ? digits(loss) : loss.toFixed(4)].map((text) => make("td", { text, class: "count" })),
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
