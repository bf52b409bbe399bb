// What an image file is, read from its header as `vivace` reads it: size, orientation, and what can't be done here.
// Everything that decoders do not need (metadata, colour profiles) is taken out, so that every browser sees the same.

// an image that can't be used; `key` names the reason in words.js
export class ImageProblem extends Error {
  constructor(key, ...values) {
    super([key, ...values].join(" "));
    this.key = key;
    this.values = values;
  }
}

const MIN_SIDE = 4;
const MAX_ASPECT = 50;
// a JPEG that is made smaller while it is decoded may have this many times `max_pixels`
const JPEG_FACTOR = 5;
// pieces (segments, chunks) of a file; real ones have far fewer
const MAX_PIECES = 200_000;
const ORIENTATION = 0x0112;
const XMP = /tiff:Orientation(?:="|>)([0-9])/;

const text = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

// {kind, width, height, orientation 1 to 8, bytes: the file without what is not needed}; AVIF tells no size here
export function readHeader(bytes) {
  if (bytes.length === 0) throw new ImageProblem("empty");
  const read = READERS.find(([is]) => is(bytes));
  if (read === undefined) throw unknown(bytes);
  try {
    return read[1](bytes);
  } catch (error) {
    // a header that leads out of the file
    if (error instanceof RangeError) throw new ImageProblem("damaged");
    throw error;
  }
}

const READERS = [
  [(bytes) => bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff, readJpeg],
  [(bytes) => text(bytes, 0, 8) === "\x89PNG\r\n\x1a\n", readPng],
  [(bytes) => text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 12) === "WEBP", readWebp],
  [(bytes) => text(bytes, 0, 4) === "GIF8", readGif],
  [(bytes) => text(bytes, 0, 2) === "BM", readBmp],
  [(bytes) => text(bytes, 4, 8) === "ftyp" && /^avi[fs]/.test(text(bytes, 8, 12)), readAvif],
];

function unknown(bytes) {
  const start = text(bytes, 0, 4);
  const isTiff = start === "II*\0" || start === "MM\0*" || start === "II+\0" || start === "MM\0+";
  const kind = isTiff ? "TIFF" : text(bytes, 4, 8) === "ftyp" ? "HEIC" : /^P[1-7]\s/.test(text(bytes, 0, 3)) ? "PPM" : "";
  return kind ? new ImageProblem("format", kind) : new ImageProblem("notImage");
}

// refuses the same sizes as training does; shrinks: whether it is made smaller while it is decoded
export function checkSize(width, height, maxPixels, shrinks) {
  const limit = maxPixels * (shrinks ? JPEG_FACTOR : 1);
  if (width * height > limit) throw new ImageProblem("tooLarge", width, height, limit.toLocaleString("en"));
  if (Math.min(width, height) < MIN_SIDE) throw new ImageProblem("tooSmall", width, height, MIN_SIDE);
  if (Math.max(width, height) >= MAX_ASPECT * Math.min(width, height)) throw new ImageProblem("tooLong", width, height, MAX_ASPECT);
}

function readJpeg(bytes) {
  const found = { kind: "JPEG", width: 0, height: 0 };
  const data = view(bytes);
  const kept = [bytes.subarray(0, 2)];
  let exif = new Uint8Array(0);
  let xmp = "";
  let place = 2;
  for (let piece = 0; piece < MAX_PIECES; piece++) {
    while (place < bytes.length && !(bytes[place] === 0xff && bytes[place + 1] !== 0 && bytes[place + 1] !== 0xff)) place++;
    if (place + 4 > bytes.length) throw new ImageProblem("damaged");
    const marker = bytes[place + 1];
    if (marker === 0xd9) throw new ImageProblem("damaged");
    if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      place += 2;
      continue;
    }
    const [start, body, end] = [place, place + 4, place + 2 + data.getUint16(place + 2)];
    place = end;
    if (marker === 0xda) {
      // without the mark at its end a part of the picture may be missing, which browsers paint grey
      if (found.width === 0 || !hasEnd(bytes, end)) throw new ImageProblem("damaged");
      const whole = join([...kept, bytes.subarray(start)]);
      return { ...found, orientation: orientationOf(exif, xmp), bytes: whole };
    }
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      found.height = data.getUint16(body + 1);
      found.width = data.getUint16(body + 3);
      if (bytes[body] !== 8) throw new ImageProblem("deep", bytes[body]);
      if (bytes[body + 5] > 3) throw new ImageProblem("cmyk");
    }
    const isMeta = (marker >= 0xe0 && marker <= 0xef) || marker === 0xfe;
    if (!isMeta || marker === 0xe0 || marker === 0xee) kept.push(bytes.subarray(start, end));
    // a block over 64 KB continues in the next segment
    if (marker === 0xe1 && text(bytes, body, body + 6) === "Exif\0\0") exif = join([exif, bytes.subarray(body + 6, end)]);
    else if (marker === 0xe1 && text(bytes, body, body + 29) === "http://ns.adobe.com/xap/1.0/\0") xmp = latin(bytes, body + 29, end);
  }
  throw new ImageProblem("damaged");
}

// whether the mark of a JPEG's end is behind `from`; some cameras and editors put blanks or a preview after it
function hasEnd(bytes, from) {
  for (let place = bytes.length - 2; place >= from; place--) {
    if (bytes[place] === 0xff && bytes[place + 1] === 0xd9) return true;
  }
  return false;
}

function readPng(bytes) {
  const data = view(bytes);
  const [width, height, bits] = [data.getUint32(16), data.getUint32(20), bytes[24]];
  if (text(bytes, 12, 16) !== "IHDR") throw new ImageProblem("damaged");
  if (bits > 8) throw new ImageProblem("deep", bits);
  const kept = [bytes.subarray(0, 8)];
  let exif = new Uint8Array(0);
  let xmp = "";
  for (let place = 8, piece = 0; piece < MAX_PIECES; piece++) {
    const [kind, end] = [text(bytes, place + 4, place + 8), place + 12 + data.getUint32(place)];
    if (end > bytes.length) throw new ImageProblem("damaged");
    if (["IHDR", "PLTE", "tRNS", "IDAT", "IEND"].includes(kind)) kept.push(bytes.subarray(place, end));
    if (kind === "eXIf") exif = bytes.subarray(place + 8, end - 4);
    if (kind === "iTXt" && text(bytes, place + 8, place + 26) === "XML:com.adobe.xmp\0") xmp = latin(bytes, place + 26, end - 4);
    if (kind === "IEND") return { kind: "PNG", width, height, orientation: orientationOf(exif, xmp), bytes: join(kept) };
    place = end;
  }
  throw new ImageProblem("damaged");
}

function readWebp(bytes) {
  const data = view(bytes);
  const kept = [];
  let exif = new Uint8Array(0);
  let xmp = "";
  for (let place = 12, piece = 0; place + 8 <= bytes.length && piece < MAX_PIECES; piece++) {
    const [kind, length] = [text(bytes, place, place + 4), data.getUint32(place + 4, true)];
    const end = Math.min(bytes.length, place + 8 + length + (length % 2));
    if (place + 8 + length > bytes.length) throw new ImageProblem("damaged");
    if (kind === "EXIF") exif = bytes.subarray(place + 8, place + 8 + length);
    else if (kind === "XMP ") xmp = latin(bytes, place + 8, place + 8 + length);
    else if (kind !== "ICCP") kept.push(bytes.slice(place, end));
    place = end;
  }
  const [kind, first] = [text(kept[0] ?? bytes, 0, 4), kept[0] ?? new Uint8Array(0)];
  let [width, height] = [0, 0];
  if (kind === "VP8X") {
    // neither profile, EXIF nor XMP are there any more
    first[8] &= ~0x2c;
    width = 1 + (first[12] | (first[13] << 8) | (first[14] << 16));
    height = 1 + (first[15] | (first[16] << 8) | (first[17] << 16));
  } else if (kind === "VP8L") {
    const size = view(first).getUint32(9, true);
    [width, height] = [(size & 0x3fff) + 1, ((size >> 14) & 0x3fff) + 1];
  } else if (kind === "VP8 ") {
    const size = view(first);
    [width, height] = [size.getUint16(14, true) & 0x3fff, size.getUint16(16, true) & 0x3fff];
  } else throw new ImageProblem("damaged");
  const whole = join([bytes.slice(0, 12), ...kept]);
  view(whole).setUint32(4, whole.length - 8, true);
  return { kind: "WEBP", width, height, orientation: orientationOf(exif, xmp), bytes: whole };
}

function readGif(bytes) {
  const data = view(bytes);
  return { kind: "GIF", width: data.getUint16(6, true), height: data.getUint16(8, true), orientation: 1, bytes };
}

function readBmp(bytes) {
  const data = view(bytes);
  const old = data.getUint32(14, true) === 12;
  const width = old ? data.getUint16(18, true) : data.getInt32(18, true);
  const height = old ? data.getUint16(20, true) : Math.abs(data.getInt32(22, true));
  return { kind: "BMP", width, height, orientation: 1, bytes };
}

function readAvif(bytes) {
  // its turns are part of the picture, which the browser makes
  return { kind: "AVIF", width: 0, height: 0, orientation: 1, bytes };
}

// 1 to 8 as in EXIF 2.32: from the EXIF block, else from XMP, else 1
function orientationOf(block, xmp) {
  let exif = block;
  while (text(exif, 0, 6) === "Exif\0\0") exif = exif.subarray(6);
  const value = ["II*\0", "MM\0*"].includes(text(exif, 0, 4)) ? tagOf(exif) : null;
  const told = value ?? Number(XMP.exec(xmp)?.[1] ?? 1);
  return told >= 1 && told <= 8 ? told : 1;
}

function tagOf(exif) {
  const [data, little] = [view(exif), exif[0] === 0x49];
  try {
    const place = data.getUint32(4, little);
    const count = data.getUint16(place, little);
    for (let at = place + 2; at < place + 2 + 12 * count; at += 12) {
      const [tag, kind, values] = [data.getUint16(at, little), data.getUint16(at + 2, little), data.getUint32(at + 4, little)];
      // all twelve bytes must be there
      data.getUint32(at + 8, little);
      if (tag !== ORIENTATION || values !== 1) continue;
      if (kind === 1) return exif[at + 8];
      if (kind === 3) return data.getUint16(at + 8, little);
      if (kind === 4) return data.getUint32(at + 8, little);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return null;
}

function latin(bytes, start, end) {
  return new TextDecoder("latin1").decode(bytes.subarray(start, end));
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    whole.set(part, place);
    place += part.length;
  }
  return whole;
}
