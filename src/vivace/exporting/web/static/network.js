// The network, computed by ONNX Runtime Web: raw pixels in, probabilities out; normalisation and softmax are in the graph.
import * as ort from "../onnxruntime/ort.wasm.bundle.min.mjs";

export const WASM = "onnxruntime/ort-wasm-simd-threaded.wasm";
export const GRAPH = "model.onnx";
const MAX_THREADS = 4;

// The contents of a file that web.json lists. tell(bytes): called with what has come so far.
async function fetched(name, { sha256, bytes }, tell) {
  // by its contents' name, so that a cache can't hold another one
  const response = await fetch(`${name}?v=${sha256.slice(0, 16)}`);
  if (!response.ok) throw new Error(`${name}: HTTP ${response.status}`);
  const data = new Uint8Array(bytes);
  let place = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (place + value.length > bytes) throw new Error(`${name}: > ${bytes} B`);
    data.set(value, place);
    place += value.length;
    tell(value.length);
  }
  if (place !== bytes) throw new Error(`${name}: ${place} / ${bytes} B`);
  // only over TLS and on this machine do browsers have it
  if (globalThis.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
    const found = Array.from(digest, (value) => value.toString(16).padStart(2, "0")).join("");
    if (found !== sha256) throw new Error(`${name}: SHA-256 ${found.slice(0, 16)}…`);
  }
  return data;
}

// {probs(pixels): Float32Array of a probability for each class, threads}. told: web.json. tell(part): 0 to 1.
export async function openNetwork(told, tell) {
  const names = [WASM, GRAPH];
  const all = names.reduce((sum, name) => sum + told.files[name].bytes, 0);
  let here = 0;
  const [wasm, graph] = await Promise.all(
    names.map((name) => fetched(name, told.files[name], (bytes) => tell((here += bytes) / all))),
  );
  // several threads share memory, which only a page has that is isolated from others by its server's headers
  const threads = globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency ?? 1) : 1;
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.numThreads = threads;
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const { size, channels } = told.preprocess;
  async function probs(pixels) {
    const images = new ort.Tensor("uint8", pixels, [1, size, size, channels]);
    const found = await session.run({ [told.input.name]: images });
    return found[told.output.name].data;
  }
  // the first run takes longer
  await probs(new Uint8Array(size * size * channels));
  return { probs, threads };
}
