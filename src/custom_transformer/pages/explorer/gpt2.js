// The mirror of maths/gpt2.py: GPT-2's embedding and block, forwards and upside down. The two sums of the residual
// stream in a block are shown under names of their own, residual_1 and residual_2.

import { causal_attention, dropout, gelu, layer_norm, linear, lookup, positions } from "./ops.js";
import { Scope } from "./scope.js";
import { Tensor, add } from "./tensor.js";

/**
 * bias: GPT-2's alone. n_kv_heads, rope_base and norm_eps: of the two others.
 * @typedef {{ architecture: "gpt2" | "llama" | "modern", vocab_size: number, max_seq_len: number, n_blocks: number, n_heads: number,
 *   d_model: number, d_ffn: number, tie_embeddings: boolean, bias: boolean, n_kv_heads: number | null, rope_base: number,
 *   norm_eps: number }} Config
 */

/** @param {Int32Array} input_ids @param {Scope} at */
export function embedding_forward(input_ids, at) {
  let x = at.forward("token_embedding", lookup, input_ids);
  x = at.forward("position_embedding", positions, x, 0);
  return at.forward("drop", dropout, x, null, 0);
}

/** @param {Tensor} dx @param {Scope} at @param {Tensor | null} d_head what the tied head adds to the table's gradient */
export function embedding_backward(dx, at, d_head) {
  dx = at.backward("drop", dropout, dx);
  dx = at.backward("position_embedding", positions, dx);
  at.backward("token_embedding", lookup, dx, d_head);
}

/** x + projection(attention(qkv(norm(x)))), then x + down(gelu(up(norm(x))))
 * @param {Tensor} x (T, D) @param {Scope} at @param {Config} config */
export function block_forward(x, at, config) {
  let h = at.forward("norm_1", layer_norm, x);
  h = at.forward("qkv", linear, h);
  h = at.forward("attention", causal_attention, h, config.n_heads, null, 0);
  h = at.forward("projection", linear, h);
  x = add(x, at.forward("drop_1", dropout, h, null, 0));
  x = at.watch("y", `${at.prefix}residual_1`, x) ?? x;
  h = at.forward("norm_2", layer_norm, x);
  h = at.forward("up", linear, h);
  h = at.forward("gelu", gelu, h);
  h = at.forward("down", linear, h);
  x = add(x, at.forward("drop_2", dropout, h, null, 0));
  x = at.watch("y", `${at.prefix}residual_2`, x) ?? x;
  return x;
}

/** The forward, upside down; x + h hands x to both sides, so their gradients add. @param {Tensor} dx @param {Scope} at */
export function block_backward(dx, at) {
  at.watch("dy", `${at.prefix}residual_2`, dx);
  let dh = at.backward("drop_2", dropout, dx);
  dh = at.backward("down", linear, dh);
  dh = at.backward("gelu", gelu, dh);
  dh = at.backward("up", linear, dh);
  dx = add(dx, at.backward("norm_2", layer_norm, dh));
  at.watch("dy", `${at.prefix}residual_1`, dx);
  dh = at.backward("drop_1", dropout, dx);
  dh = at.backward("projection", linear, dh);
  dh = at.backward("attention", causal_attention, dh);
  dh = at.backward("qkv", linear, dh);
  return add(dx, at.backward("norm_1", layer_norm, dh));
}

/** @param {Tensor} x @param {Scope} at @param {Config} _config */
export function final_norm_forward(x, at, _config) {
  return at.forward("final_norm", layer_norm, x);
}

/** @param {Tensor} dx @param {Scope} at */
export function final_norm_backward(dx, at) {
  return at.backward("final_norm", layer_norm, dx);
}
