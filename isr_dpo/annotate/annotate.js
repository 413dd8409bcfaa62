"use strict";
// Everything a model or a data set wrote reaches the page through textContent.
const FRAME_MILLISECONDS = 400;
const KEYS = {1: "first", 2: "second", 0: "tie", u: "unclear", U: "unclear"};
const token = document.querySelector("meta[name=token]").content;
const at = id => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-verdict]")];
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let labelled = [];      // a verdict or null for each row
let place = 0;          // the row shown; labelled.length: the end
let shown = null;       // that row, once it is loaded
let busy = false;       // a choice is on its way
let frame = 0;
let playing = !calm.matches;
let seconds = 0;        // for which the row was in sight
let since = 0;
const loads = new Map();  // row -> promise of the row with its frames' URLs

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, {...options, headers: {"X-Annotate-Token": token, ...options.headers}});
  } catch {
    throw new Error("The server does not answer. Start it again with the same command, then choose again.");
  }
  if (answer.status === 403) {
    throw new Error("The server was started again since this page was loaded: load the page again. Nothing is lost.");
  }
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

function load(number) {
  if (!loads.has(number)) {
    const loading = fetchRow(number);
    loading.catch(() => loads.delete(number));
    loads.set(number, loading);
  }
  return loads.get(number);
}

async function fetchRow(number) {
  const row = await (await ask(`rows/${number}`)).json();
  const images = Array.from({length: row.frames}, (_, i) => ask(`rows/${number}/frames/${i}`).then(a => a.blob()));
  return {...row, urls: (await Promise.all(images)).map(blob => URL.createObjectURL(blob))};
}

function forget() {
  for (const [number, loading] of loads) {
    if (Math.abs(number - place) > 2) {
      loads.delete(number);
      loading.then(row => row.urls.forEach(url => URL.revokeObjectURL(url)), () => {});
    }
  }
}

async function show(number) {
  place = number;
  shown = null;
  count();
  const over = place >= labelled.length;
  at("row").hidden = at("bar").hidden = over;
  at("done").hidden = !over;
  if (over) {
    at("done-title").focus();
    return;
  }
  try {
    const row = await load(number);
    if (number !== place) return;
    draw(row);
    problem("");
  } catch (error) {
    problem(error.message);
    return;
  }
  if (place + 1 < labelled.length) load(place + 1).catch(() => {});
  forget();
}

function draw(row) {
  shown = row;
  seconds = 0;
  since = performance.now();
  at("place").textContent = `Row ${place + 1}`;
  at("row-id").textContent = row.id;
  at("question").textContent = row.question;
  ["first", "second"].forEach((name, i) => {
    at(`answer-${name}`).querySelector("p").textContent = row.answers[i];
  });
  at("strip").replaceChildren(...row.urls.map(thumbnail));
  at("no-frames").hidden = row.urls.length > 0;
  at("view").hidden = row.urls.length === 0;
  mark();
  step(0);
  scrollTo(0, 0);
  at("question").focus({preventScroll: true});
}

function thumbnail(url, i) {
  const button = document.createElement("button"), image = document.createElement("img");
  button.type = "button";
  button.setAttribute("aria-label", `Frame ${i + 1}`);
  image.alt = "";
  image.src = url;
  button.append(image);
  button.addEventListener("click", () => { play(false); step(i); });
  return button;
}

function step(i) {
  if (!shown || !shown.urls.length) return;
  frame = i % shown.urls.length;
  at("view").src = shown.urls[frame];
  at("frame-count").textContent = `frame ${frame + 1} of ${shown.urls.length}`;
  [...at("strip").children].forEach((thumb, n) => thumb.setAttribute("aria-current", String(n === frame)));
}

function play(on) {
  playing = on;
  at("play").textContent = on ? "Pause" : "Play";
}

function mark() {
  const verdict = labelled[place];
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
  for (const name of ["first", "second"]) at(`answer-${name}`).classList.toggle("chosen", name === verdict);
  at("back").disabled = place === 0;
}

function count() {
  const done = labelled.filter(Boolean).length;
  at("count").textContent = `${done} of ${labelled.length} labelled`;
  at("progress").max = labelled.length;
  at("progress").value = done;
}

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

function inSight() {
  if (since) seconds += (performance.now() - since) / 1000;
  since = document.hidden ? 0 : performance.now();
}

async function choose(verdict) {
  if (busy || !shown) return;
  busy = true;
  inSight();
  try {
    const body = JSON.stringify({id: shown.id, verdict, seconds: Math.min(seconds, 86400)});
    const answer = await ask("choices", {method: "POST", body, headers: {"Content-Type": "application/json"}});
    labelled = (await answer.json()).labelled;
  } catch (error) {
    problem(error.message);
    return;
  } finally {
    busy = false;
  }
  at("said").textContent = `${verdict} kept`;
  const next = labelled.findIndex((said, i) => i > place && !said);
  const open = next >= 0 ? next : labelled.findIndex(said => !said);
  show(open >= 0 ? open : labelled.length);
}

function move(by) {
  const number = place + by;
  if (!busy && number >= 0 && number < labelled.length) show(number);
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key in KEYS) choose(KEYS[event.key]);
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === " " && !event.target.closest("button, summary")) play(!playing);
  else return;
  event.preventDefault();
});
document.addEventListener("visibilitychange", inSight);
for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.verdict));
at("back").addEventListener("click", () => move(-1));
at("on").addEventListener("click", () => move(1));
at("again").addEventListener("click", () => move(-1));
at("play").addEventListener("click", () => play(!playing));
at("view").addEventListener("load", () => {
  const {naturalWidth: width, naturalHeight: height} = at("view");
  at("row").classList.toggle("tiny", width <= 96);
  at("row").style.setProperty("--ratio", `${width} / ${height}`);
});
setInterval(() => { if (playing && !document.hidden) step(frame + 1); }, FRAME_MILLISECONDS);

play(playing);
ask("state").then(answer => answer.json()).then(state => {
  labelled = state.labelled;
  at("who").textContent = `round ${state.round}, as ${state.annotator}`;
  const open = labelled.findIndex(said => !said);
  return show(open >= 0 ? open : labelled.length);
}).catch(error => problem(error.message));
