// What can be checked of a page without a browser: that its resizing gives the pixels of vivace, and ONNX Runtime Web the
// probabilities. node node_check.mjs SITE GIVEN: GIVEN holds what Pillow decoded of each golden image, NN.rgba, sizes.json
// with [width, height] of each, and a copy of the page's scripts. Prints {pixels, pixels_mean, probabilities}: the largest
// differences; exit status 3 if ONNX Runtime Web can't run the network.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [site, given] = process.argv.slice(2);
const part = (folder, name) => import(pathToFileURL(join(folder, name)).href);
const read = (name) => readFileSync(join(site, name));
const { readHeader } = await part(given, "page/headers.js");
const { pixelsOf } = await part(given, "page/pixels.js");
const ort = await part(site, "onnxruntime/ort.wasm.bundle.min.mjs");

const told = JSON.parse(read("web.json"));
const sizes = JSON.parse(readFileSync(join(given, "sizes.json")));
ort.env.logLevel = "error";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = new Uint8Array(read("onnxruntime/ort-wasm-simd-threaded.wasm")).buffer;
const session = await ort.InferenceSession.create(new Uint8Array(read("model.onnx")), { executionProviders: ["wasm"] }).catch(
  (error) => {
    console.error(`Error: ${error.message}`);
    process.exit(3);
  },
);
const { size, channels } = told.preprocess;
const most = { pixels: 0, pixels_mean: 0, probabilities: 0 };
const raise = (key, value) => (most[key] = value <= most[key] ? most[key] : value);
for (const [index, golden] of JSON.parse(read("golden/golden.json")).images.entries()) {
  const expected = new Uint8Array(read(`golden/${golden.pixels}`));
  const header = readHeader(new Uint8Array(read(`golden/${golden.file}`)));
  const [width, height] = sizes[index];
  const rgba = new Uint8ClampedArray(readFileSync(join(given, `${String(index).padStart(2, "0")}.rgba`)));
  const found = pixelsOf([[0, rgba, height]], width, height, header, told.preprocess);
  const apart = Array.from(found, (value, at) => Math.abs(value - expected[at]));
  raise("pixels", apart.reduce((a, b) => Math.max(a, b), 0));
  raise("pixels_mean", apart.reduce((a, b) => a + b, 0) / apart.length);
  const images = new ort.Tensor("uint8", expected, [1, size, size, channels]);
  const probs = (await session.run({ [told.input.name]: images }))[told.output.name].data;
  golden.deployed.forEach((value, at) => raise("probabilities", Math.abs(value - probs[at])));
}
console.log(JSON.stringify(most));
