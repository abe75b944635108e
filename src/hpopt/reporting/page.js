const dark = window.matchMedia("(prefers-color-scheme: dark)");
function draw() {
  for (const box of document.querySelectorAll("[data-figure]")) {
    let text = document.getElementById(box.dataset.figure).textContent;
    if (dark.matches) for (const [light, twin] of Object.entries(TWINS)) text = text.replaceAll(light, twin);
    const figure = JSON.parse(text);
    Plotly.react(box, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false});
  }
}
dark.addEventListener("change", draw);
draw();
