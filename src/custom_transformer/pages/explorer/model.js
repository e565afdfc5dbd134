// The mirror of maths/model.py and stack.py for one text: from tokens to the loss, and back to the gradients.

import * as gpt2 from "./gpt2.js";
import { cross_entropy, linear_backward, linear_forward } from "./ops.js";
import { Scope } from "./scope.js";
import { Tensor } from "./tensor.js";

/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./scope.js").Tensors} Tensors */
/** @typedef {import("./scope.js").Watch} Watch */
/** @typedef {import("./ops.js").Op} Op */

/**
 * Functions that may stand in for those of gpt2.js and ops.js: how a mistake is planted.
 * @typedef {{ equals: Map<Op, Op>, block_backward: typeof gpt2.block_backward }} Engine
 */

/** @type {Engine} */
export const READABLE = { equals: new Map(), block_backward: gpt2.block_backward };

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
    const { at, config } = this;
    let x = gpt2.embedding_forward(input_ids, at);
    for (let i = 0; i < config.n_blocks; i++) x = gpt2.block_forward(x, at.part(`blocks.${i}`), config);
    x = gpt2.final_norm_forward(x, at);
    x = at.watch("x", "head", x) ?? x;
    let { y: logits, saved } = linear_forward(x, this.head_weight().T, null);
    this.saved.set("head", saved);
    logits = at.watch("y", "head", logits) ?? logits;
    return at.forward("loss", cross_entropy, logits, labels).data[0];
  }

  /** Each parameter's gradient. @returns {Tensors} */
  loss_backward() {
    const { at, config } = this;
    const dz = at.backward("loss", cross_entropy, 1);
    at.watch("dy", "head", dz);
    let [dx, d_head_transposed] = /** @type {Tensor[]} */ (linear_backward(dz, at.take("head")));
    const d_head = d_head_transposed.T;
    at.watch("dx", "head", dx);
    at.watch("dw", "head", d_head);
    if (!config.tie_embeddings) at.give("head.weight", d_head);
    dx = gpt2.final_norm_backward(dx, at);
    for (let i = config.n_blocks - 1; i >= 0; i--) dx = this.engine.block_backward(dx, at.part(`blocks.${i}`));
    gpt2.embedding_backward(dx, at, config.tie_embeddings ? d_head : null);
    return at.gradients;
  }
}
