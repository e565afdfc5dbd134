// Mistakes that people make in a backward, or in a mask, to be planted: functions that stand in for the right ones.

import { layers_of } from "./layers.js";
import { kv_heads } from "./llama.js";
import {
  attention_scores, beside, causal_attention, cross_entropy, cross_entropy_backward, dropout, exp_minus, gelu, gelu_tanh,
  layer_norm, layer_norm_backward, linear, linear_backward, logsumexp, lookup, lookup_backward, merge_heads, positions,
  positions_backward, rms_norm, rms_norm_backward, rotary_attention, rotate, shared_by_queries, sigmoid, silu,
  softmax_backward, split_groups, split_heads, split_one, sum_of_sharers, swiglu, swiglu_backward,
} from "./ops.js";
import { Tensor, add, contiguous, map, matmul, transpose_each, zeros } from "./tensor.js";

/** @typedef {import("./ops.js").Op} Op */
/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./model.js").Engine} Engine */
/** @typedef {import("./model.js").BlockBackward} BlockBackward */

/**
 * op: the operation that has it, or "attention" for those of both architectures.
 * possible: which models can have it, where not all that have the operation.
 * seen: whether finite differences can betray it: they compare the backward with the forward as it is.
 * @typedef {{ id: string, title: string, op: string, right: string, planted: string, words: string,
 *   seen: boolean, possible?: (config: Config) => boolean, engine: Engine }} Mistake
 */

/** @param {Op} op @param {Partial<Op>} changes @returns {Engine} */
function instead(op, changes) {
  return { equals: new Map([[op, { ...op, ...changes }]]) };
}

/** The same of both architectures' attention. @param {Partial<Op>} changes @returns {Engine} */
function attending(changes) {
  return { equals: new Map([causal_attention, rotary_attention].map((op) => [op, { ...op, ...changes }])) };
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
function attention_backward({ mask = true, inner = true, root = true, key = 1, turn, sum }) {
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
function unmasked_forward(qkv, ...others) {
  const saved = [qkv, null, ...others], { q, k, v } = attended(saved), scores = unmasked_scores(q, k), lse = logsumexp(scores);
  saved[1] = lse;
  return { y: merge_heads(matmul(exp_minus(scores, lse), v)), saved };
}

/** The gradient of the first head that shares, for that of all. @param {Tensor} each @param {number} n_kv_heads */
function first_sharer(each, n_kv_heads) {
  const [H, T, K] = each.shape, one = zeros(each, [n_kv_heads, T, K]);
  for (let g = 0; g < n_kv_heads; g++) one.data.set(each.data.subarray((g * H / n_kv_heads) * T * K, ((g * H) / n_kv_heads + 1) * T * K), g * T * K);
  return one;
}

/** RMS norm's backward without the path through the size. @param {Tensor} dy @param {any[]} saved */
function fixed_size(dy, saved) {
  const [x, weight, r] = saved;
  return [map(dy, (d, i) => r.data[Math.floor(i / x.width)] * d * weight.data[i % x.width]), ...rms_norm_backward(dy, saved).slice(1)];
}

/** SwiGLU's backward with another gradient of the gate. @param {(a: number) => number} slope */
function gate_backward(slope) {
  return (/** @type {Tensor} */ dy, /** @type {any[]} */ saved) => {
    const [x] = saved, [dx] = /** @type {Tensor[]} */ (swiglu_backward(dy, saved)), F = dy.width;
    for (let i = 0; i < dy.data.length; i++) {
      const gate = i + Math.floor(i / F) * F;
      dx.data[gate] = dy.data[i] * x.data[gate + F] * slope(x.data[gate]);
    }
    return [dx];
  };
}

/** The block without the stream's own path. @param {Op} norm @param {string} widens @param {string} units @param {Op} unit
 * @param {Op} attention @returns {BlockBackward} */
function branches_only(norm, widens, units, unit, attention) {
  return (dx, at) => {
    at.watch("dy", `${at.prefix}residual_2`, dx);
    let dh = at.backward("drop_2", dropout, dx);
    dh = at.backward("down", linear, dh);
    dh = at.backward(units, unit, dh);
    dh = at.backward(widens, linear, dh);
    dx = at.backward("norm_2", norm, dh);
    at.watch("dy", `${at.prefix}residual_1`, dx);
    dh = at.backward("drop_1", dropout, dx);
    dh = at.backward("projection", linear, dh);
    dh = at.backward("attention", attention, dh);
    dh = at.backward("qkv", linear, dh);
    return at.backward("norm_1", norm, dh);
  };
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
    id: "rms", title: "RMS norm: the path through the size lost", op: "rms_norm", seen: true,
    right: "dx = r * (dx_hat - x_hat * (dx_hat * x_hat).mean())",
    planted: "dx = r * dx_hat",
    words: "The row's size is treated as a constant. Small for a wide model, so the loss still falls.",
    engine: instead(rms_norm, { backward: fixed_size }),
  },
  {
    id: "rms_gain", title: "RMS norm: the gain outside the mean", op: "rms_norm", seen: true,
    right: "dx = r * (dx_hat - x_hat * (dx_hat * x_hat).mean())",
    planted: "dx = r * (dx_hat - x_hat * (dy * x_hat).mean())",
    words: "While all gains are 1, as before training, nothing is wrong. It grows with them.",
    engine: instead(rms_norm, { backward: (dy, saved) => {
      const [x, weight, r] = saved, ones = map(weight, () => 1), D = x.width;
      const [plain] = /** @type {Tensor[]} */ (rms_norm_backward(dy, [x, ones, r])); // r (dy − x̂ mean(dy ∘ x̂))
      return [map(dy, (d, i) => plain.data[i] + r.data[Math.floor(i / D)] * d * (weight.data[i % D] - 1)), ...rms_norm_backward(dy, saved).slice(1)];
    } }),
  },
  {
    id: "swiglu_gate", title: "SwiGLU: half of the product rule", op: "swiglu", seen: true,
    right: "da = dy * b * s * (1 + a * (1 - s))",
    planted: "da = dy * b * s",
    words: "a stands twice in a σ(a): only its first place was differentiated.",
    engine: instead(swiglu, { backward: gate_backward(sigmoid) }),
  },
  {
    id: "swiglu_sign", title: "SwiGLU: the sigmoid's slope with a wrong sign", op: "swiglu", seen: true,
    right: "da = dy * b * s * (1 + a * (1 - s))",
    planted: "da = dy * b * s * (1 - a * (1 - s))",
    words: "For gates near 0 the two are alike, so training begins well.",
    engine: instead(swiglu, { backward: gate_backward((a) => sigmoid(a) - silu(a) * (1 - sigmoid(a))) }),
  },
  {
    id: "gelu", title: "GELU: half of the product rule", op: "gelu", seen: true,
    right: "dx = dy * (0.5 * (1 + tau) + 0.5 * x * (1 - tau**2) * du)",
    planted: "dx = dy * 0.5 * (1 + tau)",
    words: "x stands twice in ½ x (1 + tanh u): only its first place was differentiated.",
    engine: instead(gelu, { backward: (dy, saved) => [map(dy, (d, i) => d * 0.5 * (1 + gelu_tanh(saved[0].data[i])))] }),
  },
  {
    id: "tied", title: "Tied table: the head's contribution forgotten", op: "lookup", seen: true, possible: ({ tie_embeddings }) => tie_embeddings,
    right: "return None, d_table + d_head",
    planted: "return None, d_table",
    words: "The table is used twice. Without the head's part only rows of tokens in the text learn; one tensor in the check is off.",
    engine: instead(lookup, { backward: (dx, saved) => lookup_backward(dx, saved, null) }),
  },
  {
    id: "tied_lookup", title: "Tied table: the embedding's contribution forgotten", op: "lookup", seen: true, possible: ({ tie_embeddings }) => tie_embeddings,
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
    engine: {
      equals: new Map(),
      block_backward: { gpt2: branches_only(layer_norm, "up", "gelu", gelu, causal_attention), llama: branches_only(rms_norm, "gate_up", "swiglu", swiglu, rotary_attention) },
    },
  },
  {
    id: "softmax", title: "Softmax: its rows' sum lost", op: "attention", seen: true,
    right: "d_scores = p * (dp - (dp * p).sum())",
    planted: "d_scores = p * dp",
    words: "Raising one score lowers the other probabilities; this backward does not know it.",
    engine: attending({ backward: attention_backward({ inner: false }) }),
  },
  {
    id: "root", title: "Attention: 1/√K forgotten in the backward", op: "attention", seen: true,
    right: "dq, dk = d_scores @ k / sqrt(K), d_scores.T @ q / sqrt(K)",
    planted: "dq, dk = d_scores @ k, d_scores.T @ q",
    words: "Queries and keys get √K times their gradient; values are right.",
    engine: attending({ backward: attention_backward({ root: false }) }),
  },
  {
    id: "key_sign", title: "Attention: the keys' sign", op: "attention", seen: true,
    right: "dk = d_scores.T @ q / sqrt(K)",
    planted: "dk = -d_scores.T @ q / sqrt(K)",
    words: "Keys move away from where they should. A third of qkv is off, and everything below it.",
    engine: attending({ backward: attention_backward({ key: -1 }) }),
  },
  {
    id: "mask_backward", title: "Attention: the future masked forward only", op: "attention", seen: true,
    right: "probabilities = exp(attention_scores(q, k) - lse)        (masked)",
    planted: "probabilities = softmax(q @ k.T / sqrt(K))        (in the backward)",
    words: "The backward rebuilds probabilities that the forward never had.",
    engine: attending({ backward: attention_backward({ mask: false }) }),
  },
  {
    id: "mask", title: "Attention: the future not masked at all", op: "attention", seen: false,
    right: "scores.masked_fill(future, -inf)",
    planted: "scores",
    words: "Forward and backward agree, so no finite difference betrays it. The model reads the answer: its loss in training falls fast and means nothing.",
    engine: attending({ forward: unmasked_forward, backward: attention_backward({ mask: false }) }),
  },
  {
    id: "turn", title: "Rotary attention: turned the same way twice", op: "rotary_attention", seen: true,
    right: "rotate(dq, 0, base, -1), rotate(dk, 0, base, -1)",
    planted: "rotate(dq, 0, base), rotate(dk, 0, base)",
    words: "A gradient goes back through the transpose of a turn, which is the turn the other way. The first token is not turned, so its rows are right.",
    engine: instead(rotary_attention, { backward: attention_backward({ turn: 1 }) }),
  },
  {
    id: "sharers", title: "Rotary attention: a shared key learns from one head", op: "rotary_attention", seen: true, possible: (config) => kv_heads(config) < config.n_heads,
    right: "dk, dv = (d.unflatten(1, (n_kv_heads, -1)).sum(2) for d in (dk_each, dv_each))",
    planted: "dk, dv = (d.unflatten(1, (n_kv_heads, -1))[:, :, 0] for d in (dk_each, dv_each))",
    words: "Several heads use one key and one value; the gradients of all of them add.",
    engine: instead(rotary_attention, { backward: attention_backward({ sum: first_sharer }) }),
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
    id: "bias", title: "Linear: the bias's gradient averaged", op: "linear", seen: true, possible: ({ bias }) => bias === true,
    right: "dbias = dy.sum(rows)",
    planted: "dbias = dy.mean(rows)",
    words: "Only biases are off, by the number of tokens: they learn that much slower.",
    engine: instead(linear, { backward: (dy, saved) => {
      const [dx, dweight, dbias] = linear_backward(dy, saved);
      return [dx, dweight, dbias && map(dbias, (value) => value / dy.rows)];
    } }),
  },
];

/** Those that the model can have. @param {Config} config */
export function mistakes_of(config) {
  const layers = layers_of(config);
  return MISTAKES.filter((mistake) => layers.some(({ op }) => has(mistake, op)) && (!mistake.possible || mistake.possible(config)));
}

/** Whether the mistake is in this operation. @param {Mistake | null} mistake @param {string} op */
export function has(mistake, op) {
  return mistake !== null && (mistake.op === op || (mistake.op === "attention" && op.endsWith("attention")));
}
