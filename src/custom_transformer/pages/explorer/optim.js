// The mirror of maths/optim.py.

import { Tensor, zeros } from "./tensor.js";

/** @typedef {import("./scope.js").Tensors} Tensors */

/** θ ← θ − η (s g + λ θ), in place
 * @param {Tensor} parameter @param {Tensor} gradient @param {number} scale @param {number} lr @param {number} weight_decay */
export function sgd_update(parameter, gradient, scale, lr, weight_decay) {
  const p = parameter.data, g = gradient.data;
  for (let i = 0; i < p.length; i++) p[i] = p[i] * (1 - lr * weight_decay) - lr * scale * g[i];
}

/**
 * m ← β₁ m + (1 − β₁) s g, v ← β₂ v + (1 − β₂) (s g)², θ ← θ − η (m̂ / (√v̂ + ε) + λ θ), in place
 * @param {Tensor} parameter @param {Tensor} gradient @param {Tensor} m @param {Tensor} v @param {number} t
 * @param {number} scale @param {number} lr @param {[number, number]} betas @param {number} weight_decay @param {number} eps
 */
export function adamw_update(parameter, gradient, m, v, t, scale, lr, betas, weight_decay, eps) {
  const [beta1, beta2] = betas, p = parameter.data, g = gradient.data, M = m.data, W = v.data;
  const rate = lr / (1 - beta1 ** t), root = Math.sqrt(1 - beta2 ** t), decay = 1 - lr * weight_decay;
  for (let i = 0; i < p.length; i++) {
    const s = g[i] * scale;
    M[i] = beta1 * M[i] + (1 - beta1) * s;
    W[i] = beta2 * W[i] + (1 - beta2) * s * s;
    p[i] = p[i] * decay - (rate * M[i]) / (Math.sqrt(W[i]) / root + eps);
  }
}

/** √(Σ g²) over all gradients @param {Tensors} gradients */
export function global_norm(gradients) {
  let sum = 0;
  for (const gradient of gradients.values()) for (const g of gradient.data) sum += g * g;
  return Math.sqrt(sum);
}

/** min(1, c / ‖g‖): what gradients of this global norm are multiplied with @param {number} norm @param {number} max_norm */
export function clip_scale(norm, max_norm) {
  return norm <= max_norm ? 1 : max_norm / norm;
}

/**
 * weight_decay: λ of each parameter by name, 0 for those not named.
 * @typedef {{ kind: "sgd" | "adamw", weight_decay: Map<string, number>, betas: [number, number], m: Tensors, v: Tensors, t: number }} Optimizer
 */

/** @param {"sgd" | "adamw"} kind @param {Tensors} parameters @param {Map<string, number>} weight_decay
 * @param {[number, number]} betas @returns {Optimizer} */
export function build_optimizer(kind, parameters, weight_decay, betas) {
  const state = () => new Map([...parameters].map(([name, p]) => [name, zeros(p, p.shape)]));
  return { kind, weight_decay, betas, m: kind === "adamw" ? state() : new Map(), v: kind === "adamw" ? state() : new Map(), t: 0 };
}

/** @param {Optimizer} optimizer @param {Tensors} parameters @param {Tensors} gradients @param {number} lr @param {number} scale */
export function update(optimizer, parameters, gradients, lr, scale) {
  optimizer.t += 1;
  for (const [name, parameter] of parameters) {
    const gradient = /** @type {Tensor} */ (gradients.get(name)), decay = optimizer.weight_decay.get(name) ?? 0;
    if (optimizer.kind === "sgd") sgd_update(parameter, gradient, scale, lr, decay);
    else {
      const m = /** @type {Tensor} */ (optimizer.m.get(name)), v = /** @type {Tensor} */ (optimizer.v.get(name));
      adamw_update(parameter, gradient, m, v, optimizer.t, scale, lr, optimizer.betas, decay, 1e-8);
    }
  }
}
