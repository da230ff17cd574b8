// What the panels share: the data of the page, its elements, numbers as text, colours.

const DATA = JSON.parse(document.getElementById("data").textContent);
const MODEL = DATA.model;
const TWO = MODEL.classes.length === 2;
const byId = (id) => document.getElementById(id);

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

const SLICE = 40; // milliseconds of work between two looks at the page

const number = (value) => value.toLocaleString("en");
const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)}\u00a0%`;
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const digits = (value, n) => (value === null ? "not finite" : value.toPrecision(n));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const CLASS_COLOURS = {
  light: ["#0072B2", "#D55E00", "#789669", "#782D3C", "#2D96FF", "#443862", "#7E7376", "#A50000"],
  dark: ["#56B4E9", "#F08A3C", "#CAF2B9", "#794AFF", "#ACADAA", "#4E8063", "#C13604", "#726681"],
};
const classColour = (i) => CLASS_COLOURS[theme()][i % 8];
const theme = () => document.documentElement.dataset.theme;

function saysAfter(logits) {
  const p = probabilitiesOf(logits),
    best = mostProbable(p);
  return TWO ? `${percent(p[1])} ${MODEL.classes[1]}` : `${MODEL.classes[best]} ${percent(p[best])}`;
}

/** Makes spaces and ends of lines visible. */
const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");

/** Escapes what Plotly would take for its few tags. */
function escapeText(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Chooses another option of a list, for the eye and for a screen reader. */
function select(list, before, option) {
  before?.classList.remove("chosen");
  before?.removeAttribute("aria-selected");
  option.classList.add("chosen");
  option.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", option.id);
}
