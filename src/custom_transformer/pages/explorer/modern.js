// The mirror of maths/modern.py: the modern recipe's embedding and block, forwards and upside down. The two sums of the
// residual stream in a block are shown under names of their own, residual_1 and residual_2.

import { kv_heads } from "./llama.js";
import { dropout, linear, lookup, qk_norm, relu_squared, rms_norm, rotary_attention } from "./ops.js";
import { Scope } from "./scope.js";
import { Tensor, add } from "./tensor.js";

/** @typedef {import("./gpt2.js").Config} Config */

/** @param {Int32Array} input_ids @param {Scope} at */
export function embedding_forward(input_ids, at) {
  const x = at.forward("token_embedding", lookup, input_ids);
  return at.forward("drop", dropout, x, null, 0);
}

/** @param {Tensor} dx @param {Scope} at @param {Tensor | null} d_head what the tied head adds to the table's gradient */
export function embedding_backward(dx, at, d_head) {
  dx = at.backward("drop", dropout, dx);
  at.backward("token_embedding", lookup, dx, d_head);
}

/** x + projection(attention(qk_norm(qkv(norm(x))))), then x + down(max(up(norm(x)), 0)²)
 * @param {Tensor} x (T, D) @param {Scope} at @param {Config} config */
export function block_forward(x, at, config) {
  const heads = [config.n_heads, kv_heads(config)];
  let h = at.forward("norm_1", rms_norm, x, config.norm_eps);
  h = at.forward("qkv", linear, h);
  h = at.forward("qk_norm", qk_norm, h, ...heads, config.norm_eps);
  h = at.forward("attention", rotary_attention, h, ...heads, config.rope_base, null, 0);
  h = at.forward("projection", linear, h);
  x = add(x, at.forward("drop_1", dropout, h, null, 0));
  x = at.watch("y", `${at.prefix}residual_1`, x) ?? x;
  h = at.forward("norm_2", rms_norm, x, config.norm_eps);
  h = at.forward("up", linear, h);
  h = at.forward("relu_squared", relu_squared, h);
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
  dh = at.backward("relu_squared", relu_squared, dh);
  dh = at.backward("up", linear, dh);
  dx = add(dx, at.backward("norm_2", rms_norm, dh));
  at.watch("dy", `${at.prefix}residual_1`, dx);
  dh = at.backward("drop_1", dropout, dx);
  dh = at.backward("projection", linear, dh);
  dh = at.backward("attention", rotary_attention, dh);
  dh = at.backward("qk_norm", qk_norm, dh);
  dh = at.backward("qkv", linear, dh);
  return add(dx, at.backward("norm_1", rms_norm, dh));
}

/** @param {Tensor} x @param {Scope} at @param {Config} config */
export function final_norm_forward(x, at, config) {
  return at.forward("final_norm", rms_norm, x, config.norm_eps);
}

/** @param {Tensor} dx @param {Scope} at */
export function final_norm_backward(dx, at) {
  return at.backward("final_norm", rms_norm, dx);
}
