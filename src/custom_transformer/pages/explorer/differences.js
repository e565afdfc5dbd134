// Derivatives of the loss that are measured, for gradients to be held against.

import { architecture_of } from "./architecture.js";
import { Pass, nobody } from "./model.js";

/** @typedef {import("./session.js").Session} Session */

const RESOLUTION = 1e-11; // of a measured derivative: float64's rounding of the loss, divided by the steps
const SHORTEST = 1 / 64; // of the steps that are tried first

/**
 * value: the derivative. h: the step with which it was measured. doubt: how far it may be off, by rounding and by a corner.
 * corner: whether shorter steps were taken because of one, "near", or even the shortest go across it, "across".
 * @typedef {{ value: number, h: number, doubt: number, corner: "" | "near" | "across" }} Difference
 */

/**
 * The loss of a session's text, with what is given in the place of the session's own.
 * @typedef {(parameters: import("./scope.js").Tensors, engine?: import("./model.js").Engine,
 *   watch?: import("./model.js").Watch, config?: import("./gpt2.js").Config) => number} Loss
 */

/**
 * The derivative at 0 of a function of one number: the model runs four times, with the number ±h and ±2h. This
 * five-point stencil's error is h⁴/30 · L⁽⁵⁾ where the function is smooth.
 *
 * Where the input of a unit goes across the corner of its curve within the steps, it is not, and the error is in
 * proportion to h. So the steps become shorter until no unit's input does. If even the shortest do, `doubt` grows by the
 * last change of the value.
 * @param {Session} session whose forward is done
 * @param {number} h
 * @param {(by: number, loss: Loss) => number} run the loss with the number at `by`
 * @returns {Difference}
 */
export function derivative_at_0(session, h, run) {
  const inputs = inputs_of_corners(session);
  let across = false;
  /** @type {Loss} */
  const loss = (parameters, engine = session.engine, watch = nobody, config = session.config) =>
    new Pass(config, parameters, engine, (kind, name, tensor) => {
      const instead = watch(kind, name, tensor), before = kind === "x" ? inputs.get(name) : undefined;
      if (before) across ||= (instead ?? tensor).data.some((/** @type {number} */ x, /** @type {number} */ i) => (x > 0) !== (before[i] > 0));
      return instead;
    }).loss(session.ids, session.labels);
  let last = NaN;
  for (let share = 1; ; share /= 4) {
    across = false;
    const step = h * share, [a, b, c, d] = [-2, -1, 1, 2].map((steps) => run(steps * step, loss));
    const value = (a - 8 * b + 8 * c - d) / (12 * step), rounding = RESOLUTION / share;
    if (!across) return { value, h: step, doubt: rounding, corner: share < 1 ? "near" : "" };
    if (share <= SHORTEST) return { value, h: step, doubt: rounding + Math.abs(value - last), corner: "across" };
    last = value;
  }
}

/** By layer, the inputs of units whose curve has a corner. @param {Session} session */
function inputs_of_corners(session) {
  const { corner, units } = architecture_of(session.config);
  /** @type {Map<string, import("./tensor.js").Numbers>} */
  const inputs = new Map();
  for (const { name, op, x } of session.layers) {
    if (corner && op === units) inputs.set(name, /** @type {import("./tensor.js").Tensor} */ (session.tensor(x)).data);
  }
  return inputs;
}
