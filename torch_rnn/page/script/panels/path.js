// The path of a text through the state space.

function pathTraces() {
  const { x, y, labels, marks } = space.path,
    end = x.length - 1;
  const line = {
    x,
    y,
    text: marks,
    textposition: "top center",
    textfont: { size: 14, color: colour("text"), shadow: `0 0 3px ${colour("card")}, 0 0 2px ${colour("card")}` },
    hovertext: labels,
    mode: marks ? "lines+markers+text" : "lines+markers",
    name: "your text",
    showlegend: false,
    line: { color: colour("text"), width: marks ? 1 : 1.8 },
    marker: { size: x.length > 80 ? 2.5 : 5, color: colour("text") },
    hovertemplate: "%{hovertext}<extra></extra>",
  };
  const star = {
    x: x.slice(end),
    y: y.slice(end),
    mode: "markers",
    hoverinfo: "skip",
    showlegend: false,
    marker: { symbol: "star", size: 17, color: colour("text"), line: { color: colour("card"), width: 1.5 } },
  };
  return [line, star];
}

/** Draws the path of a reading; the plot follows when typing pauses. */
function showPath(reading) {
  const steps = (reading.path ?? reading.states).map(project);
  const labels = reading.tokens.map(
    (token, t) => `${escapeText(token)}<br>${escapeText(saysAfter(reading.running[t]))}`,
  );
  const start = project(new Float64Array(DATA.states.mean.length));
  const all = [start, ...steps];
  space.path = { x: all.map(([x]) => x), y: all.map(([, y]) => y), labels: ["the start", ...labels] };
  byId("path").dataset.points = JSON.stringify(all);
  refreshPath(160);
}

function refreshPath(milliseconds) {
  clearTimeout(space.timer);
  space.timer = setTimeout(() => refresh("path"), milliseconds);
}

const TAIL = { characters: 16, words: 10 };

/** Draws the path of a written text: its last tokens up to a place, each beside its state. */
function showWrittenPath({ tokens, path, next }, place, unit) {
  const from = Math.max(0, place + 1 - TAIL[unit]),
    shown = path.slice(from, place + 1),
    read = tokens.slice(from, place + 1).map(visible);
  const labels = read.map((token, i) => {
    const following = next[from + i].slice(0, 3).map(([text, p]) => `${visible(text)} ${percent(p, 0)}`);
    return `after ${escapeText(token)}<br>next: ${escapeText(following.join(", "))}`;
  });
  space.path = { x: shown.map(([x]) => x), y: shown.map(([, y]) => y), labels, marks: read.map(escapeText) };
  refreshPath(40);
}
