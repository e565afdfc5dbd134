// What is inside an operation and never outlives it: heads, scores and probabilities of attention, the normalised x̂,
// the softmax of the logits. Made again from what the operation read, for the page to show.

import { architecture_of } from "./architecture.js";
import { kv_heads } from "./llama.js";
import { attention_scores, exp_minus, gelu_slope, logsumexp, qk_norm_gain, relu, shared_by_queries, silu, silu_slope, softmax_backward, split_one, sum_of_sharers } from "./ops.js";
import { Tensor, map, matmul, transpose_each, zeros } from "./tensor.js";

/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./session.js").Session} Session */

/** @param {Session} session @param {string} reference "a:LAYER.PART" @returns {Tensor | null} */
export function derived(session, reference) {
  const cut = reference.lastIndexOf("."), name = reference.slice(2, cut), part = reference.slice(cut + 1);
  const layer = session.layers.find((one) => one.name === name);
  const make = layer && parts[layer.op]?.[part];
  if (!make) return null;
  /** @param {string} other a reference, or the name of another part of this operation */
  const get = (other) => session.tensor(other.includes(":") ? other : `a:${name}.${other}`);
  try {
    return make(/** @type {any} */ (get), { x: layer.x, y: `y:${name}`, dy: `dy:${name}`, name, session });
  } catch (missing) {
    if (missing === MISSING) return null;
    throw missing;
  }
}

const MISSING = "missing";

/** @typedef {{ x: string, y: string, dy: string, name: string, session: Session }} Place */
/** @typedef {(get: (reference: string) => Tensor, place: Place) => Tensor} Make */

/** Needs the tensor, or there is nothing to show. @param {Tensor | null} tensor */
function need(tensor) {
  if (!tensor) throw MISSING;
  return tensor;
}

/** @param {Tensor} x @param {(row: Float64Array) => number} f @returns {Tensor} (T, 1) */
function by_row(x, f) {
  const y = zeros(x, [...x.shape.slice(0, -1), 1]);
  for (let r = 0; r < x.rows; r++) y.data[r] = f(Float64Array.from(x.data.subarray(r * x.width, (r + 1) * x.width)));
  return y;
}

const mean = (/** @type {Float64Array} */ row) => row.reduce((a, b) => a + b, 0) / row.length;

/** One number for each query and key: `f` of its K numbers. @param {Tensor} x queries and keys, with or without values
 * @param {Config} config @param {(head: Float64Array) => number} f @returns {Tensor} (T, H + G) */
function by_head(x, config, f) {
  const K = config.d_model / config.n_heads, heads = config.n_heads + kv_heads(config), y = zeros(x, [x.rows, heads]);
  for (let i = 0; i < y.data.length; i++) {
    const first = Math.floor(i / heads) * x.width + (i % heads) * K;
    y.data[i] = f(Float64Array.from(x.data.subarray(first, first + K)));
  }
  return y;
}

/** The numbers of queries and keys: `f` of each and of its head's place in what `by_head` returns.
 * @param {Tensor} qkv @param {Config} config @param {(value: number, place: number) => number} f @returns {Tensor} (T, (H + G)·K) */
function of_queries_and_keys(qkv, config, f) {
  const K = config.d_model / config.n_heads, width = (config.n_heads + kv_heads(config)) * K, y = zeros(qkv, [qkv.rows, width]);
  for (let i = 0; i < y.data.length; i++) y.data[i] = f(qkv.data[Math.floor(i / width) * qkv.width + (i % width)], Math.floor(i / K));
  return y;
}

/** The same function of each gate, the first half of a row. @param {Tensor} x @param {(gate: number) => number} f */
function gates(x, f) {
  const F = x.width / 2, y = zeros(x, [x.rows, F]);
  for (let i = 0; i < y.data.length; i++) y.data[i] = f(x.data[i + Math.floor(i / F) * F]);
  return y;
}

/** @type {(which: number) => Make} */
const heads = (which) => (get, { x, session }) => architecture_of(session.config).heads(need(get(x)), session.config)[which];

/** Of any attention. Queries and keys are turned where the attention turns them. @type {Record<string, Make>} */
const attention = {
  q: heads(0),
  k: heads(1),
  v: heads(2),
  dY: (get, { dy, session }) => split_one(need(get(dy)), session.config.n_heads),
  S: (get) => { const q = need(get("q")); return attention_scores(q, shared_by_queries(need(get("k")), q)); },
  P: (get) => { const s = need(get("S")); return exp_minus(s, logsumexp(s)); },
  dP: (get) => matmul(need(get("dY")), transpose_each(shared_by_queries(need(get("v")), need(get("q"))))),
  inner: (get) => {
    const p = need(get("P")), dp = need(get("dP"));
    return by_row(map(p, (v, i) => v * dp.data[i]), (row) => row.reduce((a, b) => a + b, 0));
  },
  dS: (get) => softmax_backward(need(get("dP")), need(get("P")), 1),
  // Of turned queries and keys.
  dQ: (get) => { const q = need(get("q")); return matmul(scaled(need(get("dS")), q), shared_by_queries(need(get("k")), q)); },
  dK: (get) => { const q = need(get("q")); return sum_of_sharers(matmul(transpose_each(scaled(need(get("dS")), q)), q), need(get("k")).shape[0]); },
};

/** Divided by √K. @param {Tensor} ds @param {Tensor} q */
function scaled(ds, q) {
  return map(ds, (v) => v / Math.sqrt(q.width));
}

/** What the backward of every norm of rows has. @type {Record<string, Make>} */
const norm_backward = {
  dx_hat: (get, { dy, name }) => {
    const d = need(get(dy)), w = get(`w:${name}.weight`); // null: a norm without a gain
    return w ? map(d, (v, i) => v * w.data[i % d.width]) : d;
  },
  product: (get) => { const d = need(get("dx_hat")), x = need(get("x_hat")); return map(d, (v, i) => v * x.data[i]); },
  mean_product: (get) => by_row(need(get("product")), mean),
};

/** @type {Record<string, Record<string, Make>>} */
const parts = {
  layer_norm: {
    mean: (get, { x }) => by_row(need(get(x)), mean),
    variance: (get, { x }) => by_row(need(get(x)), (row) => { const m = mean(row); return mean(row.map((v) => (v - m) ** 2)); }),
    rstd: (get) => map(need(get("variance")), (v) => 1 / Math.sqrt(v + 1e-5)),
    x_hat: (get, { x }) => {
      const value = need(get(x)), m = need(get("mean")), r = need(get("rstd"));
      return map(value, (v, i) => (v - m.data[Math.floor(i / value.width)]) * r.data[Math.floor(i / value.width)]);
    },
    ...norm_backward,
    mean_dx_hat: (get) => by_row(need(get("dx_hat")), mean),
  },
  gelu: {
    slope: (get, { x }) => map(need(get(x)), gelu_slope),
  },
  rms_norm: {
    mean_square: (get, { x }) => by_row(need(get(x)), (row) => mean(row.map((v) => v * v))),
    r: (get, { session }) => map(need(get("mean_square")), (v) => 1 / Math.sqrt(v + session.config.norm_eps)),
    x_hat: (get, { x }) => { const value = need(get(x)), r = need(get("r")); return map(value, (v, i) => v * r.data[Math.floor(i / value.width)]); },
    ...norm_backward,
  },
  qk_norm: {
    mean_square: (get, { x, session }) => by_head(need(get(x)), session.config, (head) => mean(head.map((v) => v * v))),
    r: (get, { session }) => map(need(get("mean_square")), (v) => 1 / Math.sqrt(v + session.config.norm_eps)),
    x_hat: (get, { x, session }) => { const r = need(get("r")); return of_queries_and_keys(need(get(x)), session.config, (v, place) => v * r.data[place]); },
    dx_hat: (get, { dy, session: { config } }) => of_queries_and_keys(need(get(dy)), config, (d) => d * qk_norm_gain(config.d_model / config.n_heads)),
    product: norm_backward.product,
    mean_product: (get, { session }) => by_head(need(get("product")), session.config, mean),
  },
  swiglu: {
    silu: (get, { x }) => gates(need(get(x)), silu),
    slope: (get, { x }) => gates(need(get(x)), silu_slope),
  },
  relu_squared: {
    u: (get, { x }) => map(need(get(x)), relu),
  },
  causal_attention: attention,
  rotary_attention: attention,
  cross_entropy: {
    lse: (get, { x }) => logsumexp(need(get(x))),
    probabilities: (get, { x }) => { const z = need(get(x)); return exp_minus(z, logsumexp(z)); },
    losses: (get, { x, session }) => {
      const z = need(get(x)), lse = need(get("lse"));
      return map(lse, (v, t) => (session.labels[t] < 0 ? 0 : v - z.data[t * z.width + session.labels[t]]));
    },
  },
  lookup: {
    // The table's two contributions: of its rows as embeddings, and of the whole as the head's matrix.
    as_embedding: (get, { dy, session }) => {
      const d = need(get(dy)), table = need(get("w:token_embedding")), sum = zeros(table, table.shape);
      session.ids.forEach((id, t) => { for (let i = 0; i < d.width; i++) sum.data[id * d.width + i] += d.data[t * d.width + i]; });
      return sum;
    },
  },
};
