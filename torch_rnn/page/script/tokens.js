// From a text to tokens, and to their ids.

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
