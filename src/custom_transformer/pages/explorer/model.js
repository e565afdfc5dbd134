// The mirror of maths/model.py and stack.py for one text: from tokens to the loss, and back to the gradients.

import { architecture_of } from "./architecture.js";
import { cross_entropy, linear_backward, linear_forward } from "./ops.js";
import { Scope } from "./scope.js";
import { Tensor } from "./tensor.js";

/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./scope.js").Tensors} Tensors */
/** @typedef {import("./scope.js").Watch} Watch */
/** @typedef {import("./ops.js").Op} Op */

/** @typedef {typeof import("./gpt2.js").block_backward} BlockBackward */

/**
 * Functions that may stand in for those of ops.js and for each architecture's block: how a mistake is planted.
 * @typedef {{ equals: Map<Op, Op>, block_backward?: Record<Config["architecture"], BlockBackward> }} Engine
 */

/** @type {Engine} */
export const READABLE = { equals: new Map() };

/** @type {Watch} */
export const nobody = () => {};

/** The way to the loss, which the backward goes back. */
export class Pass {
  /** @param {Config} config @param {Tensors} parameters @param {Engine} [engine] @param {Watch} [watch] */
  constructor(config, parameters, engine = READABLE, watch = nobody) {
    this.config = config;
    this.engine = engine;
    /** @type {Map<string, any[]>} */
    this.saved = new Map();
    this.at = new Scope(parameters, this.saved, engine.equals, watch);
  }

  /** The head's matrix (V, D): the token table when they are tied. */
  head_weight() {
    const name = this.config.tie_embeddings ? "token_embedding" : "head.weight";
    return /** @type {Tensor} */ (this.at.get(name));
  }

  /** input_ids (T,), labels (T,) already shifted, -100 left out -> the mean loss in nats
   * @param {Int32Array} input_ids @param {Int32Array} labels @returns {number} */
  loss(input_ids, labels) {
    const { at, config } = this, { module } = architecture_of(config);
    let x = module.embedding_forward(input_ids, at);
    for (let i = 0; i < config.n_blocks; i++) x = module.block_forward(x, at.part(`blocks.${i}`), config);
    x = module.final_norm_forward(x, at, config);
    x = at.watch("x", "head", x) ?? x;
    let { y: logits, saved } = linear_forward(x, this.head_weight().T, null);
    this.saved.set("head", saved);
    logits = at.watch("y", "head", logits) ?? logits;
    return at.forward("loss", cross_entropy, logits, labels).data[0];
  }

  /** Each parameter's gradient. @returns {Tensors} */
  loss_backward() {
    const { at, config } = this, { module } = architecture_of(config);
    const block_backward = this.engine.block_backward?.[config.architecture] ?? module.block_backward;
    const dz = at.backward("loss", cross_entropy, 1);
    at.watch("dy", "head", dz);
    let [dx, d_head_transposed] = /** @type {Tensor[]} */ (linear_backward(dz, at.take("head")));
    const d_head = d_head_transposed.T;
    at.watch("dx", "head", dx);
    at.watch("dw", "head", d_head);
    if (!config.tie_embeddings) at.give("head.weight", d_head);
    dx = module.final_norm_backward(dx, at);
    for (let i = config.n_blocks - 1; i >= 0; i--) dx = block_backward(dx, at.part(`blocks.${i}`));
    module.embedding_backward(dx, at, config.tie_embeddings ? d_head : null);
    return at.gradients;
  }
}
