// Words for a tensor and for the places in it.

import { kv_heads } from "./llama.js";

/** @typedef {import("./app.js").App} App */

/** @type {Record<string, string>} */
const INSIDE = {
  mean: "mean of each row", variance: "variance of each row", rstd: "1 / standard deviation of each row", x_hat: "x̂, the normalised input",
  dx_hat: "dx̂, the gradient of x̂", mean_dx_hat: "mean of dx̂", product: "dx̂ ∘ x̂", mean_product: "mean of dx̂ ∘ x̂", slope: "slope of the curve",
  mean_square: "mean square of each row", r: "1 / root mean square of each row", silu: "gate a σ(a)", dQ: "gradient of the queries", dK: "gradient of the keys",
  q: "queries Q", k: "keys K", v: "values V", dY: "gradient of the result, by heads", S: "scores S", P: "attention P", dP: "gradient of attention, dP",
  inner: "Σ dP ∘ P of each row", dS: "gradient of the scores, dS", lse: "log Σ exp of each row", probabilities: "probabilities", losses: "loss of each token",
  as_embedding: "table's gradient from looking rows up", u: "max(x, 0)",
  "qk_norm.mean_square": "mean square of each query and key", "qk_norm.r": "1 / root mean square of each query and key",
  "qk_norm.mean_product": "mean of dx̂ ∘ x̂ of each query and key",
};

/** @param {string} reference */
export function title_of(reference) {
  const kind = reference.slice(0, reference.indexOf(":")), name = reference.slice(reference.indexOf(":") + 1);
  if (reference === "dw:head") return "table's gradient from the head";
  if (kind === "a") {
    const parts = name.split("."), part = parts.pop() ?? "", layer = parts.join(".");
    return `${INSIDE[`${parts.at(-1)}.${part}`] ?? INSIDE[part]} (${layer})`;
  }
  return {
    y: `result of ${name}`, dy: `gradient of the result of ${name}`, dx: `gradient that ${name} hands down`,
    w: `parameter ${name}`, dw: `gradient of parameter ${name}`,
  }[kind] ?? name;
}

/** Short symbols for a table of factors. @param {string} reference */
export function symbol_of(reference) {
  const kind = reference.slice(0, reference.indexOf(":")), name = reference.slice(reference.indexOf(":") + 1).replace(/^blocks\.\d+\./, "");
  if (reference === "dw:head") return "d table, head";
  if (kind === "a") {
    const part = name.slice(name.lastIndexOf(".") + 1);
    return { x_hat: "x̂", dx_hat: "dx̂", mean_dx_hat: "mean dx̂", mean_product: "mean dx̂∘x̂", product: "dx̂∘x̂", as_embedding: "d table, lookup", probabilities: "softmax z", losses: "loss", slope: "slope", silu: "a σ(a)", mean_square: "mean x²" }[part] ?? part;
  }
  return { y: name, dy: `d ${name}`, dx: `d from ${name}`, w: `${name}`, dw: `d ${name}` }[kind] ?? name;
}

const QUERY_OR_KEY = "query or key"; // the queries of all heads, then the keys

/** Whether the axis of a tensor counts tokens of the text, entries of the vocabulary, heads or channels.
 * @param {string} reference @param {number[]} shape @param {number} vocab @param {number} time */
export function axes_of(reference, shape, vocab, time) {
  const table = /token_embedding|head\.weight|^dw:head/.test(reference) && /^(w|dw|a):/.test(reference);
  if (table) return ["entry", "channel"];
  if (reference.startsWith("w:") || reference.startsWith("dw:")) {
    if (reference.endsWith("position_embedding")) return ["position", "channel"];
    return shape.length === 1 ? ["channel"] : ["input channel", "output channel"];
  }
  if (/qk_norm\.(mean_square|r|mean_product)$/.test(reference)) return ["token", QUERY_OR_KEY];
  if (shape.length === 3) return [/\.(k|v|dK)$/.test(reference) ? "key head" : "head", "token", shape[2] === time && /\.(S|P|dS|dP)$/.test(reference) ? "token" : "channel"];
  if (shape.length === 1) return ["channel"];
  return ["token", shape[1] === vocab ? "entry" : "channel"];
}

/** The place in words. @param {App} app @param {string} reference @param {number[]} index */
export function place_of(app, reference, index) {
  const { session } = app, tensor = session.tensor(reference);
  if (!tensor) return "";
  const axes = axes_of(reference, tensor.shape, session.config.vocab_size, session.ids.length);
  return index.map((i, axis) => {
    if (axes[axis] === "token") return `token ${i} ‘${app.token(session.ids[i])}’`;
    if (axes[axis] === "entry") return `entry ${i} ‘${app.token(i)}’`;
    if (axes[axis] === QUERY_OR_KEY) return i < session.config.n_heads ? `query head ${i}` : `key head ${i - session.config.n_heads}`;
    return `${axes[axis]} ${i}${axes[axis] === "channel" ? head_of(app, reference, i) : ""}`;
  }).filter((_, axis) => tensor.shape[axis] > 1 || tensor.shape.length === 1).join(", ");
}

/** Of queries, keys and values side by side, whose channel it is. @param {App} app @param {string} reference @param {number} channel */
function head_of(app, reference, channel) {
  if (!/^(y|dy):.*\.(qkv|qk_norm)$|^dx:.*\.(qk_norm|attention)$|^a:.*\.qk_norm\./.test(reference)) return "";
  const { d_model, n_heads: H } = app.session.config, G = kv_heads(app.session.config), head = Math.floor((channel * H) / d_model);
  return head < H ? `, query head ${head}` : head < H + G ? `, key head ${head - H}` : `, value head ${head - H - G}`;
}
