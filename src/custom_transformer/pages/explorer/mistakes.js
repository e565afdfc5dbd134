// Mistakes that people make in a backward, or in a mask, to be planted: functions that stand in for the right ones.

import { block_backward } from "./gpt2.js";
import {
  attention_scores, causal_attention, cross_entropy, cross_entropy_backward, dropout, exp_minus, gelu, gelu_tanh,
  layer_norm, layer_norm_backward, linear, linear_backward, logsumexp, lookup, lookup_backward, merge_heads, positions,
  positions_backward, softmax_backward, split_heads, split_one,
} from "./ops.js";
import { Tensor, add, contiguous, map, matmul, transpose_each, zeros } from "./tensor.js";

/** @typedef {import("./ops.js").Op} Op */
/** @typedef {import("./model.js").Engine} Engine */

/**
 * seen: whether finite differences can betray it: they compare the backward with the forward as it is.
 * @typedef {{ id: string, title: string, op: string, right: string, planted: string, words: string, seen: boolean, engine: Engine }} Mistake
 */

/** @param {Op} op @param {Partial<Op>} changes @returns {Engine} */
function instead(op, changes) {
  return { equals: new Map([[op, { ...op, ...changes }]]), block_backward };
}

/** Layer norm's backward with its two means multiplied by what is given. @param {number} first @param {number} second */
function norm_backward(first, second) {
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

/** Attention with parts of it changed. @param {{ mask?: boolean, inner?: boolean, root?: boolean, key?: number }} options */
function attention_backward({ mask = true, inner = true, root = true, key = 1 }) {
  return (/** @type {Tensor} */ dy, /** @type {any[]} */ saved) => {
    const [qkv, , n_heads] = saved, [q, k, v] = split_heads(qkv, n_heads), dy_heads = split_one(dy, n_heads);
    const scores = mask ? attention_scores(q, k) : unmasked_scores(q, k);
    const p = exp_minus(scores, logsumexp(scores)), scale = root ? 1 / Math.sqrt(q.width) : 1;
    const dp = matmul(dy_heads, transpose_each(v));
    const ds = inner ? softmax_backward(dp, p, scale) : map(p, (value, i) => value * dp.data[i] * scale);
    const dk = map(matmul(transpose_each(ds), q), (value) => value * key);
    return [merge_heads(matmul(ds, k), dk, matmul(transpose_each(p), dy_heads))];
  };
}

/** @param {Tensor} q @param {Tensor} k */
function unmasked_scores(q, k) {
  const root = Math.sqrt(q.width);
  return map(matmul(q, transpose_each(k)), (s) => s / root);
}

/** @type {Op["forward"]} */
function unmasked_forward(qkv, n_heads) {
  const [q, k, v] = split_heads(qkv, n_heads), scores = unmasked_scores(q, k), lse = logsumexp(scores);
  return { y: merge_heads(matmul(exp_minus(scores, lse), v)), saved: [qkv, lse, n_heads, null, 0] };
}

/** The block without the stream's own path. @type {typeof block_backward} */
function branches_only(dx, at) {
  at.watch("dy", `${at.prefix}residual_2`, dx);
  let dh = at.backward("drop_2", dropout, dx);
  dh = at.backward("down", linear, dh);
  dh = at.backward("gelu", gelu, dh);
  dh = at.backward("up", linear, dh);
  dx = at.backward("norm_2", layer_norm, dh);
  at.watch("dy", `${at.prefix}residual_1`, dx);
  dh = at.backward("drop_1", dropout, dx);
  dh = at.backward("projection", linear, dh);
  dh = at.backward("attention", causal_attention, dh);
  dh = at.backward("qkv", linear, dh);
  return at.backward("norm_1", layer_norm, dh);
}

/** @type {Mistake[]} */
export const MISTAKES = [
  {
    id: "norm_mean", title: "Layer norm: a lost mean", op: "layer_norm", seen: true,
    right: "dx = rstd * (dx_hat - dx_hat.mean() - x_hat * (dx_hat * x_hat).mean())",
    planted: "dx = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean())",
    words: "The path through mean x is forgotten. Only what lies before a norm is off, so the last layers look right.",
    engine: instead(layer_norm, { backward: norm_backward(0, 1) }),
  },
  {
    id: "norm_rstd", title: "Layer norm: the path through the deviation lost", op: "layer_norm", seen: true,
    right: "dx = rstd * (dx_hat - dx_hat.mean() - x_hat * (dx_hat * x_hat).mean())",
    planted: "dx = rstd * (dx_hat - dx_hat.mean())",
    words: "The deviation is treated as a constant. Small for a wide model, so the loss still falls.",
    engine: instead(layer_norm, { backward: norm_backward(1, 0) }),
  },
  {
    id: "gelu", title: "GELU: half of the product rule", op: "gelu", seen: true,
    right: "dx = dy * (0.5 * (1 + tau) + 0.5 * x * (1 - tau**2) * du)",
    planted: "dx = dy * 0.5 * (1 + tau)",
    words: "x stands twice in ½ x (1 + tanh u): only its first place was differentiated.",
    engine: instead(gelu, { backward: (dy, saved) => [map(dy, (d, i) => d * 0.5 * (1 + gelu_tanh(saved[0].data[i])))] }),
  },
  {
    id: "tied", title: "Tied table: the head's contribution forgotten", op: "lookup", seen: true,
    right: "return None, d_table + d_head",
    planted: "return None, d_table",
    words: "The table is used twice. Without the head's part only rows of tokens in the text learn; one tensor in the check is off.",
    engine: instead(lookup, { backward: (dx, saved) => lookup_backward(dx, saved, null) }),
  },
  {
    id: "tied_lookup", title: "Tied table: the embedding's contribution forgotten", op: "lookup", seen: true,
    right: "return None, d_table + d_head",
    planted: "return None, d_head",
    words: "The other half of the sum. The rows of tokens in the text are off.",
    engine: instead(lookup, { backward: (dx, saved, d_head = null) => [null, d_head ? contiguous(d_head) : lookup_backward(dx, saved)[1]] }),
  },
  {
    id: "repeated", title: "Embedding: a token that stands twice counts once", op: "lookup", seen: true,
    right: "d_table = zeros.index_add(0, input_ids, dx)",
    planted: "d_table[input_ids] = dx",
    words: "Assigning overwrites where adding is meant. It shows only in a text in which a token is repeated.",
    engine: instead(lookup, { backward: (dx, saved, d_head = null) => {
      const [ids, table] = saved, once = zeros(table, table.shape), D = dx.width;
      ids.forEach((/** @type {number} */ id, /** @type {number} */ t) => once.data.set(dx.data.subarray(t * D, (t + 1) * D), id * D));
      return [null, d_head ? add(once, contiguous(d_head)) : once];
    } }),
  },
  {
    id: "sign", title: "Loss: a sign", op: "cross_entropy", seen: true,
    right: "dz = (softmax(z) - onehot(label)) / n",
    planted: "dz = (onehot(label) - softmax(z)) / n",
    words: "Every gradient points uphill: right in size, wrong in sign. Training climbs.",
    engine: instead(cross_entropy, { backward: (dloss, saved) => cross_entropy_backward(-dloss, saved) }),
  },
  {
    id: "mean_loss", title: "Loss: the sum's gradient for the mean", op: "cross_entropy", seen: true,
    right: "dz = (softmax(z) - onehot(label)) / n",
    planted: "dz = softmax(z) - onehot(label)",
    words: "All gradients are n times too large, n the number of labels. Clipping or AdamW hide it; plain SGD does not.",
    engine: instead(cross_entropy, { backward: (dloss, saved) => cross_entropy_backward(dloss * saved[3], saved) }),
  },
  {
    id: "residual", title: "Residual: the stream's own path forgotten", op: "residual", seen: true,
    right: 'dx = dx + at.backward("norm_2", layer_norm, dh)',
    planted: 'dx = at.backward("norm_2", layer_norm, dh)',
    words: "x + h hands its gradient to both sides. Without the stream's side, lower layers hear only what branches say.",
    engine: { equals: new Map(), block_backward: branches_only },
  },
  {
    id: "softmax", title: "Softmax: its rows' sum lost", op: "causal_attention", seen: true,
    right: "d_scores = p * (dp - (dp * p).sum())",
    planted: "d_scores = p * dp",
    words: "Raising one score lowers the other probabilities; this backward does not know it.",
    engine: instead(causal_attention, { backward: attention_backward({ inner: false }) }),
  },
  {
    id: "root", title: "Attention: 1/√K forgotten in the backward", op: "causal_attention", seen: true,
    right: "dq, dk = d_scores @ k / sqrt(K), d_scores.T @ q / sqrt(K)",
    planted: "dq, dk = d_scores @ k, d_scores.T @ q",
    words: "Queries and keys get √K times their gradient; values are right.",
    engine: instead(causal_attention, { backward: attention_backward({ root: false }) }),
  },
  {
    id: "key_sign", title: "Attention: the keys' sign", op: "causal_attention", seen: true,
    right: "dk = d_scores.T @ q / sqrt(K)",
    planted: "dk = -d_scores.T @ q / sqrt(K)",
    words: "Keys move away from where they should. A third of qkv is off, and everything below it.",
    engine: instead(causal_attention, { backward: attention_backward({ key: -1 }) }),
  },
  {
    id: "mask_backward", title: "Attention: the future masked forward only", op: "causal_attention", seen: true,
    right: "probabilities = exp(attention_scores(q, k) - lse)        (masked)",
    planted: "probabilities = softmax(q @ k.T / sqrt(K))        (in the backward)",
    words: "The backward rebuilds probabilities that the forward never had.",
    engine: instead(causal_attention, { backward: attention_backward({ mask: false }) }),
  },
  {
    id: "mask", title: "Attention: the future not masked at all", op: "causal_attention", seen: false,
    right: "scores.masked_fill(future, -inf)",
    planted: "scores",
    words: "Forward and backward agree, so no finite difference betrays it. The model reads the answer: its loss in training falls fast and means nothing.",
    engine: instead(causal_attention, { forward: unmasked_forward, backward: attention_backward({ mask: false }) }),
  },
  {
    id: "positions", title: "Positions: the gradient one row off", op: "positions", seen: true,
    right: "d_table[start + t] = dy[t]",
    planted: "d_table[start + t + 1] = dy[t]",
    words: "Each position learns what the one before it should. One tensor in the check is off.",
    engine: instead(positions, { backward: (dy, saved) => {
      const [dx, d_table] = positions_backward(dy, saved), shifted = zeros(saved[0], saved[0].shape);
      shifted.data.set(/** @type {Tensor} */ (d_table).data.subarray(0, shifted.data.length - dy.width), dy.width);
      return [dx, shifted];
    } }),
  },
  {
    id: "bias", title: "Linear: the bias's gradient averaged", op: "linear", seen: true,
    right: "dbias = dy.sum(rows)",
    planted: "dbias = dy.mean(rows)",
    words: "Only biases are off, by the number of tokens: they learn that much slower.",
    engine: instead(linear, { backward: (dy, saved) => {
      const [dx, dweight, dbias] = linear_backward(dy, saved);
      return [dx, dweight, dbias && map(dbias, (value) => value / dy.rows)];
    } }),
  },
];
