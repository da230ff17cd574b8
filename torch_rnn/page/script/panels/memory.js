// Memory: gradients by distance, and the eigenvalues of Whh before and after training.

function showMemory() {
  const { gradients, spectra } = DATA.memory,
    two = MODEL.bidirectional ? " that the direction reads" : "",
    end = DATA.language ? "prediction" : `last${two}`;
  const tones = () => ({ before: colour("down"), after: colour("up") });
  if (gradients.after.length > 2) {
    for (const element of byId("memory").querySelectorAll(".plot")) element.classList.add("tall");
  }
  plot("gradients", () => ({
    traces: Object.entries(gradients).flatMap(([when, directions]) =>
      directions.map(({ name, distances, norms }, d) => ({
        x: distances,
        y: norms,
        name: directions.length > 1 ? `${name}, ${when}` : when,
        mode: "lines",
        line: { color: tones()[when], width: 2, dash: ["solid", "dash", "dot", "dashdot"][d % 4] },
        hovertemplate: `%{x} steps before the ${end}: %{y:.3g}<extra></extra>`,
      })),
    ),
    layout: {
      ...above(gradients.after.length),
      xaxis: axis(`steps before the ${end}`),
      yaxis: logAxis(
        "mean |dL/dh[t]|",
        Object.values(gradients)
          .flat()
          .flatMap(({ norms }) => norms),
      ),
    },
  }));
  if (spectra.length) showSpectra(spectra, Object.keys(gradients), tones);
}

/** Shows the eigenvalues of one Whh; of several, that of the top layer at first. */
function showSpectra(spectra, times, tones) {
  let shown = spectra.length - 1;
  const choices = spectra.map(({ name }, i) => {
    const input = make("input", { type: "radio", name: "spectrum", value: i, checked: i === shown ? "" : null });
    input.addEventListener("change", () => {
      shown = i;
      refresh("spectrum");
    });
    return make("label", { children: [input, ` ${name}`] });
  });
  if (choices.length > 1) byId("spectrum-choice").append(...choices);
  plot("spectrum", () => ({
    traces: times.map((when) => ({
      x: spectra[shown][when].map(([re]) => re),
      y: spectra[shown][when].map(([, im]) => im),
      mode: "markers",
      name: when,
      showlegend: true,
      marker: { color: tones()[when], size: 7, opacity: 0.8, symbol: when === "before" ? "circle-open" : "circle" },
      text: spectra[shown][when].map(([re, im]) => `|λ| = ${Math.hypot(re, im).toFixed(4)}`),
      hovertemplate: "%{x:.3f} + %{y:.3f} i<br>%{text}<extra></extra>",
    })),
    layout: complexPlane(""),
  }));
}

/** Returns a layout with room for the legend of n curves before and n after training. */
function above(n) {
  if (n < 2) return {};
  const legend = { orientation: "h", x: 0, y: 1.03, yanchor: "bottom", bgcolor: "transparent" };
  return { legend, margin: { l: 52, r: 12, t: 24 + 22 * n, b: 44 } };
}
