// The page: its theme, its navigation, its panels.

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function redraw() {
  for (const element of PLOTS.keys()) refresh(element.id);
  if (view.reading) {
    showProbability();
    drawStrip();
  }
}

function showNavigation() {
  const names = { "words-table": "Words", space: "State space", about: "The run" };
  document
    .querySelector("nav")
    .append(
      ...[...document.querySelectorAll("section.panel")].map((panel) =>
        make("a", { href: `#${panel.id}`, text: names[panel.id] ?? panel.querySelector("h2").textContent }),
      ),
    );
}

function showSummary(cards) {
  byId("summary").append(
    ...cards.map(([value, label]) =>
      make("div", { children: [make("strong", { text: value }), make("span", { text: label })] }),
    ),
  );
}

function main() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => {
    setTheme(dark.matches ? "dark" : "light");
    redraw();
  });
  byId("theme").addEventListener("click", () => {
    setTheme(theme() === "dark" ? "light" : "dark");
    redraw();
  });
  showNavigation();
  showSummary(DATA.language ? languageCards() : resultCards());
  if (DATA.reading) showReading();
  if (DATA.writing) showWriting();
  if (DATA.words) showWords();
  if (DATA.states) showSpace();
  if (DATA.memory) showMemory();
  if (DATA.result) showScores();
  if (DATA.language) showLanguage();
  showCurves();
  window.addEventListener("load", () => {
    startPlots();
    document.documentElement.dataset.ready = "true";
  });
}

main();
