// Parameters out of the page's text: the mirror of weights.py.

import { Tensor, copied } from "./tensor.js";

/** @typedef {{ name: string, shape: number[], role: string, decays: boolean }} Parameter */
/** @typedef {import("./scope.js").Tensors} Tensors */

/** @param {string} text base64 of what zlib compressed @returns {Promise<Uint8Array>} */
async function inflated(text) {
  const characters = atob(text), content = new Uint8Array(characters.length);
  for (let i = 0; i < characters.length; i++) content[i] = characters.charCodeAt(i);
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
