// Resizing in Pillow's arithmetic, to the last bit: two passes of weighted sums, weights rounded to 22 bits, values
// between the passes to 8. Images are {data: Uint8Array [height, width, channels], width, height, channels}.

const BITS = 22;

// half the width of a filter, in pixels of the smaller image, and the filter; bicubic: Keys (1981), a = -1/2
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function cubic(value) {
  const a = -0.5;
  const x = Math.abs(value);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function sinc(value) {
  const x = value * Math.PI;
  return x === 0 ? 1 : Math.sin(x) / x;
}

// For each of `side` values along an axis of `size` pixels, of which [from, to) are kept: the first pixel, their number,
// and weights. Pixels outside of what is kept still contribute.
function weightsOf(size, from, to, side, [reach, filter]) {
  const scale = (to - from) / side;
  const widened = Math.max(1, scale);
  const support = reach * widened;
  const stride = Math.ceil(support) * 2 + 1;
  const found = { first: new Int32Array(side), count: new Int32Array(side), taps: new Int32Array(side * stride), stride };
  for (let i = 0; i < side; i++) {
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(size, Math.trunc(centre + support + 0.5)) - first;
    const exact = Array.from({ length: count }, (_, k) => filter((k + first - centre + 0.5) * (1 / widened)));
    const sum = exact.reduce((total, weight) => total + weight, 0);
    for (let k = 0; k < count; k++) {
      const weight = sum !== 0 ? exact[k] / sum : exact[k];
      found.taps[i * stride + k] = Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * (1 << BITS));
    }
    found.first[i] = first;
    found.count[i] = count;
  }
  return found;
}

const clip = (sum) => (sum < 0 ? 0 : Math.min(255, sum >> BITS));

// `rows` [from, to) of the image, each made `side` pixels long
function across({ data, width, channels }, weights, side, from, to) {
  const made = new Uint8Array((to - from) * side * channels);
  for (let y = from; y < to; y++) {
    for (let x = 0; x < side; x++) {
      const [start, count, taps] = [(y * width + weights.first[x]) * channels, weights.count[x], x * weights.stride];
      for (let c = 0; c < channels; c++) {
        let sum = 1 << (BITS - 1);
        for (let k = 0, at = start + c; k < count; k++, at += channels) sum += data[at] * weights.taps[taps + k];
        made[((y - from) * side + x) * channels + c] = clip(sum);
      }
    }
  }
  return { data: made, width: side, height: to - from, channels };
}

// all columns, made `side` pixels high; the image begins at row `from` of what the weights are for
function down({ data, width, channels }, weights, side, from) {
  const row = width * channels;
  const made = new Uint8Array(side * row);
  const sums = new Int32Array(row);
  for (let y = 0; y < side; y++) {
    sums.fill(1 << (BITS - 1));
    for (let k = 0; k < weights.count[y]; k++) {
      const weight = weights.taps[y * weights.stride + k];
      const start = (weights.first[y] - from + k) * row;
      for (let x = 0; x < row; x++) sums[x] += data[start + x] * weight;
    }
    for (let x = 0; x < row; x++) made[y * row + x] = clip(sums[x]);
  }
  return { data: made, width, height: side, channels };
}

// The box [left, top, right, bottom] of an image, resized to width × height. downFirst: a tall image is shortened before
// it is made narrower, as newer versions of Pillow do.
export function resize(image, [left, top, right, bottom], width, height, interpolation, downFirst) {
  if (interpolation === "nearest") return nearest(image, [left, top, right, bottom], width, height);
  const columns = weightsOf(image.width, left, right, width, FILTERS[interpolation]);
  const rows = weightsOf(image.height, top, bottom, height, FILTERS[interpolation]);
  if (downFirst && image.height > height && image.height - height > 2 * (image.width - width)) {
    return across(down(image, rows, height, 0), columns, width, 0, height);
  }
  const from = rows.first[0];
  const to = rows.first[height - 1] + rows.count[height - 1];
  return down(across(image, columns, width, from, to), rows, height, from);
}

function nearest({ data, width, channels }, [left, top, right, bottom], newWidth, newHeight) {
  const [xs, ys] = [places(left, right, newWidth), places(top, bottom, newHeight)];
  const made = new Uint8Array(newWidth * newHeight * channels);
  let at = 0;
  for (const y of ys) {
    for (const x of xs) {
      for (let c = 0; c < channels; c++) made[at++] = data[(y * width + x) * channels + c];
    }
  }
  return { data: made, width: newWidth, height: newHeight, channels };
}

// added up step by step, as Pillow does: the sums are rounded differently from products
function places(from, to, side) {
  const step = (to - from) / side;
  const found = [];
  for (let place = from + step * 0.5, i = 0; i < side; i++, place += step) found.push(Math.floor(place));
  return found;
}

// Turned upright, by the orientation of EXIF, 1 to 8
export function turned(image, orientation) {
  if (orientation === 1) return image;
  const { data, width, height, channels } = image;
  const [newWidth, newHeight] = orientation > 4 ? [height, width] : [width, height];
  // where the pixel at (0, 0) of the upright image lies, and the steps right and down from it
  const flipX = [2, 3, 7, 8].includes(orientation);
  const flipY = [3, 4, 6, 7].includes(orientation);
  const start = ((flipY ? height - 1 : 0) * width + (flipX ? width - 1 : 0)) * channels;
  const [alongX, alongY] = [(flipX ? -1 : 1) * channels, (flipY ? -1 : 1) * width * channels];
  const [right, below] = orientation > 4 ? [alongY, alongX] : [alongX, alongY];
  const made = new Uint8Array(data.length);
  let at = 0;
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0, from = start + y * below; x < newWidth; x++, from += right) {
      for (let c = 0; c < channels; c++) made[at++] = data[from + c];
    }
  }
  return { data: made, width: newWidth, height: newHeight, channels };
}
