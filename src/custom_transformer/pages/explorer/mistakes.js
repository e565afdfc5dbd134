// Mistakes that people make in a backward, or in a mask, to be planted.

import { architecture_of } from "./architecture.js";
import { layers_of } from "./layers.js";
import { kv_heads } from "./llama.js";
import {
  causal_attention, cross_entropy, cross_entropy_backward, gelu, gelu_tanh, layer_norm, linear, linear_backward, lookup,
  lookup_backward, positions, positions_backward, qk_norm, qk_norm_forward, relu, relu_squared, rms_norm, rms_norm_backward,
  rotary_attention, sigmoid, silu, swiglu,
} from "./ops.js";
import { Tensor, add, contiguous, map, zeros } from "./tensor.js";
import {
  attending, attention_backward, branches_only, first_sharer, fixed_size, gate_backward, instead, norm_backward, qk_backward,
  unit_backward, unmasked_forward,
} from "./wrong.js";

/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./model.js").Engine} Engine */

/**
 * op: the operation that has it, or "attention" for either kind of attention.
 * possible: which models can have it, where not all that have the operation.
 * seen: whether finite differences can betray it: they compare the backward with the forward as it is.
 * @typedef {{ id: string, title: string, op: string, right: string, planted: string, words: string,
 *   seen: boolean, possible?: (config: Config) => boolean, engine: Engine }} Mistake
 */

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
    id: "rms_gain", title: "RMS norm: the gain outside the mean", op: "rms_norm", seen: true, possible: (config) => architecture_of(config).gains,
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
    id: "qk_size", title: "QK norm: the path through the size lost", op: "qk_norm", seen: true,
    right: "dx = r * (dx_hat - x_hat * (dx_hat * x_hat).mean())",
    planted: "dx = r * dx_hat",
    words: "How long a query or key is does not count. This gradient asks for other lengths all the same.",
    engine: instead(qk_norm, { backward: qk_backward((_, d, r, gain) => r * gain * d) }),
  },
  {
    id: "qk_gain", title: "QK norm: the gain forgotten in the backward", op: "qk_norm", seen: true,
    right: "dx_hat = qk_norm_gain(K) * dy_heads",
    planted: "dx_hat = dy_heads",
    words: "Only the direction of these gradients is right: queries and keys get 1/g of theirs. What does not go through them is right.",
    engine: instead(qk_norm, { backward: qk_backward((right, _d, _r, gain) => right / gain) }),
  },
  {
    id: "qk_values", title: "QK norm: values normed, too", op: "qk_norm", seen: false,
    right: "x, values = heads.split([n_heads + n_kv_heads, n_kv_heads], 2)",
    planted: "x, values = heads.split([n_heads + 2 * n_kv_heads, 0], 2)",
    words: "All shapes fit, and forward and backward agree, so no finite difference betrays it. It is another model: its values have all one size, and cannot say more or less.",
    engine: instead(qk_norm, { forward: (qkv, n_heads, n_kv_heads, eps) => qk_norm_forward(qkv, n_heads + 2 * n_kv_heads, 0, eps) }),
  },
  {
    id: "relu_slope", title: "Squared ReLU: the slope of ReLU", op: "relu_squared", seen: true,
    right: "dx = dy * 2 * x.clamp(min=0)",
    planted: "dx = dy * (x > 0)",
    words: "ReLU’s slope is 1 wherever x is above 0; that of its square grows with x. Small inputs get too much gradient, large ones too little.",
    engine: instead(relu_squared, { backward: unit_backward((x) => (x > 0 ? 1 : 0)) }),
  },
  {
    id: "relu_two", title: "Squared ReLU: the factor 2 lost", op: "relu_squared", seen: true,
    right: "dx = dy * 2 * x.clamp(min=0)",
    planted: "dx = dy * x.clamp(min=0)",
    words: "It goes downhill all the same, with half of the gradient in the matrix below the units.",
    engine: instead(relu_squared, { backward: unit_backward(relu) }),
  },
  {
    id: "relu_cut", title: "Squared ReLU: the cut forgotten in the backward", op: "relu_squared", seen: true,
    right: "dx = dy * 2 * x.clamp(min=0)",
    planted: "dx = dy * 2 * x",
    words: "Negative inputs get a gradient, though the forward has cut them off and nothing depends on them.",
    engine: instead(relu_squared, { backward: unit_backward((x) => 2 * x) }),
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
    right: 'dx = dx + at.backward("norm_2", norm, dh)',
    planted: 'dx = at.backward("norm_2", norm, dh)',
    words: "x + h hands its gradient to both sides. Without the stream's side, lower layers hear only what branches say.",
    engine: {
      equals: new Map(),
      block_backward: {
        gpt2: branches_only(layer_norm, "up", gelu, causal_attention), llama: branches_only(rms_norm, "gate_up", swiglu, rotary_attention),
        modern: branches_only(rms_norm, "up", relu_squared, rotary_attention, true),
      },
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
