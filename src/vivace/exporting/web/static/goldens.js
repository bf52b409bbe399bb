// Compares this browser with vivace on the golden images: the pixels that the network sees, and its probabilities.
import { loadPixels } from "./pixels.js";
import { ranked } from "./reliance.js";

async function bytes(name) {
  const response = await fetch(`golden/${encodeURIComponent(name)}`);
  if (!response.ok) throw new Error(`golden/${name}: HTTP ${response.status}`);
  return response.arrayBuffer();
}

const apart = (one, other) => one.reduce((most, value, index) => Math.max(most, Math.abs(value - other[index])), 0);

// One golden: {name, pixelsMax, pixelsMean: of 255; same: of the network, for the pixels of vivace; whole: of all that is
// done here; label: whether the first class is the same; holds: whether it is within the tolerance}
async function compareOne(golden, told, network) {
  const { tolerance } = told;
  const expected = new Uint8Array(await bytes(golden.pixels));
  const found = (await loadPixels(new Blob([await bytes(golden.file)]), told.preprocess)).pixels;
  const sum = found.reduce((total, value, index) => total + Math.abs(value - expected[index]), 0);
  const [same, whole] = [await network.probs(expected), await network.probs(found)];
  const one = {
    name: golden.file,
    pixelsMax: apart(found, expected),
    pixelsMean: sum / expected.length,
    same: apart(Array.from(same), golden.deployed),
    whole: apart(Array.from(whole), golden.deployed),
    label: ranked(whole)[0] === ranked(golden.deployed)[0],
  };
  const exact = one.pixelsMax <= tolerance.pixels && one.pixelsMean <= tolerance.pixels_mean;
  return { ...one, holds: exact && one.same <= tolerance.probabilities };
}

// All of them, with the largest of each difference. tell(part): 0 to 1.
export async function compareGoldens(told, network, tell = () => {}) {
  const { images } = JSON.parse(new TextDecoder().decode(await bytes("golden.json")));
  const rows = [];
  for (const golden of images) {
    rows.push(await compareOne(golden, told, network));
    tell(rows.length / images.length);
    // lets the page be drawn and used meanwhile
    await new Promise((done) => setTimeout(done));
  }
  const most = (key) => rows.reduce((found, row) => Math.max(found, row[key]), 0);
  const summary = Object.fromEntries(["pixelsMax", "pixelsMean", "same", "whole"].map((key) => [key, most(key)]));
  return { ...summary, rows, labels: rows.filter((row) => row.label).length, holds: rows.length > 0 && rows.every((row) => row.holds) };
}
