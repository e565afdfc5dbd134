// The mirror of maths/architecture.py: all architectures by name, and which layers a block of each has.

import * as gpt2 from "./gpt2.js";
import * as llama from "./llama.js";
import * as modern from "./modern.js";
import { causal_attention, rotary_attention, split_groups, split_heads } from "./ops.js";

/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./ops.js").Op} Op */
/** @typedef {import("./tensor.js").Tensor} Tensor */

/**
 * Functions in the form of those of gpt2.js, and what drawing and explanations ask.
 * norm, attention: the operations by name. gains: whether norms have parameters. qk_norm: whether queries and keys are
 * normed. widens: the layer before the units. units: their operation and layer. corner: whether the slope of their
 * curve has a corner, at 0. heads: queries, keys and values of what attention is given. positions: whether there is a
 * table of them.
 * @typedef {{ module: Pick<typeof gpt2, "embedding_forward" | "embedding_backward" | "block_forward" | "block_backward" | "final_norm_forward" | "final_norm_backward">,
 *   norm: string, gains: boolean, qk_norm: boolean, attention: Op, widens: string, units: string, corner: boolean,
 *   positions: boolean, heads: (given: Tensor, config: Config) => Tensor[] }} Architecture
 */

/** @param {Tensor} given @param {Config} config */
const turned = (given, config) => split_groups(given, config.n_heads, llama.kv_heads(config), config.rope_base);

/** @type {Record<Config["architecture"], Architecture>} */
const ARCHITECTURES = {
  gpt2: {
    module: gpt2, norm: "layer_norm", gains: true, qk_norm: false, attention: causal_attention, widens: "up", units: "gelu",
    corner: false, positions: true, heads: (qkv, config) => split_heads(qkv, config.n_heads),
  },
  llama: {
    module: llama, norm: "rms_norm", gains: true, qk_norm: false, attention: rotary_attention, widens: "gate_up",
    units: "swiglu", corner: false, positions: false, heads: turned,
  },
  modern: {
    module: modern, norm: "rms_norm", gains: false, qk_norm: true, attention: rotary_attention, widens: "up",
    units: "relu_squared", corner: true, positions: false, heads: turned,
  },
};

/** @param {Config} config */
export function architecture_of(config) {
  return ARCHITECTURES[config.architecture];
}
