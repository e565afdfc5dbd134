// One text in one model: the pass forward and back, every tensor on the way by its reference, finite differences.

import { architecture_of } from "./architecture.js";
import { derived } from "./derived.js";
import { derivative_at_0 } from "./differences.js";
import { layers_of } from "./layers.js";
import { Pass, READABLE, nobody } from "./model.js";
import { IGNORE_INDEX, attention_scores, exp_minus, logsumexp, merge_heads, shared_by_queries } from "./ops.js";
import { Tensor, matmul } from "./tensor.js";
import { in_float64 } from "./weights.js";

/** @typedef {import("./gpt2.js").Config} Config */
/** @typedef {import("./scope.js").Tensors} Tensors */
/** @typedef {import("./differences.js").Difference} Difference */
/** @typedef {import("./model.js").Engine} Engine */
/** @typedef {{ size: number, names: string[] }} SavedBytes */

/** The part of a tied table's gradient that comes from looking its rows up. */
const LOOKED_UP = "a:token_embedding.as_embedding";

export class Session {
  /** @param {Config} config @param {Tensors} parameters @param {number} end id of the token that begins and ends a text */
  constructor(config, parameters, end) {
    this.config = config;
    this.parameters = parameters;
    this.end = end;
    this.layers = layers_of(config);
    /** @type {Engine} */
    this.engine = READABLE;
    this.ids = Int32Array.of(end);
    this.labels = Int32Array.of(IGNORE_INDEX);
    /** @type {Map<string, Tensor>} */
    this.values = new Map();
    /** @type {Map<string, any[]>} what the last forward saved, as it was before the backward took it */
    this.saved = new Map();
    this.loss = NaN;
    this.milliseconds = { forward: 0, backward: 0 };
    /** @type {Session | null} */
    this.wide = null;
    /** @type {Map<string, Difference>} measured for the last forward */
    this.differences = new Map();
    this.has_backward = false;
    /** @type {Tensors} */
    this.gradients = new Map();
  }

  /** The tokens of a text: it begins after the end token, and each token is to be foretold from those before it.
   * @param {number[]} tokens */
  read(tokens) {
    const kept = tokens.slice(0, this.config.max_seq_len - 1);
    this.ids = Int32Array.of(this.end, ...kept);
    this.labels = Int32Array.of(...kept, IGNORE_INDEX);
    return kept.length;
  }

  forward() {
    const started = performance.now();
    this.values = new Map();
    this.differences = new Map();
    this.wide = null;
    this.has_backward = false;
    this.pass = new Pass(this.config, this.parameters, this.engine, (kind, name, tensor) => {
      if (kind !== "x" && tensor instanceof Tensor) this.values.set(`${kind}:${name}`, tensor);
    });
    this.loss = this.pass.loss(this.ids, this.labels);
    this.saved = new Map(this.pass.saved);
    this.milliseconds.forward = performance.now() - started;
    return this.loss;
  }

  /** The gradients of the parameters, for the last forward. @returns {Tensors} */
  backward() {
    if (this.has_backward) return this.gradients;
    const started = performance.now();
    this.gradients = /** @type {Pass} */ (this.pass).loss_backward();
    for (const [name, gradient] of this.gradients) this.values.set(`dw:${name}`, gradient);
    this.milliseconds.backward = performance.now() - started;
    this.has_backward = true;
    return this.gradients;
  }

  /** The tensor of a reference; null where there is none yet. @param {string} reference @returns {Tensor | null} */
  tensor(reference) {
    if (reference.startsWith("w:")) return this.parameters.get(reference.slice(2)) ?? null;
    if (!this.values.has(reference) && reference.startsWith("a:")) {
      const made = derived(this, reference);
      if (made) this.values.set(reference, made);
    }
    return this.values.get(reference) ?? null;
  }

  /** The same model, text and engine in float64, forward and backward. @returns {Session} */
  in_float64() {
    if (!this.wide) {
      this.wide = new Session(this.config, in_float64(this.parameters), this.end);
      Object.assign(this.wide, { engine: this.engine, ids: this.ids, labels: this.labels });
      this.wide.forward();
      if (this.labels.some((label) => label !== IGNORE_INDEX)) this.wide.backward();
    }
    return this.wide;
  }

  /**
   * The derivative of the loss by one number, measured in float64.
   * @param {string} reference of a value, or of a gradient: then the value whose gradient it is is moved
   * @param {number[]} index @returns {Difference | null} null for what cannot be moved
   */
  difference(reference, index) {
    const key = `${reference}[${index}]`, known = this.differences.get(key);
    if (known) return known;
    const wide = this.in_float64(), movable = movable_number(wide, reference, index);
    if (!movable) return null;
    const found = derivative_at_0(wide, 1e-3 * Math.max(0.05, Math.min(1, Math.abs(movable.at))), movable.run);
    this.differences.set(key, found);
    return found;
  }
}

/** @param {Tensor} tensor @param {number[]} index @param {number} by @returns {Tensor} a copy with one number moved */
function moved(tensor, index, by) {
  const copy = new Tensor(tensor.data.slice(), tensor.shape, tensor.transposed);
  copy.data[copy.offset(index)] += by;
  return copy;
}

/** What stands at a place, and the loss with that number moved.
 * @typedef {{ at: number, run: (by: number, loss: import("./differences.js").Loss) => number }} Movable */

/** @param {Session} session of float64 @param {string} reference @param {number[]} index @returns {Movable | null} */
function movable_number(session, reference, index) {
  const { config, engine, parameters } = session;
  const [kind, part] = (reference === LOOKED_UP ? "dw:lookup" : reference).split(":");
  // Of a table that is not tied, each use is a parameter of its own.
  const own = config.tie_embeddings ? undefined : { head: "head.weight", lookup: "token_embedding" }[part];
  const name = kind === "dw" && own ? own : part;
  if (kind === "w" || (kind === "dw" && name !== "head" && name !== "lookup")) {
    const parameter = /** @type {Tensor} */ (parameters.get(name));
    return { at: parameter.at(...index), run: (by, loss) => loss(new Map([...parameters, [name, moved(parameter, index, by)]])) };
  }
  if (kind === "dw") { // one of the two uses of a tied table
    const table = /** @type {Tensor} */ (parameters.get("token_embedding")), untied = { ...config, tie_embeddings: false };
    const [as_table, as_head] = name === "head" ? [0, 1] : [1, 0];
    return {
      at: table.at(...index),
      run: (by, loss) => loss(new Map([...parameters,
        ["token_embedding", moved(table, index, by * as_table)], ["head.weight", moved(table, index, by * as_head)]]), engine, nobody, untied),
    };
  }
  if (kind === "a") return movable_inside(session, name, index);
  const layer = session.layers.find((one) => one.name === name);
  const value = session.tensor(kind === "dx" ? layer?.x ?? "" : `y:${name}`);
  if (!value || value.shape.length !== index.length || name === "loss" && kind !== "dx") return null;
  const where = kind === "dx" ? "x" : "y";
  return {
    at: value.at(...index),
    run: (by, loss) => loss(parameters, engine, (seen, place, tensor) => (seen === where && place === name ? moved(tensor, index, by) : undefined)),
  };
}

/** Attention's scores and probabilities, moved inside the operation.
 * @param {Session} session @param {string} name @param {number[]} index @returns {Movable | null} */
function movable_inside(session, name, index) {
  const part = name.slice(name.lastIndexOf(".") + 1), what = { S: "S", dS: "S", P: "P", dP: "P" }[part];
  const value = session.tensor(`a:${name.slice(0, name.lastIndexOf("."))}.${what}`);
  if (!what || !value || index[2] > index[1]) return null;
  const block = Number(name.split(".")[1]), { attention, heads } = architecture_of(session.config);
  return {
    at: value.at(...index),
    run: (by, loss) => {
      let call = 0;
      /** @type {import("./ops.js").Op} */
      const op = { ...attention, forward: (given, ...others) => {
        if (call++ !== block) return attention.forward(given, ...others);
        const [q, k, v] = heads(given, session.config);
        let scores = attention_scores(q, shared_by_queries(k, q));
        if (what === "S") scores = moved(scores, index, by);
        let probabilities = exp_minus(scores, logsumexp(scores));
        if (what === "P") probabilities = moved(probabilities, index, by);
        return { y: merge_heads(matmul(probabilities, shared_by_queries(v, q))), saved: [] };
      } };
      return loss(session.parameters, { ...session.engine, equals: new Map([...session.engine.equals, [attention, op]]) });
    },
  };
}
