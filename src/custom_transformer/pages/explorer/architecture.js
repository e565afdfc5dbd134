// The mirror of maths/architecture.py: all architectures by name, and which layers a block of each has.

import * as gpt2 from "./gpt2.js";
import * as llama from "./llama.js";
import { causal_attention, rotary_attention, split_groups, split_heads } from "./ops.js";

/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./ops.js").Op} Op */
/** @typedef {import("./tensor.js").Tensor} Tensor */

/**
 * Functions in the form of those of gpt2.js, and what drawing and explanations ask.
 * norm, attention: the operations by name. widens: the layer before the units. units: their operation and layer.
 * heads: queries, keys and values of qkv; positions: whether there is a table of them.
 * @typedef {{ module: Pick<typeof gpt2, "embedding_forward" | "embedding_backward" | "block_forward" | "block_backward" | "final_norm_forward" | "final_norm_backward">,
 *   norm: string, attention: Op, widens: string, units: string, positions: boolean,
 *   heads: (qkv: Tensor, config: Config) => Tensor[] }} Architecture
 */

/** @type {Record<Config["architecture"], Architecture>} */
const ARCHITECTURES = {
  gpt2: {
    module: gpt2, norm: "layer_norm", attention: causal_attention, widens: "up", units: "gelu", positions: true,
    heads: (qkv, config) => split_heads(qkv, config.n_heads),
  },
  llama: {
    module: llama, norm: "rms_norm", attention: rotary_attention, widens: "gate_up", units: "swiglu", positions: false,
    heads: (qkv, config) => split_groups(qkv, config.n_heads, llama.kv_heads(config), config.rope_base),
  },
};

/** @param {Config} config */
export function architecture_of(config) {
  return ARCHITECTURES[config.architecture];
}
