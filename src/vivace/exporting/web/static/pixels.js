// From an image file to the pixels that the network sees, as vivace's `Preprocess` makes them.
import { ImageProblem, checkSize, readHeader } from "./headers.js";
import { resize, turned } from "./resize.js";

// the margins of a padded image: middle grey in each channel
const PAD = 128;
// pixels that are fetched from a canvas at once, in rows that the largest factor divides
const STRIP = 1 << 20;
const STEP = 8;
const READ = { willReadFrequently: true, colorSpace: "srgb" };

// {pixels: Uint8Array [size, size, channels], width, height: of the upright image}. blob: a file. preprocess: of
// web.json. Throws ImageProblem.
export async function loadPixels(blob, preprocess) {
  if (!giveTrueValues()) throw new ImageProblem("altered");
  const header = readHeader(new Uint8Array(await blob.arrayBuffer()));
  const shrinks = timesOf(header, preprocess) > 1;
  if (header.width) checkSize(header.width, header.height, preprocess.max_pixels, shrinks);
  let bitmap;
  try {
    // nothing but the values of the file: no profile applied, no transparency multiplied in
    bitmap = await createImageBitmap(new Blob([header.bytes]), {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
      imageOrientation: "from-image",
    });
  } catch {
    throw new ImageProblem("notDecoded", header.kind);
  }
  const { width, height } = bitmap;
  checkSize(width, height, preprocess.max_pixels, shrinks);
  const found = pixelsOf(strips(bitmap), width, height, header, preprocess);
  bitmap.close();
  return { pixels: found, width: header.orientation > 4 ? height : width, height: header.orientation > 4 ? width : height };
}

// The same of an image that is decoded: strips gives [top row, RGBA, rows] of parts of it, each of STEP rows but the last.
export function pixelsOf(strips, width, height, header, preprocess) {
  const { store_size: side, size, channels, fit, interpolation } = preprocess;
  const times = timesOf(header, preprocess);
  const [newWidth, newHeight] = [Math.ceil(width / times), Math.ceil(height / times)];
  const made = { data: new Uint8Array(newWidth * newHeight * channels), width: newWidth, height: newHeight, channels };
  for (const [top, rgba, rows] of strips) put(made, top / times, rgba, width, rows, times);
  const upright = turned(made, header.orientation);
  return middle(toSquare(upright, side, fit, interpolation, preprocess.down_first), side, size);
}

const timesOf = ({ kind, width, height }, { store_size: side }) => (kind === "JPEG" ? shrink(width, height, side) : 1);

// the factor by which a JPEG is made smaller while it is decoded: 1, 2, 4 or 8
export function shrink(width, height, side) {
  const least = Math.min(width, height);
  if (least < 4 * side) return 1;
  return [8, 4, 2, 1].find((step) => Math.floor(least / (2 * side)) >= step);
}

// Parts of a bitmap, transparency not yet laid on white: a canvas of the whole might be too large.
function* strips(bitmap) {
  const { width, height } = bitmap;
  const rows = Math.max(STEP, Math.floor(STRIP / width / STEP) * STEP);
  const canvas = new OffscreenCanvas(width, Math.min(rows, height));
  const context = canvas.getContext("2d", READ);
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.clearRect(0, 0, width, count);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    yield [top, context.getImageData(0, 0, width, count).data, count];
  }
}

let gives = null;

// Against tracking, some browsers change what a page reads of a canvas.
function giveTrueValues() {
  if (gives !== null) return gives;
  const context = new OffscreenCanvas(64, 64).getContext("2d", READ);
  const data = Uint8ClampedArray.from({ length: 4 * 64 * 64 }, (_, index) => (index % 4 === 3 ? 255 : (index * 7919) >> 5));
  context.putImageData(new ImageData(data, 64, 64), 0, 0);
  const found = context.getImageData(0, 0, 64, 64).data;
  gives = found.every((value, index) => value === data[index]);
  return gives;
}

// The pixels of RGBA values, transparency laid on white, `times` smaller, in grey or RGB, into `made` from row `top` on.
function put(made, top, rgba, width, height, times) {
  const area = times * times;
  let to = top * made.width * made.channels;
  for (let y = 0; y < height; y += times) {
    for (let x = 0; x < width; x += times) {
      let red = 0;
      let green = 0;
      let blue = 0;
      if (times === 1) {
        const at = 4 * (y * width + x);
        const alpha = rgba[at + 3];
        red = alpha === 255 ? rgba[at] : onWhite(rgba[at], alpha);
        green = alpha === 255 ? rgba[at + 1] : onWhite(rgba[at + 1], alpha);
        blue = alpha === 255 ? rgba[at + 2] : onWhite(rgba[at + 2], alpha);
      } else {
        // what libjpeg-turbo gives at a lower resolution: means, of the last row or column repeated beyond the edge
        for (let dy = 0; dy < times; dy++) {
          const row = Math.min(height - 1, y + dy) * width;
          for (let dx = 0; dx < times; dx++) {
            const at = 4 * (row + Math.min(width - 1, x + dx));
            red += rgba[at];
            green += rgba[at + 1];
            blue += rgba[at + 2];
          }
        }
        red = Math.floor((red + area / 2) / area);
        green = Math.floor((green + area / 2) / area);
        blue = Math.floor((blue + area / 2) / area);
      }
      if (made.channels === 3) {
        made.data[to++] = red;
        made.data[to++] = green;
        made.data[to++] = blue;
        // ITU-R 601, as Pillow rounds it
      } else made.data[to++] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    }
  }
}

function onWhite(value, alpha) {
  return Math.round((value * alpha + 255 * (255 - alpha)) / 255);
}

function toSquare(image, side, fit, interpolation, downFirst) {
  const { width, height, channels } = image;
  if (fit === "pad") {
    const longer = Math.max(width, height);
    const size = [width, height].map((length) => Math.max(1, halfEven((length * side) / longer)));
    const resized =
      size[0] === width && size[1] === height ? image : resize(image, [0, 0, width, height], ...size, interpolation, downFirst);
    return centred(resized, side);
  }
  if (width === side && height === side) return image.data;
  let box = [0, 0, width, height];
  if (fit === "crop") {
    const square = Math.min(width, height);
    const [left, top] = [Math.floor((width - square) / 2), Math.floor((height - square) / 2)];
    box = [left, top, left + square, top + square];
  }
  return resize({ ...image, channels }, box, side, side, interpolation, downFirst).data;
}

// as Python rounds
function halfEven(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

function centred({ data, width, height, channels }, side) {
  const square = new Uint8Array(side * side * channels).fill(PAD);
  const [top, left] = [Math.floor((side - height) / 2), Math.floor((side - width) / 2)];
  for (let y = 0; y < height; y++) {
    square.set(data.subarray(y * width * channels, (y + 1) * width * channels), ((top + y) * side + left) * channels);
  }
  return square;
}

// the central size × size of side × side
function middle(square, side, size) {
  const channels = square.length / side / side;
  const margin = Math.floor((side - size) / 2);
  const seen = new Uint8Array(size * size * channels);
  for (let y = 0; y < size; y++) {
    const from = ((margin + y) * side + margin) * channels;
    seen.set(square.subarray(from, from + size * channels), y * size * channels);
  }
  return seen;
}
