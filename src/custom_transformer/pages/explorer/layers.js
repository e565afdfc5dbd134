// The layers of a model in the order of the forward pass, with what each reads: the drawing, the inspector and the
// backward's steps are made from this list.
//
// A reference names a tensor: "y:NAME" a layer's result, "dy:NAME" the gradient of that result, "dx:NAME" the gradient
// that the layer hands on, "w:NAME" a parameter, "dw:NAME" its gradient, "a:NAME.PART" something inside an operation.

import { architecture_of } from "./architecture.js";

/** @typedef {import("./gpt2.js").Config} Config */

/**
 * x: what it reads. before: of a residual sum, the stream below it. The gradient that comes in is that of its result;
 * dy says what it is made of: references whose sum it is.
 * @typedef {{ name: string, op: string, block: number | null, x: string, before?: string, dy: string[],
 *   parameters: string[] }} Layer
 */

/** @param {Config} config @returns {Layer[]} */
export function layers_of(config) {
  const { n_blocks: n, bias } = config, { norm, gains, qk_norm, attention, widens, units, positions } = architecture_of(config);
  const embedded = positions ? "position_embedding" : "token_embedding";
  /** @type {Layer[]} */
  const layers = [];
  /** @param {string} name @param {string} op @param {string} x @param {string[]} dy @param {object} [more] */
  const layer = (name, op, x, dy, more = {}) => {
    const weighted = op === "linear" || (op === norm && gains);
    const parameters = weighted ? [`${name}.weight`, ...(bias ? [`${name}.bias`] : [])] : [];
    const block = name.startsWith("blocks.") ? Number(name.split(".")[1]) : null;
    layers.push({ name, op, block, x, dy, parameters, ...more });
  };
  // The gradient of the stream that leaves block i.
  const stream = (/** @type {number} */ i) =>
    i === n - 1 ? ["dx:final_norm"] : [`dy:blocks.${i + 1}.residual_1`, `dx:blocks.${i + 1}.norm_1`];
  layer("token_embedding", "lookup", "ids", positions ? ["dy:position_embedding"] : stream(-1), { parameters: ["token_embedding"] });
  if (positions) layer("position_embedding", "positions", "y:token_embedding", stream(-1), { parameters: ["position_embedding"] });
  for (let i = 0; i < n; i++) {
    const b = `blocks.${i}`, below = i === 0 ? `y:${embedded}` : `y:blocks.${i - 1}.residual_2`;
    layer(`${b}.norm_1`, norm, below, [`dx:${b}.qkv`]);
    layer(`${b}.qkv`, "linear", `y:${b}.norm_1`, [`dx:${b}.${qk_norm ? "qk_norm" : "attention"}`]);
    if (qk_norm) layer(`${b}.qk_norm`, "qk_norm", `y:${b}.qkv`, [`dx:${b}.attention`]);
    layer(`${b}.attention`, attention.name, `y:${b}.${qk_norm ? "qk_norm" : "qkv"}`, [`dx:${b}.projection`]);
    layer(`${b}.projection`, "linear", `y:${b}.attention`, [`dy:${b}.residual_1`]);
    layer(`${b}.residual_1`, "residual", `y:${b}.projection`, [`dy:${b}.residual_2`, `dx:${b}.norm_2`], { before: below });
    layer(`${b}.norm_2`, norm, `y:${b}.residual_1`, [`dx:${b}.${widens}`]);
    layer(`${b}.${widens}`, "linear", `y:${b}.norm_2`, [`dx:${b}.${units}`]);
    layer(`${b}.${units}`, units, `y:${b}.${widens}`, [`dx:${b}.down`]);
    layer(`${b}.down`, "linear", `y:${b}.${units}`, [`dy:${b}.residual_2`]);
    layer(`${b}.residual_2`, "residual", `y:${b}.down`, stream(i), { before: `y:${b}.residual_1` });
  }
  layer("final_norm", norm, `y:blocks.${n - 1}.residual_2`, ["dx:head"]);
  layer("head", "head", "y:final_norm", ["dx:loss"], { parameters: [head_parameter(config)] });
  layer("loss", "cross_entropy", "y:head", []);
  return layers;
}

/** @param {Config} config */
export function head_parameter(config) {
  return config.tie_embeddings ? "token_embedding" : "head.weight";
}
