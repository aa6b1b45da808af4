// Keys, the heatmap's slider, and outlines that light up with their segment. Without this file the forms and links do the same.
"use strict";

const segments = [...document.querySelectorAll(".segment")];
const outlines = [...document.querySelectorAll(".outline")];
const heat = document.getElementById("heat");
const opacity = document.getElementById("opacity");
const keys = document.getElementById("keys");

function remember(name, value) {
  try { localStorage.setItem(name, value); } catch (error) { console.info("this browser keeps nothing", error); }
}

function recall(name) {
  try { return localStorage.getItem(name); } catch (error) { return null; }
}

// The outline of the chosen segment stays lit.
function light(number, on) {
  for (const part of [...segments, ...outlines]) {
    if (part.dataset.segment === number) part.classList.toggle("lit", on || part.closest(".segments") === null && isChosen(number));
  }
}

function isChosen(number) {
  return segments.some((segment) => segment.dataset.segment === number && segment.hasAttribute("aria-current"));
}

function chosenSegment() {
  return segments.find((segment) => segment.hasAttribute("aria-current"));
}

function choose(segment, focus) {
  for (const other of segments) {
    other.toggleAttribute("aria-current", false);
  }
  segment.setAttribute("aria-current", "true");
  for (const other of segments) light(other.dataset.segment, false);
  if (focus) {
    segment.querySelector("h3").focus({ preventScroll: true });
    segment.scrollIntoView({ block: "nearest" });
  }
}

function showHeat(value) {
  opacity.value = value;
  heat.style.opacity = value / 100;
  remember("heat", value);
}

function step(by) {
  const place = segments.indexOf(chosenSegment());
  const next = segments[Math.min(segments.length - 1, Math.max(0, place + by))];
  if (next) choose(next, true);
}

function press(event) {
  const typing = event.target.closest("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select");
  if (event.ctrlKey || event.metaKey || event.altKey || typing || event.target.closest("canvas") || (keys && !keys.checked)) return;
  if (event.key === "j" || event.key === "k") {
    step(event.key === "j" ? 1 : -1);
  } else if (event.key === "h" && heat) {
    showHeat(Number(opacity.value) > 0 ? 0 : 80);
  } else {
    if (event.key === "Enter" || event.key === " ") return;
    const chosen = chosenSegment();
    const wanted = `[data-key="${CSS.escape(event.key)}"]`;
    const target = (chosen && chosen.querySelector(wanted)) || [...document.querySelectorAll(wanted)].find((found) => !found.closest(".segment"));
    if (!target) return;
    target.click();
  }
  event.preventDefault();
}

for (const part of [...segments, ...outlines]) {
  part.addEventListener("pointerenter", () => light(part.dataset.segment, true));
  part.addEventListener("pointerleave", () => light(part.dataset.segment, false));
}
for (const segment of segments) {
  segment.addEventListener("focusin", () => choose(segment, false));
}
for (const outline of outlines) {
  outline.addEventListener("click", () => choose(segments.find((segment) => segment.dataset.segment === outline.dataset.segment), true));
}
if (heat) {
  opacity.addEventListener("input", () => showHeat(opacity.value));
  showHeat(recall("heat") ?? 0);
}
if (keys) {
  keys.checked = recall("keys") !== "off";
  keys.addEventListener("change", () => remember("keys", keys.checked ? "on" : "off"));
}
document.addEventListener("keydown", press);

// A screen reader tells what a status says only when it changes after the page is there.
const said = document.getElementById("said");
if (said.textContent) {
  const words = said.textContent;
  said.textContent = "";
  setTimeout(() => { said.textContent = words; }, 60);
}
if (segments.length && chosenSegment()) choose(chosenSegment(), true);
