// The words that push most.

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
