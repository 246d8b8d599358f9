"use strict";
// Draws the plots and gives their axes the colours of the page, which follow the system's theme.
const items = JSON.parse(document.getElementById("plots").textContent);
const figures = [];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function paint(figure) {
  const ink = colour("--ink"), line = colour("--line");
  for (const axis of [...figure.below, ...figure.left]) {
    axis.setv({
      major_label_text_color: ink, axis_label_text_color: ink, axis_line_color: line,
      major_tick_line_color: line, minor_tick_line_color: null,
    });
  }
  for (const grid of figure.center) grid.setv({ grid_line_color: line });
  figure.setv({ outline_line_color: line });
}

async function draw() {
  for (const [id, item] of Object.entries(items)) {
    const views = await Bokeh.embed.embed_item(item, id);
    const figure = [...views][0].model;
    figures.push(figure);
    paint(figure);
    if (id === "plot-space") openMap([...views][0]);
  }
  window.drawn = figures.length;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => figures.forEach(paint));
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
draw();
