// Parameters out of the page's text: the mirror of weights.py.

import { Tensor, copied } from "./tensor.js";

/** @typedef {{ name: string, shape: number[], role: string, decays: boolean }} Parameter */
/** @typedef {import("./scope.js").Tensors} Tensors */

// Of Python's base64.b85encode, with a comma for "<".
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";

/** Five characters are four bytes; at the end fewer, one more than bytes. @param {string} text */
function bytes_of(text) {
  const value = new Uint8Array(128), bytes = new DataView(new ArrayBuffer(4 * Math.ceil(text.length / 5)));
  [...DIGITS].forEach((digit, i) => { value[digit.charCodeAt(0)] = i; });
  for (let i = 0; i < text.length; i += 5) {
    let number = 0;
    for (let k = i; k < i + 5; k++) number = 85 * number + (k < text.length ? value[text.charCodeAt(k)] : 84);
    bytes.setUint32((i / 5) * 4, number);
  }
  return new Uint8Array(bytes.buffer, 0, Math.floor((text.length * 4) / 5));
}

/** @param {string} text of what zlib compressed @returns {Promise<Uint8Array>} */
async function inflated(text) {
  const content = bytes_of(text);
  const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** @param {number[]} shape */
function size(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

/** @param {Parameter[]} table @param {string} text @returns {Promise<Tensors>} */
export async function exact_tensors(table, text) {
  const planes = await inflated(text), count = planes.length / 4, view = new DataView(new ArrayBuffer(planes.length));
  for (let i = 0; i < count; i++) for (let b = 0; b < 4; b++) view.setUint8(4 * i + b, planes[b * count + i]);
  let place = 0;
  return new Map(table.map(({ name, shape }) => {
    const data = Float32Array.from({ length: size(shape) }, (_, i) => view.getFloat32(place + 4 * i, true));
    place += 4 * data.length;
    return [name, new Tensor(data, shape)];
  }));
}

/** @param {Parameter[]} table @param {string} text @returns {Promise<Tensors>} */
export async function rounded_tensors(table, text) {
  const content = await inflated(text), view = new DataView(content.buffer);
  let place = 0;
  const floats = (/** @type {number} */ count) => {
    place += 4 * count;
    return Float32Array.from({ length: count }, (_, i) => view.getFloat32(place - 4 * count + 4 * i, true));
  };
  return new Map(table.map(({ name, shape }) => {
    if (shape.length === 1) return [name, new Tensor(floats(shape[0]), shape)];
    const steps = floats(shape[0]), columns = shape[1], first = place;
    place += size(shape);
    return [name, new Tensor(Float32Array.from({ length: size(shape) }, (_, i) => view.getInt8(first + i) * steps[Math.floor(i / columns)]), shape)];
  }));
}

/** The same numbers in float64. @param {Tensors} parameters @returns {Tensors} */
export function in_float64(parameters) {
  return new Map([...parameters].map(([name, p]) => [name, new Tensor(Float64Array.from(p.data), p.shape)]));
}

/** @param {Tensors} parameters @returns {Tensors} */
export function copy(parameters) {
  return new Map([...parameters].map(([name, p]) => [name, copied(p)]));
}
