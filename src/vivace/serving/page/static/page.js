// Everything that is shown is set as text, never as HTML: names of classes and files may be anybody's.
import { bars, element, find, onImage, percent, preview, speech } from "./image.js";
import { words } from "./words.js";

const TOPK = 5;
const ROUNDS = 20;
// fields of a prediction that have a place of their own
const KNOWN = ["name", "label", "probability", "topk", "labels", "prediction_set", "abstain", "ood", "ood_score"];

const { say, isChinese, refresh } = speech(words, show);
let token = "";
let bundles = [];
let image = null;
let answers = [];
let turn = 0;

async function ask(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = body ? { method: "POST", body, headers: { ...headers, "Content-Type": "application/octet-stream" } } : { headers };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error(say("offline"));
  }
  if (response.ok && response.headers.get("Content-Type") === "image/png") return response.blob();
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    if (response.status === 401) find("token-form").hidden = false;
    // in the reader's language where the page has words for it
    const own = words.en[answer.code] ? say(answer.code) : answer.error ?? `HTTP ${response.status}`;
    throw Object.assign(new Error(own), { status: response.status });
  }
  return answer;
}

const place = (bundle, more = "") => `predict?bundle=${encodeURIComponent(bundle)}&topk=${TOPK}${more}`;

function problem(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

async function open() {
  try {
    bundles = (await ask("bundles")).bundles;
    find("token-form").hidden = true;
    problem("");
    showDrift();
  } catch (error) {
    problem(error.status === 401 ? (token ? say("wrongToken") : "") : `${say("noBundles")}: ${error.message}`);
  }
}

async function classify(file) {
  const mine = ++turn;
  problem("");
  image = file;
  for (const { heat } of answers) if (heat) URL.revokeObjectURL(heat);
  answers = [];
  show();
  find("status").textContent = say("working");
  // what the browser can't show (HEIC, say) the server may still read
  preview(file);
  try {
    if (!bundles.length) await open();
    // one after the other: side by side they would slow each other down
    const found = [];
    for (const bundle of bundles) {
      const began = performance.now();
      // an image that all are asked about is a comparison: for some of them it may be of another kind than their traffic
      const answer = await ask(place(bundle.name, bundles.length > 1 ? "&live=false" : ""), file);
      found.push({ bundle, prediction: answer.predictions[0], server: answer.milliseconds, all: performance.now() - began });
    }
    if (mine !== turn) return;
    answers = found;
    // with what they have answered by now
    bundles = (await ask("bundles")).bundles;
  } catch (error) {
    if (mine === turn) problem(error.message);
  }
  if (mine !== turn) return;
  find("speed-found").textContent = "";
  show();
}

function card(answer) {
  const { bundle, prediction, server, all } = answer;
  const made = element("article");
  made.append(element("h3", bundle.name));
  made.append(element("p", say("details", bundle.classes.length, bundle.size, bundle.runtime, bundle.precision), "quiet"));
  const multiple = bundle.task === "multi_label";
  const label = multiple ? (prediction.labels.length ? prediction.labels.join(", ") : say("none")) : prediction.label;
  made.append(element("p", label, "label"));
  made.append(bars(prediction.topk), ...reliance(prediction));
  const others = element("dl");
  for (const [name, value] of Object.entries(prediction)) {
    if (KNOWN.includes(name)) continue;
    others.append(element("dt", name.replaceAll("_", " ")), element("dd", shown(value)));
  }
  if (others.children.length) made.append(others);
  made.append(element("p", say("milliseconds", server.toFixed(1), all.toFixed(1)), "quiet"), heatOf(answer));
  return made;
}

// whether to rely on it; a bundle without calibrated thresholds says nothing of that
function reliance({ prediction_set: set, abstain, ood }) {
  const said = [];
  if (ood) said.push(element("p", say("unlike"), "alarm"));
  if (abstain) said.push(element("p", say("unsure"), "alarm"));
  if (set) said.push(element("p", set.length === 1 ? say("setOfOne", set[0]) : say("setOf", set.length, set.join(", ")), "quiet"));
  return said;
}

function heatOf(answer) {
  const { bundle, prediction, heat } = answer;
  if (!bundle.heat_map.offered) return element("p", say(bundle.heat_map.why, bundle.runtime), "quiet");
  if (!heat) {
    const button = element("button", say("heat"));
    button.type = "button";
    button.addEventListener("click", () => makeHeat(answer, button));
    return button;
  }
  const made = element("figure");
  const picture = element("img");
  picture.src = heat;
  picture.alt = say("heatAlt", prediction.label);
  made.append(picture, element("figcaption", say("heatSays", prediction.label), "quiet"));
  return made;
}

async function makeHeat(answer, button) {
  const mine = turn;
  button.disabled = true;
  button.textContent = say("heatMaking");
  try {
    const asks = `bundle=${encodeURIComponent(answer.bundle.name)}&label=${encodeURIComponent(answer.prediction.label)}`;
    const picture = await ask(`heatmap?${asks}`, image);
    if (mine !== turn) return;
    answer.heat = URL.createObjectURL(picture);
  } catch (error) {
    if (mine === turn) problem(error.message);
  }
  if (mine === turn) show();
}

function shown(value) {
  if (typeof value === "boolean") return say(value ? "yes" : "no");
  if (typeof value === "number") return String(Number(value.toPrecision(4)));
  if (Array.isArray(value)) return value.map(shown).join(", ") || "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function show() {
  refresh();
  find("preview").alt = image ? say("preview") : "";
  find("results").hidden = find("again").hidden = !answers.length;
  find("cards").replaceChildren(...answers.map(card));
  const heard = answers.map(({ bundle, prediction }) => say("heard", bundle.name, prediction.label, percent(prediction.probability)));
  if (answers.length > 1) {
    const all = new Set(answers.map(({ prediction }) => prediction.label));
    heard.push(say(all.size === 1 ? "same" : "different"));
  }
  find("status").textContent = heard.join(isChinese() ? "；" : "; ");
  find("speed-row").hidden = answers.length < 2;
  if (answers.length) tell();
  showDrift();
}

function showDrift() {
  find("drift").hidden = !bundles.length;
  const watched = bundles.find(({ drift }) => drift.watched);
  find("drift-rate").textContent = watched ? say("driftRate", Math.round(1 / watched.drift.false_alarm_rate)) : "";
  find("drift-cards").replaceChildren(...bundles.map(driftCard));
}

function driftCard({ name, drift }) {
  const made = element("article");
  made.append(element("h3", name), element("p", driftLine(drift), drift.alarm ? "alarm" : ""));
  const seen = drift.window;
  if (!seen) return made;
  const details = element("details");
  details.open = drift.alarm;
  const table = element("table");
  const head = element("thead");
  head.append(row("th", say("driftClass"), say("driftLive"), say("driftValidation")));
  const body = element("tbody");
  for (const { label, live, validation } of seen.classes) body.append(row("td", label, `${percent(live)} %`, `${percent(validation)} %`));
  body.append(row("td", say("driftConfidence"), `${percent(seen.mean_confidence)} %`, `${percent(seen.validation_mean_confidence)} %`));
  table.append(head, body);
  details.append(element("summary", say("driftWindow", seen.images)), table);
  made.append(details);
  return made;
}

function driftLine(drift) {
  if (!drift.watched) return say("driftUnwatched", drift.reason);
  if (!drift.images) return say("driftNothing");
  if (!drift.alarm) return say("driftNone", drift.images);
  const { what, live, validation } = drift.window.strongest;
  return say("driftAlarm", drift.alarm_at_image, drift.window.images, what, percent(live), percent(validation));
}

function row(kind, first, ...others) {
  const made = element("tr");
  const name = element("th", first);
  name.scope = kind === "th" ? "col" : "row";
  made.append(name, ...others.map((text) => element(kind, text)));
  return made;
}

function tell() {
  const url = new URL(place(bundles[0].name), location.href);
  const name = image.name || "image.png";
  // in single quotes a shell takes all but the quote itself as it is
  const quoted = `'${name.replaceAll("'", "'\\''")}'`;
  const secret = token ? ` -H "Authorization: Bearer $VIVACE_SERVE_TOKEN"` : "";
  find("curl").textContent = `curl${secret} --data-binary @${quoted} '${url}'`;
  const headers = token ? `, headers={"Authorization": f"Bearer {os.environ['VIVACE_SERVE_TOKEN']}"}` : "";
  find("python").textContent = [
    ...(token ? ["import os"] : []),
    "import json, urllib.request",
    "",
    `with open(${JSON.stringify(name)}, "rb") as file:`,
    `    request = urllib.request.Request(${JSON.stringify(String(url))}, file.read()${headers})`,
    "answer = json.load(urllib.request.urlopen(request))",
    'print(answer["predictions"][0]["label"])',
  ].join("\n");
}

async function compare() {
  const [first, second] = answers.map(({ bundle }) => bundle.name);
  const times = { [first]: [], [second]: [] };
  find("speed").disabled = true;
  find("speed-found").textContent = say("comparing");
  try {
    for (let round = 0; round < ROUNDS; round++) {
      for (const name of [first, second]) times[name].push((await ask(place(name, "&live=false"), image)).milliseconds);
    }
    const median = (values) => values.toSorted((a, b) => a - b)[ROUNDS / 2];
    const [one, two] = [median(times[first]), median(times[second])];
    const ratio = Math.max(one, two) / Math.min(one, two);
    const [fast, slow] = one < two ? [first, second] : [second, first];
    const [less, more] = [Math.min(one, two).toFixed(1), Math.max(one, two).toFixed(1)];
    find("speed-found").textContent = ratio < 1.05 ? say("alike", less, more) : say("faster", fast, ratio.toFixed(1), slow, less, more);
  } catch (error) {
    find("speed-found").textContent = "";
    problem(error.message);
  }
  find("speed").disabled = false;
}

find("speed").addEventListener("click", compare);
find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("token").value.trim();
  find("token").value = "";
  open();
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = find(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = say("copied");
      setTimeout(() => (button.textContent = say("copy")), 2000);
    } catch {
      // beyond this machine a page without TLS may not: it is selected instead
      getSelection().selectAllChildren(text);
    }
  });
}
onImage(classify, () => problem(say("not_an_image")));
show();
open();
