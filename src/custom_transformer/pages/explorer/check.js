// The gradient check of gradcheck.py, on the reader's text: each parameter's gradient beside measured derivatives.

import { derivative_at_0 } from "./differences.js";
import { Tensor, inner, zeros } from "./tensor.js";

/** @typedef {import("./session.js").Session} Session */

export const TOLERANCE = 1e-6;
const STEP = 3e-4; // a norm of small numbers bends within 1e-3

/**
 * The gradient's largest deviation relative to the tensor's largest gradient, along a random direction, which no
 * number escapes, and along the largest gradient's own number.
 * @typedef {{ name: string, error: number, backward: number, measured: number, index: number[] }} Row
 */

/** One parameter. @param {Session} session @param {string} name @returns {Row} */
export function check_parameter(session, name) {
  const wide = session.in_float64(), parameter = /** @type {Tensor} */ (wide.parameters.get(name));
  const gradient = /** @type {Tensor} */ (wide.gradients.get(name)).data;
  let largest = 0;
  for (let i = 0; i < gradient.length; i++) if (Math.abs(gradient[i]) > Math.abs(gradient[largest])) largest = i;
  const one = zeros(parameter, parameter.shape), all = random_direction(parameter, wide, name);
  one.data[largest] = 1;
  let worst = 0, measured = 0;
  for (const direction of [all, one]) {
    const found = derivative_at_0(wide, STEP, (by, loss) => {
      const moved = new Tensor(parameter.data.map((v, i) => v + by * direction.data[i]), parameter.shape);
      return loss(new Map([...wide.parameters, [name, moved]]));
    });
    measured = found.value;
    worst = Math.max(worst, Math.abs(measured - inner(gradient, direction.data)) - found.doubt);
  }
  return { name, error: worst / (Math.abs(gradient[largest]) || 1), backward: gradient[largest], measured, index: place(largest, parameter.shape) };
}

/** A unit vector. Of a table only rows that the text uses take part in it, half of it, so that they weigh something.
 * @param {Tensor} parameter @param {Session} session @param {string} name */
function random_direction(parameter, session, name) {
  const direction = zeros(parameter, parameter.shape), width = parameter.width;
  const used = new Set(name === "token_embedding" ? session.ids : []);
  let state = 1;
  let squares = 0;
  for (let i = 0; i < direction.data.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // the same direction each time
    direction.data[i] = (state / 2 ** 32 - 0.5) * (used.has(Math.floor(i / width)) ? 10 : 1);
    squares += direction.data[i] ** 2;
  }
  for (let i = 0; i < direction.data.length; i++) direction.data[i] /= Math.sqrt(squares);
  return direction;
}

/** @param {number} offset @param {number[]} shape */
export function place(offset, shape) {
  const index = [];
  for (const size of [...shape].reverse()) {
    index.unshift(offset % size);
    offset = Math.floor(offset / size);
  }
  return index;
}
