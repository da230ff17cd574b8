// Slow points: where a step hardly moves the state, and the eigenvalues of dF/dh there.

/** Shows the slow points, the middle one at first; a run that has none loses their place on the page. */
function showSlowPoints() {
  const n = slowOrder().length;
  if (n === 0) {
    byId("slow").remove();
    byId("space").querySelector(".pair").classList.remove("pair");
    return;
  }
  const slider = byId("slow-point");
  slider.max = n - 1;
  slider.hidden = byId("slow-label").hidden = n === 1;
  slider.addEventListener("input", () => chooseSlowPoint(Number(slider.value)));
  plot("jacobian", () => jacobianPlot(slowOrder()[space.chosen]));
  chooseSlowPoint(Math.floor(n / 2));
}

/** Chooses a slow point by its place from left to right. */
function chooseSlowPoint(k) {
  const order = slowOrder(),
    slider = byId("slow-point");
  space.chosen = slider.value = k;
  slider.setAttribute("aria-valuetext", `slow point ${k + 1} of ${order.length}`);
  describeSlowPoint(order[k], k, order.length);
  refresh("jacobian");
  refresh("path");
}

/** Returns the slow points' trace in the state space. */
function slowTrace() {
  const order = slowOrder(),
    points = order.map((i) => DATA.states.slow.points[i]);
  return {
    x: points.map(([x]) => x),
    y: points.map(([, y]) => y),
    mode: "markers",
    name: "slow points",
    showlegend: false,
    marker: {
      symbol: "diamond",
      size: order.map((_, k) => (k === space.chosen ? 15 : 9)),
      color: colour("card"),
      line: { color: colour("text"), width: order.map((_, k) => (k === space.chosen ? 3 : 1.5)) },
    },
    text: order.map((i, k) => slowLabel(i, k)),
    hovertemplate: "slow point<br>%{text}<extra></extra>",
  };
}

/** Returns the slow points from left to right. */
function slowOrder() {
  const { slow } = DATA.states;
  const along = ([x]) => x;
  return slow ? Array.from(slow.points.keys()).sort((a, b) => along(slow.points[a]) - along(slow.points[b])) : [];
}

function slowLabel(i, k) {
  const { slow } = DATA.states,
    values = slow.eigenvalues[i],
    [re, im] = values[slowest(values)];
  return `${escapeText(slowSays(i) ?? `slow point ${k + 1}`)}<br>${DATA.language ? "largest" : "closest to 1"}: |λ| = ${Math.hypot(re, im).toFixed(4)}`;
}

function jacobianPlot(i) {
  const values = DATA.states.slow.eigenvalues[i],
    marked = slowest(values);
  const trace = (shown, tone, size) => ({
    x: shown.map(([re]) => re),
    y: shown.map(([, im]) => im),
    mode: "markers",
    showlegend: false,
    marker: { color: colour(tone), size },
    text: shown.map(([re, im]) => `|λ| = ${Math.hypot(re, im).toFixed(4)}`),
    hovertemplate: "%{x:.3f} + %{y:.3f} i<br>%{text}<extra></extra>",
  });
  const others = values.filter((_, k) => k !== marked);
  return {
    traces: [trace(others, "up", others.length > 300 ? 4 : 7), trace([values[marked]], "down", 12)],
    layout: complexPlane("eigenvalues of dF/dh at the slow point"),
  };
}

/** Says what comes out at a slow point, how long a change along the marked eigenvalue lasts, and how many others grow. */
function describeSlowPoint(i, k, n) {
  const { slow } = DATA.states,
    values = slow.eigenvalues[i];
  const [re, im] = values[slowest(values)],
    z = Math.hypot(re, im),
    time = steps(Math.abs(Math.log(2) / Math.log(z))),
    outside = values.filter((value) => Math.hypot(...value) > 1).length;
  const fate = Math.abs(z - 1) < 5e-4 ? "is kept" : z > 1 ? `doubles in ${time}` : `halves in ${time}`;
  const says = slowSays(i),
    which = DATA.language ? "largest eigenvalue" : "eigenvalue closest to 1",
    modulus = DATA.language ? `, |λ| = ${z.toFixed(3)}` : "";
  byId("slow-text").textContent =
    `${n > 1 ? `${k + 1} of ${n}, from left to right` : "At the slow point"}${says ? `: ${says}` : ""}. The ${which} is ${complex(re, im)}${modulus}; a change ` +
    `along it ${fate}. ${number(outside)} of ${number(values.length)} eigenvalues are outside the circle.`;
}

/** Says what the model makes of a slow point; null where it depends on another direction, too. */
function slowSays(i) {
  const { logits, next } = DATA.states.slow;
  if (!next && !logits) return null;
  if (!next) return `the model says ${saysAfter(logits[i])}`;
  return `next comes ${next[i].map(([token, p]) => `“${visible(token)}” (${percent(p, 0)})`).join(", ")}`;
}

/** Returns the place of the eigenvalue that is marked; a language model's is the largest. */
const slowest = (values) => (DATA.language ? 0 : closestToOne(values));

const complex = (re, im) =>
  (re < 0 ? "−" : "") + Math.abs(re).toFixed(4) + (Math.abs(im) < 1e-6 ? "" : ` ${im < 0 ? "−" : "+"} ${Math.abs(im).toFixed(4)} i`);

function steps(n) {
  const whole = Math.max(1, Math.round(n));
  return whole === 1 ? "a step" : `${number(whole)} steps`;
}

/** Returns the place of the eigenvalue that is closest to 1 on the complex plane. */
function closestToOne(values) {
  const distances = values.map(([re, im]) => Math.hypot(re - 1, im));
  return distances.indexOf(Math.min(...distances));
}
