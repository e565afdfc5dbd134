// Parameters out of the page's text: the mirror of weights.py.

import { Tensor } from "./tensor.js";

/** @typedef {{ name: string, shape: number[], role: string, decays: boolean }} Parameter */
/** @typedef {import("./scope.js").Tensors} Tensors */

/** @param {string} text base64 */
function bytes(text) {
  const characters = atob(text), content = new Uint8Array(characters.length);
  for (let i = 0; i < characters.length; i++) content[i] = characters.charCodeAt(i);
  return new DataView(content.buffer);
}

/** @param {DataView} view @param {number} place @param {number} count */
function floats(view, place, count) {
  return Float32Array.from({ length: count }, (_, i) => view.getFloat32(place + 4 * i, true));
}

/** @param {number[]} shape */
function size(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

/** @param {Parameter[]} table @param {string} text @returns {Tensors} */
export function exact_tensors(table, text) {
  const view = bytes(text);
  let place = 0;
  return new Map(table.map(({ name, shape }) => {
    const data = floats(view, place, size(shape));
    place += 4 * data.length;
    return [name, new Tensor(data, shape)];
  }));
}

/** @param {Parameter[]} table @param {string} text @returns {Tensors} */
export function coarse_tensors(table, text) {
  const view = bytes(text);
  let place = 0;
  return new Map(table.map(({ name, shape }) => {
    if (shape.length === 1) {
      place += 4 * shape[0];
      return [name, new Tensor(floats(view, place - 4 * shape[0], shape[0]), shape)];
    }
    const [rows, columns] = shape, steps = floats(view, place, rows), first = place + 4 * rows;
    place = first + rows * columns;
    const data = Float32Array.from({ length: rows * columns }, (_, i) => view.getInt8(first + i) * steps[Math.floor(i / columns)]);
    return [name, new Tensor(data, shape)];
  }));
}

/** The same numbers in float64. @param {Tensors} parameters @returns {Tensors} */
export function in_float64(parameters) {
  return new Map([...parameters].map(([name, p]) => [name, new Tensor(Float64Array.from(p.data), p.shape)]));
}

/** @param {Tensors} parameters @returns {Tensors} */
export function copy(parameters) {
  return new Map([...parameters].map(([name, p]) => [name, new Tensor(p.data.slice(), p.shape)]));
}
