// Functions that stand in for right ones where a mistake is planted.

import {
  attention_scores, beside, causal_attention, dropout, exp_minus, layer_norm_backward, linear, logsumexp, merge_heads, qk_norm,
  qk_norm_backward, qk_norm_gain, rms_norm_backward, rotary_attention, rotate, shared_by_queries, softmax_backward, split_groups,
  split_heads, split_one, sum_of_sharers, swiglu_backward,
} from "./ops.js";
import { Tensor, map, matmul, transpose_each, zeros } from "./tensor.js";

/** @typedef {import("./ops.js").Op} Op */
/** @typedef {import("./model.js").Engine} Engine */
/** @typedef {import("./model.js").BlockBackward} BlockBackward */

/** @param {Op} op @param {Partial<Op>} changes @returns {Engine} */
export function instead(op, changes) {
  return { equals: new Map([[op, { ...op, ...changes }]]) };
}

/** The same of both kinds of attention. @param {Partial<Op>} changes @returns {Engine} */
export function attending(changes) {
  return { equals: new Map([causal_attention, rotary_attention].map((op) => [op, { ...op, ...changes }])) };
}

/** Layer norm's backward with its two means multiplied by what is given. @param {number} first @param {number} second */
export function norm_backward(first, second) {
  return (/** @type {Tensor} */ dy, /** @type {any[]} */ saved) => {
    const [x, weight, , mean, rstd] = saved, D = x.width, dx = zeros(x, x.shape);
    for (let t = 0; t < x.rows; t++) {
      let sum = 0, inner = 0;
      const x_hat = (/** @type {number} */ d) => (x.data[t * D + d] - mean.data[t]) * rstd.data[t];
      for (let d = 0; d < D; d++) {
        const dx_hat = dy.data[t * D + d] * weight.data[d];
        sum += dx_hat;
        inner += dx_hat * x_hat(d);
      }
      for (let d = 0; d < D; d++) {
        dx.data[t * D + d] = rstd.data[t] * (dy.data[t * D + d] * weight.data[d] - (first * sum) / D - (second * x_hat(d) * inner) / D);
      }
    }
    return [dx, ...layer_norm_backward(dy, saved).slice(1)];
  };
}

/** Queries, keys and values of what an attention saved, the latter two as each head uses them; and how gradients of
 * these become the gradient of qkv. @param {any[]} saved */
function attended(saved) {
  const [qkv, , n_heads, n_kv_heads, base] = saved;
  if (saved.length === 5) { // causal attention's
    const [q, k, v] = split_heads(qkv, n_heads);
    return { n_heads, q, k, v, back: (/** @type {Tensor} */ dq, /** @type {Tensor} */ dk, /** @type {Tensor} */ dv) => merge_heads(dq, dk, dv) };
  }
  const [q, k, v] = split_groups(qkv, n_heads, n_kv_heads, base);
  return {
    n_heads, q, k: shared_by_queries(k, q), v: shared_by_queries(v, q),
    back: (/** @type {Tensor} */ dq, /** @type {Tensor} */ dk, /** @type {Tensor} */ dv, turn = /** @type {1 | -1} */ (-1), sum = sum_of_sharers) =>
      merge_heads(beside(rotate(dq, 0, base, turn), rotate(sum(dk, n_kv_heads), 0, base, turn), sum(dv, n_kv_heads))),
  };
}

/** Attention with parts of it changed.
 * @param {{ mask?: boolean, inner?: boolean, root?: boolean, key?: number, turn?: 1 | -1, sum?: typeof sum_of_sharers }} options */
export function attention_backward({ mask = true, inner = true, root = true, key = 1, turn, sum }) {
  return (/** @type {Tensor} */ dy, /** @type {any[]} */ saved) => {
    const { n_heads, q, k, v, back } = attended(saved), dy_heads = split_one(dy, n_heads);
    const scores = mask ? attention_scores(q, k) : unmasked_scores(q, k);
    const p = exp_minus(scores, logsumexp(scores)), scale = root ? 1 / Math.sqrt(q.width) : 1;
    const dp = matmul(dy_heads, transpose_each(v));
    const ds = inner ? softmax_backward(dp, p, scale) : map(p, (value, i) => value * dp.data[i] * scale);
    const dk = map(matmul(transpose_each(ds), q), (value) => value * key);
    return [back(matmul(ds, k), dk, matmul(transpose_each(p), dy_heads), turn, sum)];
  };
}

/** @param {Tensor} q @param {Tensor} k */
function unmasked_scores(q, k) {
  const root = Math.sqrt(q.width);
  return map(matmul(q, transpose_each(k)), (s) => s / root);
}

/** Either attention's; what it is given behind qkv is saved behind lse. @type {Op["forward"]} */
export function unmasked_forward(qkv, ...others) {
  const saved = [qkv, null, ...others], { q, k, v } = attended(saved), scores = unmasked_scores(q, k), lse = logsumexp(scores);
  saved[1] = lse;
  return { y: merge_heads(matmul(exp_minus(scores, lse), v)), saved };
}

/** The gradient of the first head that shares, for that of all. @param {Tensor} each @param {number} n_kv_heads */
export function first_sharer(each, n_kv_heads) {
  const [H, T, K] = each.shape, one = zeros(each, [n_kv_heads, T, K]);
  for (let g = 0; g < n_kv_heads; g++) one.data.set(each.data.subarray((g * H / n_kv_heads) * T * K, ((g * H) / n_kv_heads + 1) * T * K), g * T * K);
  return one;
}

/** RMS norm's backward without the path through the size. @param {Tensor} dy @param {any[]} saved */
export function fixed_size(dy, saved) {
  const [x, weight, r] = saved;
  return [map(dy, (d, i) => r.data[Math.floor(i / x.width)] * d * (weight ? weight.data[i % x.width] : 1)), ...rms_norm_backward(dy, saved).slice(1)];
}

/** SwiGLU's backward with another gradient of the gate. @param {(a: number) => number} slope */
export function gate_backward(slope) {
  return (/** @type {Tensor} */ dy, /** @type {any[]} */ saved) => {
    const [x] = saved, [dx] = /** @type {Tensor[]} */ (swiglu_backward(dy, saved)), F = dy.width;
    for (let i = 0; i < dy.data.length; i++) {
      const gate = i + Math.floor(i / F) * F;
      dx.data[gate] = dy.data[i] * x.data[gate + F] * slope(x.data[gate]);
    }
    return [dx];
  };
}

/** The backward of the norm of queries and keys with other gradients of these.
 * @param {(right: number, d: number, r: number, gain: number) => number} change of the right gradient, that of the result,
 * the head's 1 / root mean square, and the gain */
export function qk_backward(change) {
  return (/** @type {Tensor} */ dy, /** @type {any[]} */ saved) => {
    const [qkv, r, n_kv_heads] = saved, [dx] = /** @type {Tensor[]} */ (qk_norm_backward(dy, saved));
    const normed = r.shape[1], K = qkv.width / (normed + n_kv_heads), gain = qk_norm_gain(K);
    return [map(dx, (right, i) => {
      const h = Math.floor((i % qkv.width) / K);
      return h < normed ? change(right, dy.data[i], r.data[Math.floor(i / qkv.width) * normed + h], gain) : right;
    })];
  };
}

/** Squared ReLU's backward with another slope. @param {(x: number) => number} slope */
export function unit_backward(slope) {
  return (/** @type {Tensor} */ dy, /** @type {any[]} */ saved) => [map(dy, (d, i) => d * slope(saved[0].data[i]))];
}

/** An architecture's block without the stream's own path. @param {Op} norm @param {string} widens @param {Op} units
 * @param {Op} attention @param {boolean} [normed] whether queries and keys are normed before attention @returns {BlockBackward} */
export function branches_only(norm, widens, units, attention, normed = false) {
  return (dx, at) => {
    at.watch("dy", `${at.prefix}residual_2`, dx);
    let dh = at.backward("drop_2", dropout, dx);
    dh = at.backward("down", linear, dh);
    dh = at.backward(units.name, units, dh);
    dh = at.backward(widens, linear, dh);
    dx = at.backward("norm_2", norm, dh);
    at.watch("dy", `${at.prefix}residual_1`, dx);
    dh = at.backward("drop_1", dropout, dx);
    dh = at.backward("projection", linear, dh);
    dh = at.backward("attention", attention, dh);
    if (normed) dh = at.backward("qk_norm", qk_norm, dh);
    dh = at.backward("qkv", linear, dh);
    return at.backward("norm_1", norm, dh);
  };
}
