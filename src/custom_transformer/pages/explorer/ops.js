// The mirror of maths/ops.py: each function has the name, the order of arguments and the formula of the one there.
//
//     { y, saved } = op_forward(x, weight, ...)       saved: exactly what the backward needs
//     [dx, dweight, ...] = op_backward(dy, saved)     one gradient per input, in input order
//
// The page reads one text at a time, so there is no batch axis: T time, D d_model, H heads, G heads of keys and values,
// K head size, F d_ffn, V vocabulary. Sums are computed in float64, and results have their input's kind of numbers.

import { Tensor, contiguous, copied, map, matmul, sum_rows, transpose_each, zeros } from "./tensor.js";

/** @typedef {any[]} Saved */
/** @typedef {{ y: Tensor, saved: Saved }} Result */
/** @typedef {(Tensor | null)[]} Gradients */

export const IGNORE_INDEX = -100; // a label that is left out of the loss

// ------------------------------------------------------------------------------------------------ embedding

/** x[t] = table[input_ids[t]] @param {Int32Array} input_ids @param {Tensor} table @returns {Result} */
export function lookup_forward(input_ids, table) {
  const x = zeros(table, [input_ids.length, table.width]);
  input_ids.forEach((id, t) => x.data.set(table.data.subarray(id * x.width, (id + 1) * x.width), t * x.width));
  return { y: x, saved: [input_ids, table] };
}

/**
 * d_table[v] = Σ over the t where token v stands of dx[t]; a tied table is used twice, so its gradients add
 * @param {Tensor} dx @param {Saved} saved @param {Tensor | null} [d_head] @returns {Gradients}
 */
export function lookup_backward(dx, saved, d_head = null) {
  const [input_ids, table] = saved;
  const d_table = d_head === null ? zeros(table, table.shape) : copied(contiguous(d_head)), D = table.width;
  input_ids.forEach((/** @type {number} */ id, /** @type {number} */ t) => {
    for (let d = 0; d < D; d++) d_table.data[id * D + d] += dx.data[t * D + d];
  });
  return [null, d_table];
}

/** y[t] = x[t] + table[start + t] @param {Tensor} x @param {Tensor} table @param {number} [start] @returns {Result} */
export function positions_forward(x, table, start = 0) {
  const from = start * x.width;
  return { y: map(x, (value, i) => value + table.data[from + i]), saved: [table, start, x.rows] };
}

/** dx = dy; d_table[start + t] = dy[t], and zero for the other positions @param {Tensor} dy @param {Saved} saved
 * @returns {Gradients} */
export function positions_backward(dy, saved) {
  const [table, start] = saved;
  const d_table = zeros(table, table.shape);
  d_table.data.set(dy.data, start * dy.width);
  return [dy, d_table];
}

// --------------------------------------------------------------------------------------------------- linear

/** y = x W + b @param {Tensor} x @param {Tensor} weight @param {Tensor | null} bias @returns {Result} */
export function linear_forward(x, weight, bias) {
  const y = matmul(x, weight);
  if (bias !== null) for (let i = 0; i < y.data.length; i++) y.data[i] += bias.data[i % y.width];
  return { y, saved: [x, weight, bias] };
}

/** dx = dy Wᵀ, dW = xᵀ dy, db = Σ_rows dy @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function linear_backward(dy, saved) {
  const [x, weight, bias] = saved;
  const dweight = weight.transposed ? matmul(dy.T, x).T : matmul(x.T, dy); // as the weight lies in memory
  return [matmul(dy, weight.T), dweight, bias === null ? null : sum_rows(dy)];
}

// ----------------------------------------------------------------------------------------------- layer norm

/**
 * y = w ∘ x̂ + b, x̂ = (x − mean x) · rstd, rstd = (var x + ε)^−½
 * @param {Tensor} x @param {Tensor} weight @param {Tensor | null} bias @param {number} [eps] @returns {Result}
 */
export function layer_norm_forward(x, weight, bias, eps = 1e-5) {
  const D = x.width;
  const y = zeros(x, x.shape), mean = zeros(x, [x.rows, 1]), rstd = zeros(x, [x.rows, 1]);
  for (let t = 0; t < x.rows; t++) {
    const row = x.data.subarray(t * D, (t + 1) * D);
    let sum = 0, squares = 0;
    for (let d = 0; d < D; d++) sum += row[d];
    const m = sum / D;
    for (let d = 0; d < D; d++) squares += (row[d] - m) ** 2;
    const r = 1 / Math.sqrt(squares / D + eps);
    for (let d = 0; d < D; d++) y.data[t * D + d] = (row[d] - m) * r * weight.data[d] + (bias ? bias.data[d] : 0);
    mean.data[t] = m;
    rstd.data[t] = r;
  }
  return { y, saved: [x, weight, bias, mean, rstd] };
}

/**
 * dx = rstd · (dx̂ − mean dx̂ − x̂ ∘ mean(dx̂ ∘ x̂)), dx̂ = dy ∘ w; dw = Σ_rows dy ∘ x̂; db = Σ_rows dy
 * @param {Tensor} dy @param {Saved} saved @returns {Gradients}
 */
export function layer_norm_backward(dy, saved) {
  const [x, weight, bias, mean, rstd] = saved;
  const D = x.width, x_hat = new Float64Array(D), dx_hat = new Float64Array(D);
  const dx = zeros(x, x.shape), dweight = new Float64Array(D);
  for (let t = 0; t < x.rows; t++) {
    const row = t * D, m = mean.data[t], r = rstd.data[t];
    let sum = 0, inner = 0;
    for (let d = 0; d < D; d++) {
      x_hat[d] = (x.data[row + d] - m) * r;
      dx_hat[d] = dy.data[row + d] * weight.data[d];
      sum += dx_hat[d];
      inner += dx_hat[d] * x_hat[d];
      dweight[d] += dy.data[row + d] * x_hat[d];
    }
    for (let d = 0; d < D; d++) dx.data[row + d] = r * (dx_hat[d] - sum / D - x_hat[d] * (inner / D));
  }
  return [dx, map(weight, (_, d) => dweight[d]), bias === null ? null : sum_rows(dy)];
}

// ------------------------------------------------------------------------------------------------- rms norm

/** y = w ∘ x̂, x̂ = x r, r = (mean x² + ε)^−½; weight null: y = x̂
 * @param {Tensor} x @param {Tensor | null} weight @param {number} eps @returns {Result} */
export function rms_norm_forward(x, weight, eps) {
  const D = x.width, y = zeros(x, x.shape), r = zeros(x, [x.rows, 1]);
  for (let t = 0; t < x.rows; t++) {
    let squares = 0;
    for (let i = t * D; i < (t + 1) * D; i++) squares += x.data[i] * x.data[i];
    const scale = 1 / Math.sqrt(squares / D + eps);
    for (let d = 0; d < D; d++) y.data[t * D + d] = x.data[t * D + d] * scale * (weight ? weight.data[d] : 1);
    r.data[t] = scale;
  }
  return { y, saved: [x, weight, r] };
}

/** dx = r (dx̂ − x̂ mean(dx̂ ∘ x̂)), dx̂ = dy ∘ w; dw = Σ_rows dy ∘ x̂ @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function rms_norm_backward(dy, saved) {
  const [x, weight, r] = saved, D = x.width;
  const dx = zeros(x, x.shape), dx_hat = new Float64Array(D), dweight = new Float64Array(D);
  for (let t = 0; t < x.rows; t++) {
    const row = t * D, scale = r.data[t];
    let inner = 0;
    for (let d = 0; d < D; d++) {
      const x_hat = x.data[row + d] * scale;
      dx_hat[d] = dy.data[row + d] * (weight ? weight.data[d] : 1);
      inner += dx_hat[d] * x_hat;
      dweight[d] += dy.data[row + d] * x_hat;
    }
    for (let d = 0; d < D; d++) dx.data[row + d] = scale * (dx_hat[d] - x.data[row + d] * scale * (inner / D));
  }
  return [dx, weight && map(weight, (_, d) => dweight[d])];
}

// -------------------------------------------------------------------------------------------------- qk norm

const QK_LARGEST = 10; // the largest score that a query and a key can have

/** g = √(10 / √K), since a query and a key of root mean square g have at most the score K g² / √K
 * @param {number} head_size */
export function qk_norm_gain(head_size) {
  return Math.sqrt(QK_LARGEST / Math.sqrt(head_size));
}

/**
 * y = g x̂ of each query and key, x̂ = x r, r = (mean x² + ε)^−½ over a head's K numbers; values stay as they are
 * @param {Tensor} qkv (T, (H + 2·G)·K) @param {number} n_heads @param {number} n_kv_heads @param {number} eps @returns {Result}
 */
export function qk_norm_forward(qkv, n_heads, n_kv_heads, eps) {
  const normed = n_heads + n_kv_heads, K = qkv.width / (normed + n_kv_heads), gain = qk_norm_gain(K);
  const y = copied(qkv), r = zeros(qkv, [qkv.rows, normed, 1]);
  for (let t = 0; t < qkv.rows; t++) {
    for (let h = 0; h < normed; h++) {
      const first = t * qkv.width + h * K;
      let squares = 0;
      for (let i = first; i < first + K; i++) squares += qkv.data[i] * qkv.data[i];
      const scale = 1 / Math.sqrt(squares / K + eps);
      for (let i = first; i < first + K; i++) y.data[i] = gain * qkv.data[i] * scale;
      r.data[t * normed + h] = scale;
    }
  }
  return { y, saved: [qkv, r, n_kv_heads] };
}

/** dx = r (dx̂ − x̂ mean(dx̂ ∘ x̂)), dx̂ = g dy: as in rms_norm_backward, with one w for all: g
 * @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function qk_norm_backward(dy, saved) {
  const [qkv, r, n_kv_heads] = saved, normed = r.shape[1], K = qkv.width / (normed + n_kv_heads), gain = qk_norm_gain(K);
  const dx = copied(dy);
  for (let t = 0; t < qkv.rows; t++) {
    for (let h = 0; h < normed; h++) {
      const first = t * qkv.width + h * K, scale = r.data[t * normed + h];
      let inner = 0;
      for (let i = first; i < first + K; i++) inner += gain * dy.data[i] * qkv.data[i] * scale;
      for (let i = first; i < first + K; i++) dx.data[i] = scale * (gain * dy.data[i] - qkv.data[i] * scale * (inner / K));
    }
  }
  return [dx];
}

// ----------------------------------------------------------------------------------------------------- gelu

const _GELU_SCALE = Math.sqrt(2 / Math.PI);
const _GELU_CUBIC = 0.044715;

/** y = ½ x (1 + tanh u), u = √(2/π) (x + 0.044715 x³) @param {Tensor} x @returns {Result} */
export function gelu_forward(x) {
  return { y: map(x, (v) => 0.5 * v * (1 + gelu_tanh(v))), saved: [x] };
}

/** dx = dy ∘ (½ (1 + τ) + ½ x (1 − τ²) u′), τ = tanh u, u′ = √(2/π) (1 + 3 · 0.044715 x²)
 * @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function gelu_backward(dy, saved) {
  const x = saved[0].data;
  return [map(dy, (d, i) => d * gelu_slope(x[i]))];
}

/** τ = tanh u @param {number} x */
export function gelu_tanh(x) {
  return Math.tanh(_GELU_SCALE * (x + _GELU_CUBIC * x * x * x));
}

/** The derivative of GELU. @param {number} x */
export function gelu_slope(x) {
  const tau = gelu_tanh(x), du = _GELU_SCALE * (1 + 3 * _GELU_CUBIC * x * x);
  return 0.5 * (1 + tau) + 0.5 * x * (1 - tau * tau) * du;
}

// --------------------------------------------------------------------------------------------------- swiglu

/** y = a σ(a) ∘ b @param {Tensor} x (T, 2·F), the gate a beside b @returns {Result} (T, F) */
export function swiglu_forward(x) {
  const F = x.width / 2, y = zeros(x, [x.rows, F]);
  for (let t = 0; t < x.rows; t++) for (let f = 0; f < F; f++) y.data[t * F + f] = silu(x.data[2 * t * F + f]) * x.data[(2 * t + 1) * F + f];
  return { y, saved: [x] };
}

/** da = dy ∘ b ∘ σ (1 + a (1 − σ)), db = dy ∘ a σ @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function swiglu_backward(dy, saved) {
  const [x] = saved, F = dy.width, dx = zeros(x, x.shape);
  for (let t = 0; t < dy.rows; t++) {
    for (let f = 0; f < F; f++) {
      const gate = 2 * t * F + f, d = dy.data[t * F + f], a = x.data[gate];
      dx.data[gate] = d * x.data[gate + F] * silu_slope(a);
      dx.data[gate + F] = d * silu(a);
    }
  }
  return [dx];
}

/** @param {number} a */
export function sigmoid(a) {
  return 1 / (1 + Math.exp(-a));
}

/** a σ(a) @param {number} a */
export function silu(a) {
  return a * sigmoid(a);
}

/** The derivative of a σ(a), since σ′ = σ (1 − σ). @param {number} a */
export function silu_slope(a) {
  const s = sigmoid(a);
  return s * (1 + a * (1 - s));
}

// --------------------------------------------------------------------------------------------- squared relu

/** y = max(x, 0)² @param {Tensor} x @returns {Result} */
export function relu_squared_forward(x) {
  return { y: map(x, (v) => relu(v) ** 2), saved: [x] };
}

/** dx = dy ∘ 2 max(x, 0) @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function relu_squared_backward(dy, saved) {
  const x = saved[0].data;
  return [map(dy, (d, i) => d * 2 * relu(x[i]))];
}

/** max(x, 0) @param {number} x */
export function relu(x) {
  return Math.max(x, 0);
}

// -------------------------------------------------------------------------------------------------- dropout

/** y = x ∘ keep / (1 − p); keep null: y = x. The page never drops: it reads as a model in use does.
 * @param {Tensor} x @param {Tensor | null} keep @param {number} dropout @returns {Result} */
export function dropout_forward(x, keep, dropout) {
  return { y: keep === null ? x : map(x, (v, i) => (v * keep.data[i]) / (1 - dropout)), saved: [keep, dropout] };
}

/** dx = dy ∘ keep / (1 − p) @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function dropout_backward(dy, saved) {
  const [keep, dropout] = saved;
  return [keep === null ? dy : map(dy, (v, i) => (v * keep.data[i]) / (1 - dropout))];
}

// ------------------------------------------------------------------------------------------------ attention

/** (T, 3·D) -> queries, keys, values, each (H, T, K) @param {Tensor} qkv @param {number} n_heads */
export function split_heads(qkv, n_heads) {
  const T = qkv.rows, D = qkv.width / 3, K = D / n_heads;
  return [0, 1, 2].map((part) => {
    const heads = zeros(qkv, [n_heads, T, K]);
    for (let h = 0; h < n_heads; h++) {
      for (let t = 0; t < T; t++) {
        const from = t * 3 * D + part * D + h * K;
        heads.data.set(qkv.data.subarray(from, from + K), (h * T + t) * K);
      }
    }
    return heads;
  });
}

/** One or more (H, T, K) side by side -> (T, n·D): the inverse of `split_heads` @param {Tensor[]} heads */
export function merge_heads(...heads) {
  const [H, T, K] = heads[0].shape, width = heads.length * H * K;
  const merged = zeros(heads[0], [T, width]);
  heads.forEach((x, part) => {
    for (let h = 0; h < H; h++) {
      for (let t = 0; t < T; t++) {
        merged.data.set(x.data.subarray((h * T + t) * K, (h * T + t + 1) * K), t * width + part * H * K + h * K);
      }
    }
  });
  return merged;
}

/** S = Q Kᵀ / √K, −∞ where a key lies in the query's future @param {Tensor} q @param {Tensor} k (H, T, K) */
export function attention_scores(q, k) {
  const scores = matmul(q, transpose_each(k)), T = q.shape[1], root = Math.sqrt(q.width);
  return map(scores, (s, i) => (i % T > Math.floor(i / T) % T ? -Infinity : s / root));
}

/** log Σ exp of each row (…, 1), without overflow @param {Tensor} x */
export function logsumexp(x) {
  const lse = zeros(x, [...x.shape.slice(0, -1), 1]), n = x.width;
  for (let r = 0; r < x.rows; r++) {
    let largest = -Infinity, sum = 0;
    for (let i = r * n; i < (r + 1) * n; i++) largest = Math.max(largest, x.data[i]);
    for (let i = r * n; i < (r + 1) * n; i++) sum += Math.exp(x.data[i] - largest);
    lse.data[r] = largest + Math.log(sum);
  }
  return lse;
}

/** exp(x − lse), row by row @param {Tensor} x @param {Tensor} lse */
export function exp_minus(x, lse) {
  const y = zeros(x, x.shape);
  for (let r = 0, i = 0; r < x.rows; r++) for (let j = 0; j < x.width; j++, i++) y.data[i] = Math.exp(x.data[i] - lse.data[r]);
  return y;
}

/**
 * Y = P̃ V, P̃ = dropout(P), P = softmax(Q Kᵀ / √K + causal mask). P is not saved: log Σ exp is enough to rebuild it.
 * @param {Tensor} qkv @param {number} n_heads @param {Tensor | null} keep @param {number} dropout @returns {Result}
 */
export function causal_attention_forward(qkv, n_heads, keep, dropout) {
  const [q, k, v] = split_heads(qkv, n_heads);
  const scores = attention_scores(q, k);
  const lse = logsumexp(scores);
  const probabilities = dropout_forward(exp_minus(scores, lse), keep, dropout).y;
  return { y: merge_heads(matmul(probabilities, v)), saved: [qkv, lse, n_heads, keep, dropout] };
}

/**
 * dV = P̃ᵀ dY, dP̃ = dY Vᵀ, dS = P ∘ (dP − Σ_keys dP ∘ P), dQ = dS K / √K, dK = dSᵀ Q / √K
 * @param {Tensor} dy @param {Saved} saved @returns {Gradients}
 */
export function causal_attention_backward(dy, saved) {
  const [qkv, lse, n_heads, keep, dropout] = saved;
  const [q, k, v] = split_heads(qkv, n_heads);
  const dy_heads = split_one(dy, n_heads);

  const probabilities = exp_minus(attention_scores(q, k), lse);
  const { y: dropped, saved: drop } = dropout_forward(probabilities, keep, dropout);
  const dv = matmul(transpose_each(dropped), dy_heads);
  const d_probabilities = /** @type {Tensor} */ (dropout_backward(matmul(dy_heads, transpose_each(v)), drop)[0]);
  const d_scores = softmax_backward(d_probabilities, probabilities, 1 / Math.sqrt(q.width));
  return [merge_heads(matmul(d_scores, k), matmul(transpose_each(d_scores), q), dv)];
}

/** P ∘ (dP − Σ dP ∘ P) · scale, row by row @param {Tensor} dp @param {Tensor} p @param {number} scale */
export function softmax_backward(dp, p, scale) {
  const ds = zeros(p, p.shape), n = p.width;
  for (let r = 0; r < p.rows; r++) {
    let inner = 0;
    for (let i = r * n; i < (r + 1) * n; i++) inner += dp.data[i] * p.data[i];
    for (let i = r * n; i < (r + 1) * n; i++) ds.data[i] = p.data[i] * (dp.data[i] - inner) * scale;
  }
  return ds;
}

/** (T, D) -> (H, T, K) @param {Tensor} x @param {number} n_heads */
export function split_one(x, n_heads) {
  const T = x.rows, K = x.width / n_heads, heads = zeros(x, [n_heads, T, K]);
  for (let h = 0; h < n_heads; h++) {
    for (let t = 0; t < T; t++) {
      heads.data.set(x.data.subarray(t * x.width + h * K, t * x.width + (h + 1) * K), (h * T + t) * K);
    }
  }
  return heads;
}

// ------------------------------------------------------------------------- attention with turns and shared keys

/** How far the pair (i, i + K/2) is turned at position t. @param {number} t @param {number} i @param {number} K
 * @param {number} base */
export function angle(t, i, K, base) {
  return t * base ** (-i / (K / 2));
}

/**
 * Each pair (x_i, x_{i + K/2}) turned by t · base^(−2i/K); the turn by −1 times the angle takes a gradient back
 * @param {Tensor} x (H, T, K) @param {number} start @param {number} base @param {1 | -1} [direction]
 */
export function rotate(x, start, base, direction = 1) {
  const [H, T, K] = x.shape, half = K / 2, y = zeros(x, x.shape);
  for (let t = 0; t < T; t++) {
    for (let i = 0; i < half; i++) {
      const turn = angle(start + t, i, K, base), cos = Math.cos(turn), sin = direction * Math.sin(turn);
      for (let h = 0; h < H; h++) {
        const at = (h * T + t) * K + i, a = x.data[at], b = x.data[at + half];
        y.data[at] = a * cos - b * sin;
        y.data[at + half] = a * sin + b * cos;
      }
    }
  }
  return y;
}

/** (T, (H + 2·G)·K) -> turned queries (H, T, K), turned keys and plain values (G, T, K)
 * @param {Tensor} qkv @param {number} n_heads @param {number} n_kv_heads @param {number} base @param {number} [start] */
export function split_groups(qkv, n_heads, n_kv_heads, base, start = 0) {
  const heads = split_one(qkv, n_heads + 2 * n_kv_heads), q = some(heads, 0, n_heads);
  const k = some(heads, n_heads, n_kv_heads), v = some(heads, n_heads + n_kv_heads, n_kv_heads);
  return [rotate(q, start, base), rotate(k, start, base), v];
}

/** `count` of the heads, on the same numbers. @param {Tensor} heads @param {number} first @param {number} count */
function some(heads, first, count) {
  const size = heads.shape[1] * heads.shape[2];
  return new Tensor(heads.data.subarray(first * size, (first + count) * size), [count, ...heads.shape.slice(1)]);
}

/** Keys or values (G, T, K) as the H query heads use them: R = H / G neighbours share one -> (H, T, K)
 * @param {Tensor} shared @param {Tensor} q */
export function shared_by_queries(shared, q) {
  const [G, T, K] = shared.shape, H = q.shape[0], each = zeros(shared, [H, T, K]);
  for (let h = 0; h < H; h++) each.data.set(some(shared, Math.floor(h / (H / G)), 1).data, h * T * K);
  return each;
}

/** What `shared_by_queries` hands back: each shared key's gradient is the sum over its queries
 * @param {Tensor} each (H, T, K) @param {number} n_kv_heads @returns {Tensor} (G, T, K) */
export function sum_of_sharers(each, n_kv_heads) {
  const [H, T, K] = each.shape, sums = zeros(each, [n_kv_heads, T, K]);
  each.data.forEach((value, i) => { sums.data[Math.floor(i / (T * K) / (H / n_kv_heads)) * T * K + (i % (T * K))] += value; });
  return sums;
}

/** As `causal_attention_forward` on turned queries and keys; each group of queries shares its key and value.
 * @param {Tensor} qkv @param {number} n_heads @param {number} n_kv_heads @param {number} base @param {Tensor | null} keep
 * @param {number} dropout @returns {Result} */
export function rotary_attention_forward(qkv, n_heads, n_kv_heads, base, keep, dropout) {
  const [q, k, v] = split_groups(qkv, n_heads, n_kv_heads, base);
  const scores = attention_scores(q, shared_by_queries(k, q));
  const lse = logsumexp(scores);
  const probabilities = dropout_forward(exp_minus(scores, lse), keep, dropout).y;
  const y = merge_heads(matmul(probabilities, shared_by_queries(v, q)));
  return { y, saved: [qkv, lse, n_heads, n_kv_heads, base, keep, dropout] };
}

/** As `causal_attention_backward`; a shared key's gradients add over its queries, and the turns are undone.
 * @param {Tensor} dy @param {Saved} saved @returns {Gradients} */
export function rotary_attention_backward(dy, saved) {
  const [qkv, lse, n_heads, n_kv_heads, base, keep, dropout] = saved;
  const [q, k, v] = split_groups(qkv, n_heads, n_kv_heads, base);
  const k_each = shared_by_queries(k, q), v_each = shared_by_queries(v, q);
  const dy_heads = split_one(dy, n_heads);

  const probabilities = exp_minus(attention_scores(q, k_each), lse);
  const { y: dropped, saved: drop } = dropout_forward(probabilities, keep, dropout);
  const dv_each = matmul(transpose_each(dropped), dy_heads);
  const d_probabilities = /** @type {Tensor} */ (dropout_backward(matmul(dy_heads, transpose_each(v_each)), drop)[0]);
  const d_scores = softmax_backward(d_probabilities, probabilities, 1 / Math.sqrt(q.width));
  const dq = matmul(d_scores, k_each), dk_each = matmul(transpose_each(d_scores), q);
  const dk = sum_of_sharers(dk_each, n_kv_heads), dv = sum_of_sharers(dv_each, n_kv_heads);
  return [merge_heads(beside(rotate(dq, 0, base, -1), rotate(dk, 0, base, -1), dv))];
}

/** Heads of several kinds as one (H + 2·G, T, K). @param {Tensor[]} kinds */
export function beside(...kinds) {
  const all = zeros(kinds[0], [kinds.reduce((sum, kind) => sum + kind.shape[0], 0), ...kinds[0].shape.slice(1)]);
  let place = 0;
  for (const { data } of kinds) {
    all.data.set(data, place);
    place += data.length;
  }
  return all;
}

// ------------------------------------------------------------------------------------------------- the loss

/** −log softmax(z)[label] per row, 0 where the label does not count; and log Σ_v exp z_v
 * @param {Tensor} logits @param {Int32Array} labels */
export function _token_losses(logits, labels) {
  const lse = logsumexp(logits);
  const losses = map(lse, (value, t) =>
    labels[t] === IGNORE_INDEX ? 0 : value - logits.data[t * logits.width + labels[t]]);
  return { losses, lse };
}

/** L = 1/n Σ (log Σ_v exp z_v − z_label): the mean over the n labels that are not IGNORE_INDEX, in nats
 * @param {Tensor} logits @param {Int32Array} labels @returns {Result} */
export function cross_entropy_forward(logits, labels) {
  const { losses, lse } = _token_losses(logits, labels);
  const count = labels.filter((label) => label !== IGNORE_INDEX).length;
  const loss = zeros(logits, [1]);
  let sum = 0;
  for (const value of losses.data) sum += value;
  loss.data[0] = sum / count;
  return { y: loss, saved: [logits, labels, lse, count] };
}

/** dz = dL/n · (softmax z − onehot(label)) @param {number} dloss @param {Saved} saved @returns {Gradients} */
export function cross_entropy_backward(dloss, saved) {
  const [logits, labels, lse, count] = saved;
  const dz = exp_minus(logits, lse), V = dz.width;
  labels.forEach((/** @type {number} */ label, /** @type {number} */ t) => {
    const scale = label === IGNORE_INDEX ? 0 : dloss / count;
    for (let i = t * V; i < (t + 1) * V; i++) dz.data[i] *= scale;
    if (scale) dz.data[t * V + label] -= scale;
  });
  return [dz];
}

// ------------------------------------------------------------------------ the pairs, with their parameters' names

/**
 * @typedef {{ name: string, forward: (...inputs: any[]) => Result, backward: (dy: any, saved: Saved, ...others: any[]) => Gradients,
 *   parameters: string[] }} Op
 */

/** @type {Op} */
export const lookup = { name: "lookup", forward: lookup_forward, backward: lookup_backward, parameters: [""] };
/** @type {Op} */
export const positions = { name: "positions", forward: positions_forward, backward: positions_backward, parameters: [""] };
/** @type {Op} */
export const linear = { name: "linear", forward: linear_forward, backward: linear_backward, parameters: ["weight", "bias"] };
/** @type {Op} */
export const layer_norm = { name: "layer_norm", forward: layer_norm_forward, backward: layer_norm_backward, parameters: ["weight", "bias"] };
/** @type {Op} */
export const rms_norm = { name: "rms_norm", forward: rms_norm_forward, backward: rms_norm_backward, parameters: ["weight"] };
/** @type {Op} */
export const qk_norm = { name: "qk_norm", forward: qk_norm_forward, backward: qk_norm_backward, parameters: [] };
/** @type {Op} */
export const swiglu = { name: "swiglu", forward: swiglu_forward, backward: swiglu_backward, parameters: [] };
/** @type {Op} */
export const relu_squared = { name: "relu_squared", forward: relu_squared_forward, backward: relu_squared_backward, parameters: [] };
/** @type {Op} */
export const rotary_attention = { name: "rotary_attention", forward: rotary_attention_forward, backward: rotary_attention_backward, parameters: [] };
/** @type {Op} */
export const gelu = { name: "gelu", forward: gelu_forward, backward: gelu_backward, parameters: [] };
/** @type {Op} */
export const dropout = { name: "dropout", forward: dropout_forward, backward: dropout_backward, parameters: [] };
/** @type {Op} */
export const causal_attention = { name: "causal_attention", forward: causal_attention_forward, backward: causal_attention_backward, parameters: [] };
/** @type {Op} */
export const cross_entropy = { name: "cross_entropy", forward: cross_entropy_forward, backward: cross_entropy_backward, parameters: [] };
