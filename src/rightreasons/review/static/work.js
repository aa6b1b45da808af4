// Reads on what the work under way writes, once a second, and loads the page anew when it has ended.
"use strict";

const state = document.getElementById("state");
const log = document.getElementById("log");

async function look() {
  try {
    const answer = await fetch(`/work/log?start=${log.dataset.end}`, { credentials: "same-origin" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const progress = await answer.json();
    if (progress.words) {
      log.append(progress.words);
      log.scrollTop = log.scrollHeight;
    }
    const moved = progress.end > Number(log.dataset.end);
    log.dataset.end = progress.end;
    if (progress.state === "running" || moved) {
      setTimeout(look, 1000);
    } else {
      location.reload();
    }
  } catch (error) {
    state.textContent = `The server does not answer (${error.message}). What was decided is on the disk; the work goes on until it ends.`;
    setTimeout(look, 3000);
  }
}

if (state.dataset.state === "running") setTimeout(look, 500);
