"use strict";
// The map of the images: its colours, the image under the pointer, the search, and the same images
// as a list for the keyboard.
const space = JSON.parse(document.getElementById("space-data").textContent);
const hues = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7a5cc0", "#8c564b",
  "#777777", "#2a8a2a", "#b0304f", "#0f90a0"];
const perPage = 24;
let points = null, map = null, range = null;
let found = space.names.map((_, i) => i), page = 0;
const byId = id => document.getElementById(id);

function describe(i) {
  const parts = Object.entries(space.groups).map(([name, group]) =>
    `${name} ${group.names ? group.names[group.of[i]] : group.of[i]}`);
  return [space.names[i], ...parts].join(", ");
}

function place(thumbnail, i) {
  const x = i % space.columns * space.side, y = Math.floor(i / space.columns) * space.side;
  thumbnail.style.backgroundPosition = `-${x}px -${y}px`;
}

function colourBy(name) {
  const group = space.groups[name];
  points.data.color = group.of.map(k => hues[k % hues.length]);
  points.change.emit();
  const present = [...new Set(group.of)].sort((a, b) => a - b).slice(0, 30);
  byId("map-legend").replaceChildren(...present.map(k => {
    const item = document.createElement("li"), dot = document.createElement("span");
    dot.className = "dot";
    dot.style.background = hues[k % hues.length];
    item.append(dot, ` ${group.names ? group.names[k] : k}`);
    return item;
  }));
}

function highlight(indices) {
  if (points) points.selected.indices = indices;
}

function showTip() {
  const tip = byId("tip"), [i] = points.inspected.indices;
  if (i === undefined) { tip.hidden = true; return; }
  place(tip.firstElementChild, i);
  tip.lastElementChild.textContent = describe(i);
  tip.hidden = false;
  const box = map.canvas_view.el.getBoundingClientRect();
  const x = box.left + map.frame.x_scale.compute(points.data.x[i]);
  const y = box.top + map.frame.y_scale.compute(points.data.y[i]);
  const width = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth))}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 14, innerHeight - tip.offsetHeight))}px`;
}

function list() {
  const shown = found.slice(page * perPage, (page + 1) * perPage);
  byId("images").replaceChildren(...shown.map(i => {
    const item = document.createElement("li"), button = document.createElement("button");
    const thumbnail = document.createElement("span");
    thumbnail.className = "small";
    place(thumbnail, i);
    button.append(thumbnail, describe(i));
    button.onfocus = button.onclick = () => highlight([i]);
    item.append(button);
    return item;
  }));
  const last = page * perPage + shown.length;
  byId("range").textContent = shown.length ? `${page * perPage + 1} to ${last} of ${found.length}` : "none";
}

function turn(pages) {
  page = Math.max(0, Math.min(page + pages, Math.ceil(found.length / perPage) - 1));
  list();
}

function search(text) {
  const part = text.toLowerCase();
  found = space.names.flatMap((_, i) => describe(i).toLowerCase().includes(part) ? [i] : []);
  page = 0;
  list();
  byId("found").textContent = text ? `${found.length} found` : "";
  highlight(text ? found : []);
}

function openMap(view) {
  map = view;
  points = view.model.document.get_model_by_name("points");
  range = [view.model.x_range, view.model.y_range].map(r => [r.start, r.end]);
  points.connect(points.inspect, showTip);
  colourBy(byId("by").value);
}

byId("by").onchange = event => colourBy(event.target.value);
byId("search").oninput = event => search(event.target.value);
byId("previous").onclick = () => turn(-1);
byId("next").onclick = () => turn(1);
byId("whole").onclick = () => [map.model.x_range, map.model.y_range].forEach((r, i) =>
  r.setv({ start: range[i][0], end: range[i][1] }));
byId("plot-space").onpointerleave = () => { byId("tip").hidden = true; };
list();
