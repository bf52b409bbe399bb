// Everything that is shown is set as text, never as HTML: names of classes and files may be anybody's.
import { compareGoldens } from "./goldens.js";
import { ImageProblem } from "./headers.js";
import { bars, element, find, onImage, percent, preview, speech } from "./image.js";
import { openNetwork } from "./network.js";
import { loadPixels } from "./pixels.js";
import { ranked, reliance } from "./reliance.js";
import { words } from "./words.js";

const TOPK = 5;

const { say, isChinese, refresh } = speech(words, show);
let told = null;
let network = null;
let opening = null;
let image = null;
let answer = null;
let compared = null;
let failed = null;
let keeps = false;
let turn = 0;

// lets the browser draw what was said before the network takes all of the processor
const drawn = () => new Promise((done) => setTimeout(done, 30));

function problem(error) {
  failed = error;
  find("problem").textContent = error === null ? "" : shownError(error);
  find("problem").hidden = error === null;
}

function shownError(error) {
  return error instanceof ImageProblem ? say(error.key, ...error.values) : say("failed", String(error.message ?? error));
}

async function open() {
  const response = await fetch("web.json");
  if (!response.ok) throw new Error(`web.json: HTTP ${response.status}`);
  told = await response.json();
  network = await openNetwork(told, (part) => (find("progress").value = part));
  find("loading").hidden = true;
  find("compare").disabled = false;
  show();
  keep();
}

// for later, without a network; only over TLS and on this machine do browsers allow it
async function keep() {
  if (!("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
    keeps = true;
    show();
  } catch (error) {
    console.info(`not kept for use without a network: ${error.message}`);
  }
}

async function classify(file) {
  const mine = ++turn;
  problem(null);
  image = file;
  answer = null;
  show();
  find("status").textContent = say(network === null ? "waiting" : "working");
  preview(file);
  try {
    await opening;
    find("status").textContent = say("working");
    await drawn();
    const began = performance.now();
    const { pixels, width, height } = await loadPixels(file, told.preprocess);
    const read = performance.now();
    const probs = await network.probs(pixels);
    const ended = performance.now();
    if (mine !== turn) return;
    answer = { probs, width, height, reading: read - began, computing: ended - read };
  } catch (error) {
    if (mine === turn) problem(error);
  }
  if (mine === turn) show();
}

const labelOf = (place) => told.classes[place];

// the labels that reach their thresholds; of one class an image, the likeliest
function labels(probs) {
  if (told.task !== "multi_label") return [labelOf(ranked(probs)[0])];
  return ranked(probs)
    .filter((place) => probs[place] >= told.thresholds[place])
    .map(labelOf);
}

function card() {
  const { probs, width, height, reading, computing } = answer;
  const made = element("article");
  made.append(element("p", labels(probs).join(", ") || say("none"), "label"));
  const notes = element("ul", "", "notes");
  for (const note of notesOf(probs)) notes.append(element("li", note));
  if (notes.children.length) made.append(notes);
  made.append(bars(ranked(probs).slice(0, TOPK).map((place) => ({ label: labelOf(place), probability: probs[place] }))));
  if (told.calibrated) made.append(element("p", say("calibrated"), "quiet"));
  made.append(element("p", say("details", told.model, told.classes.length, told.preprocess.size, told.precision), "quiet"));
  made.append(element("p", say("milliseconds", computing.toFixed(1), reading.toFixed(1), width, height), "quiet"));
  return made;
}

// what is to be known before an answer is relied on
function notesOf(probs) {
  if (!told.uncertainty) return [];
  const { inside, abstain, ood } = reliance(probs, told.uncertainty);
  const { coverage, risk } = told.uncertainty;
  const found = [];
  if (ood) found.push(say("ood"));
  if (abstain) found.push(say("abstain", (100 * risk).toFixed(0)));
  const names = inside.map(labelOf).join(isChinese() ? "、" : ", ");
  found.push(inside.length === 1 ? say("setOfOne", (100 * coverage).toFixed(0), names) : say("set", (100 * coverage).toFixed(0), inside.length, names));
  return found;
}

async function compare() {
  find("compare").disabled = true;
  problem(null);
  try {
    compared = await compareGoldens(told, network, (part) => (find("found").textContent = say("checking", (100 * part).toFixed(0))));
  } catch (error) {
    problem(error);
    find("found").textContent = "";
  }
  find("compare").disabled = false;
  show();
}

function showCompared() {
  const { rows, labels: alike, holds, pixelsMax, pixelsMean, same, whole } = compared;
  const { pixels, pixels_mean: mean, probabilities } = told.tolerance;
  find("found").textContent = [
    say(holds ? "agrees" : "differs", rows.length),
    say("pixelsApart", pixelsMax, pixels, pixelsMean.toFixed(3), mean),
    say("probsApart", same.toExponential(1), probabilities, whole.toExponential(1), alike, rows.length),
  ].join(isChinese() ? "" : " ");
  const table = element("table");
  const head = element("tr");
  for (const key of ["image", "most", "mean", "onSame", "inAll", "holds"]) {
    const title = element("th", say(key));
    title.scope = "col";
    head.append(title);
  }
  table.append(head);
  for (const row of rows) {
    const line = element("tr");
    line.append(element("td", row.name, "name"));
    const values = [row.pixelsMax, row.pixelsMean.toFixed(3), row.same.toExponential(1), row.whole.toExponential(1)];
    for (const value of values) line.append(element("td", String(value)));
    line.append(element("td", say(row.holds ? "yes" : "no")));
    table.append(line);
  }
  find("goldens").replaceChildren(table);
  find("goldens").hidden = false;
}

function show() {
  refresh();
  find("preview").alt = image ? say("preview") : "";
  find("results").hidden = answer === null;
  find("cards").replaceChildren(...(answer === null ? [] : [card()]));
  find("offline").textContent = keeps ? say("kept") : "";
  // for screen readers: the eye has the card
  find("status").classList.toggle("visually-hidden", answer !== null);
  find("status").textContent = answer === null ? "" : heard();
  if (failed !== null) problem(failed);
  if (compared !== null) showCompared();
}

function heard() {
  const { probs } = answer;
  const first = ranked(probs)[0];
  const said = say("heard", labels(probs).join(", ") || say("none"), percent(probs[first]));
  return [said, ...notesOf(probs)].join(isChinese() ? "。" : ". ");
}

find("unstarted").remove();
find("compare").addEventListener("click", compare);
onImage(classify, () => problem(new ImageProblem("notImage")));
show();
opening = open();
opening.catch((error) => {
  find("loading").hidden = true;
  problem(new ImageProblem("notOpened", String(error.message ?? error)));
});
