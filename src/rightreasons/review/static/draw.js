// Paints and erases pixels on the grid of the heatmap, with a pointer or the arrow keys, and sends them as lengths of runs.
"use strict";

const canvas = document.getElementById("canvas");
const context = canvas.getContext("2d");
const where = document.getElementById("where");
const ring = document.getElementById("brush");
const size = document.getElementById("size");
const { width, height } = canvas;
const TOOLS = ["clear", "paint", "erase"];
const COLOURS = [[0, 0, 0, 0], [230, 120, 0, 170], [30, 110, 220, 170]];
// 0 as its segment, 1 painted, 2 erased.
const marks = new Uint8Array(width * height);
let brush = [Math.floor(width / 2), Math.floor(height / 2)];
let drawing = false;

function fill(text, mark) {
  let place = 0;
  text.split(",").filter(Boolean).forEach((length, number) => {
    if (number % 2) marks.fill(mark, place, place + Number(length));
    place += Number(length);
  });
}

function runs(mark) {
  const lengths = [];
  let marked = false;
  let start = 0;
  for (let place = 0; place <= marks.length; place += 1) {
    if (place === marks.length || (marks[place] === mark) !== marked) {
      lengths.push(place - start);
      start = place;
      marked = !marked;
    }
  }
  return lengths.join(",");
}

function tool() {
  return document.querySelector("input[name=tool]:checked").value;
}

function stamp([x, y]) {
  const radius = Number(size.value) / 2;
  const mark = TOOLS.indexOf(tool());
  for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius + 1); row += 1) {
    for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius + 1); column += 1) {
      if ((column - x) ** 2 + (row - y) ** 2 <= radius ** 2) marks[row * width + column] = mark;
    }
  }
}

function show() {
  const picture = context.createImageData(width, height);
  marks.forEach((mark, place) => picture.data.set(COLOURS[mark], place * 4));
  context.putImageData(picture, 0, 0);
  const reach = Number(size.value) + 1;
  Object.assign(ring.style, {
    left: `${(brush[0] + 0.5 - reach / 2) / width * 100}%`,
    top: `${(brush[1] + 0.5 - reach / 2) / height * 100}%`,
    width: `${reach / width * 100}%`,
    height: `${reach / height * 100}%`,
  });
}

function tell() {
  const painted = marks.reduce((sum, mark) => sum + (mark === 1), 0);
  const erased = marks.reduce((sum, mark) => sum + (mark === 2), 0);
  where.textContent = `column ${brush[0]}, row ${brush[1]}; ${painted} pixels painted, ${erased} erased`;
}

function find(event) {
  const box = canvas.getBoundingClientRect();
  return [Math.floor((event.clientX - box.left) / box.width * width), Math.floor((event.clientY - box.top) / box.height * height)];
}

canvas.addEventListener("pointerdown", (event) => {
  drawing = true;
  canvas.setPointerCapture(event.pointerId);
  brush = find(event);
  stamp(brush);
  show();
});
canvas.addEventListener("pointermove", (event) => {
  if (!drawing) return;
  const [from, to] = [brush, find(event)];
  const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
  for (let step = 1; step <= steps; step += 1) {
    stamp([Math.round(from[0] + (to[0] - from[0]) * step / steps), Math.round(from[1] + (to[1] - from[1]) * step / steps)]);
  }
  brush = to;
  show();
});
canvas.addEventListener("pointerup", () => { drawing = false; tell(); });
canvas.addEventListener("keydown", (event) => {
  const far = event.shiftKey ? 8 : 1;
  const moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
  const chosen = { 1: "paint", 2: "erase", 3: "clear" }[event.key];
  if (moves[event.key]) {
    const [x, y] = moves[event.key];
    brush = [Math.min(width - 1, Math.max(0, brush[0] + x)), Math.min(height - 1, Math.max(0, brush[1] + y))];
  } else if (event.key === " ") {
    stamp(brush);
  } else if (chosen) {
    document.querySelector(`input[name=tool][value=${chosen}]`).checked = true;
  } else {
    return;
  }
  event.preventDefault();
  show();
  tell();
});
size.addEventListener("input", show);
document.getElementById("drawing").addEventListener("submit", (event) => {
  event.target.elements.painted.value = runs(1);
  event.target.elements.erased.value = runs(2);
});

fill(canvas.dataset.painted, 1);
fill(canvas.dataset.erased, 2);
show();
