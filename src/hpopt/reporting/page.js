const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  for (const box of document.querySelectorAll("[data-figure]")) {
    let text = document.getElementById(box.dataset.figure).textContent;
    if (dark.matches) for (const [light, darkColor] of Object.entries(DARK_COLORS)) text = text.replaceAll(light, darkColor);
    const figure = JSON.parse(text);
    Plotly.react(box, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false});
  }
}
dark.addEventListener("change", draw);
draw();
