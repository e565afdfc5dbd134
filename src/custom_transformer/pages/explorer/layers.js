// The layers of a model in the order of the forward pass, with what each reads: the drawing, the inspector and the
// backward's steps are made from this list.
//
// A reference names a tensor: "y:NAME" a layer's result, "dy:NAME" the gradient of that result, "dx:NAME" the gradient
// that the layer hands on, "w:NAME" a parameter, "dw:NAME" its gradient, "a:NAME.PART" something inside an operation.

/** @typedef {import("./gpt2.js").Config} Config */

/**
 * x: what it reads. before: of a residual sum, the stream below it. The gradient that comes in is that of its result;
 * dy says what it is made of: references whose sum it is.
 * @typedef {{ name: string, op: string, block: number | null, x: string, before?: string, dy: string[],
 *   parameters: string[] }} Layer
 */

/** @param {Config} config @returns {Layer[]} */
export function layers_of(config) {
  const { n_blocks: n, bias } = config;
  /** @type {Layer[]} */
  const layers = [];
  /** @param {string} name @param {string} op @param {string} x @param {string[]} dy @param {object} [more] */
  const layer = (name, op, x, dy, more = {}) => {
    const both = op === "linear" || op === "layer_norm";
    const parameters = both ? [`${name}.weight`, ...(bias ? [`${name}.bias`] : [])] : [];
    const block = name.startsWith("blocks.") ? Number(name.split(".")[1]) : null;
    layers.push({ name, op, block, x, dy, parameters, ...more });
  };
  // The gradient of the stream that leaves block i.
  const stream = (/** @type {number} */ i) =>
    i === n - 1 ? ["dx:final_norm"] : [`dy:blocks.${i + 1}.residual_1`, `dx:blocks.${i + 1}.norm_1`];
  layer("token_embedding", "lookup", "ids", ["dy:position_embedding"], { parameters: ["token_embedding"] });
  layer("position_embedding", "positions", "y:token_embedding", stream(-1), { parameters: ["position_embedding"] });
  for (let i = 0; i < n; i++) {
    const b = `blocks.${i}`, below = i === 0 ? "y:position_embedding" : `y:blocks.${i - 1}.residual_2`;
    layer(`${b}.norm_1`, "layer_norm", below, [`dx:${b}.qkv`]);
    layer(`${b}.qkv`, "linear", `y:${b}.norm_1`, [`dx:${b}.attention`]);
    layer(`${b}.attention`, "causal_attention", `y:${b}.qkv`, [`dx:${b}.projection`]);
    layer(`${b}.projection`, "linear", `y:${b}.attention`, [`dy:${b}.residual_1`]);
    layer(`${b}.residual_1`, "residual", `y:${b}.projection`, [`dy:${b}.residual_2`, `dx:${b}.norm_2`], { before: below });
    layer(`${b}.norm_2`, "layer_norm", `y:${b}.residual_1`, [`dx:${b}.up`]);
    layer(`${b}.up`, "linear", `y:${b}.norm_2`, [`dx:${b}.gelu`]);
    layer(`${b}.gelu`, "gelu", `y:${b}.up`, [`dx:${b}.down`]);
    layer(`${b}.down`, "linear", `y:${b}.gelu`, [`dy:${b}.residual_2`]);
    layer(`${b}.residual_2`, "residual", `y:${b}.down`, stream(i), { before: `y:${b}.residual_1` });
  }
  layer("final_norm", "layer_norm", `y:blocks.${n - 1}.residual_2`, ["dx:head"]);
  layer("head", "head", "y:final_norm", ["dx:loss"], { parameters: [head_parameter(config)] });
  layer("loss", "cross_entropy", "y:head", []);
  return layers;
}

/** @param {Config} config */
export function head_parameter(config) {
  return config.tie_embeddings ? "token_embedding" : "head.weight";
}
