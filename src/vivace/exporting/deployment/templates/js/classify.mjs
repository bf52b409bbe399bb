// Classify images with onnxruntime-node: raw pixels in, probabilities out; normalisation and softmax are in the graph.
//
//   node classify.mjs IMAGE...    the likeliest classes of each image
//   node classify.mjs --golden    compare with ../golden/golden.json; exit status 1 if an answer is apart
//
// IMAGE: a PNG of 8 bits without transparency, or raw uint8 [size, size, channels] (.u8), of the network's size. Resize as
// training did: pixels.py does.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";

import * as ort from "onnxruntime-node";
import { PNG } from "pngjs";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "..");
const TOP = 5;

const manifest = JSON.parse(readFileSync(join(FOLDER, "model.json"), "utf8"));
const { size, channels } = manifest.preprocess;

function pixelsOf(path) {
  const data = readFileSync(path);
  const pixels = extname(path) === ".png" ? fromPng(data, path) : new Uint8Array(data);
  const needed = size * size * channels;
  if (pixels.length !== needed) {
    throw new Error(`the image has another size: ${path} holds ${pixels.length} values, ${needed} are needed. Resize it.`);
  }
  return pixels;
}

function fromPng(data, path) {
  // the header first: an image of another size is refused before a pixel is decoded
  const isPng = data.length > 25 && data.readUInt32BE(12) === 0x49484452;
  const [width, height, bits] = isPng ? [data.readUInt32BE(16), data.readUInt32BE(20), data[24]] : [0, 0, 0];
  if (width !== size || height !== size || bits > 8) {
    throw new Error(`the image can't be used: ${path} is ${width} × ${height} with ${bits} bits. Give a PNG of ${size} × ${size} with 8.`);
  }
  const rgba = PNG.sync.read(data).data;
  const pixels = new Uint8Array(size * size * channels);
  for (let i = 0; i < size * size; i += 1) {
    const [red, green, blue, alpha] = rgba.subarray(4 * i, 4 * i + 4);
    if (alpha !== 255 || (channels === 1 && (red !== green || red !== blue))) {
      throw new Error(`the image has ${alpha !== 255 ? "transparency" : "colours"}: ${path}. Convert it with pixels.py.`);
    }
    if (channels === 1) pixels[i] = red;
    else pixels.set([red, green, blue], 3 * i);
  }
  return pixels;
}

async function openSession() {
  const path = join(FOLDER, "model.onnx");
  const data = readFileSync(path);
  if (createHash("sha256").update(data).digest("hex") !== manifest.files["model.onnx"].sha256) {
    throw new Error(`${path} is damaged: its SHA-256 is not the recorded one. Restore it from a copy.`);
  }
  return ort.InferenceSession.create(data, { logSeverityLevel: 3 });
}

async function probsOf(session, pixels) {
  const images = new ort.Tensor("uint8", pixels, [1, size, size, channels]);
  return (await session.run({ images })).probs.data;
}

function best(probs) {
  return probs.indexOf(Math.max(...probs));
}

async function check(session) {
  const golden = JSON.parse(readFileSync(join(FOLDER, "golden", "golden.json"), "utf8"));
  const allowed = golden.tolerance.deployed;
  let good = 0;
  for (const image of golden.images) {
    const probs = await probsOf(session, pixelsOf(join(FOLDER, "golden", image.pixels)));
    const apart = Math.max(...image.deployed.map((expected, index) => Math.abs(expected - probs[index])));
    // where two classes are as likely as each other, which of them comes first is a matter of rounding
    const same = image.deployed[best(image.deployed)] - image.deployed[best(probs)] <= allowed;
    // a NaN is not within it
    const ok = same && apart <= allowed;
    good += ok ? 1 : 0;
    const first = `${manifest.classes[best(probs)]} ${probs[best(probs)].toFixed(4)}`;
    console.log(`${ok ? "ok    " : "FAILED"} ${image.pixels}: ${first}, within ${apart.toExponential(1)} (${allowed} is allowed)`);
  }
  const whole = good === golden.images.length && good > 0;
  console.log(`${whole ? "ok" : "FAILED"}: ${good} of ${golden.images.length} goldens`);
  return whole ? 0 : 1;
}

async function main(given) {
  if (given.length === 0) throw new Error("no image is named. Give IMAGE... or --golden.");
  const session = await openSession();
  if (given[0] === "--golden") return check(session);
  for (const path of given) {
    const probs = await probsOf(session, pixelsOf(path));
    const order = [...probs.keys()].sort((a, b) => probs[b] - probs[a] || a - b).slice(0, TOP);
    console.log(`${path}\t${order.map((index) => `${manifest.classes[index]} ${(100 * probs[index]).toFixed(1)} %`).join("  ")}`);
  }
  return 0;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}
