// The page's state, and the one place that changes it.

import { visible } from "./format.js";
import { MISTAKES } from "./mistakes.js";
import { READABLE } from "./model.js";
import { Session } from "./session.js";
import { Tokenizer } from "./tokenizer.js";
import { copy, exact_tensors, rounded_tensors } from "./weights.js";

/** @typedef {import("./scope.js").Tensors} Tensors */
/** @typedef {{ formula: string, words: string, code: string, signature: string, place: string }} Excerpt */
/**
 * @typedef {{ config: import("./gpt2.js").Config, parameters: import("./weights.js").Parameter[],
 *   checkpoints: { step: number | null, exact: boolean, weights: string }[], tokenizer: { entries: string[], merges: string[], end: number },
 *   excerpts: Record<string, Excerpt>, text: string }} Data
 */
/** @typedef {"predict" | "operation" | "learn" | "mistakes"} Tab */

/** @typedef {{ name: string, parameters: Tensors, exact: boolean }} Checkpoint */

/** @param {Data} data @returns {Promise<Checkpoint[]>} in the order of training */
export function checkpoints_of(data) {
  return Promise.all(data.checkpoints.map(async ({ step, exact, weights }) => ({
    name: step === null ? "as given" : step === 0 ? "step 0, before training" : `step ${step.toLocaleString("en")}`,
    parameters: await (exact ? exact_tensors : rounded_tensors)(data.parameters, weights),
    exact,
  })));
}

export class App {
  /** @param {Data} data @param {Checkpoint[]} checkpoints in the order of training, one of them exact */
  constructor(data, checkpoints) {
    this.data = data;
    this.checkpoints = checkpoints;
    this.tokenizer = new Tokenizer(data.tokenizer.entries, data.tokenizer.merges);
    this.checkpoint = checkpoints.findIndex(({ exact }) => exact);
    this.session = new Session(data.config, copy(checkpoints[this.checkpoint].parameters), data.tokenizer.end);
    /** The backward's steps: the layers from the last to the first. */
    this.steps = [...this.session.layers].reverse();
    this.text = data.text;
    this.cut = 0; // tokens that did not fit
    /** @type {Tab} */
    this.tab = "predict";
    this.layer = "loss";
    /** @type {"forward" | "backward"} */
    this.direction = "forward";
    this.step = -1; // of the backward; −1: not begun
    this.playing = false;
    this.focus = -1; // the token whose row is looked at; −1: not chosen yet
    /** @type {{ reference: string, index: number[] }[]} the numbers asked for, the last one shown */
    this.trail = [];
    /** @type {import("./mistakes.js").Mistake | null} */
    this.mistake = null;
    /** @type {"" | "light" | "dark"} */
    this.theme = "";
    this.missing = ""; // a place that the address names and the model has not
    this.updates = 0; // steps that the reader has made
    /** @type {(() => void)[]} */
    this.panels = [];
    /** @type {Map<number, string>} */
    this.names = new Map();
  }

  /** A token's text with its spaces seen. @param {number} id */
  token(id) {
    let name = this.names.get(id);
    if (name === undefined) {
      name = id === this.data.tokenizer.end ? "start" : visible(this.tokenizer.decode([id]), this.tokenizer.bytes_of([id]));
      this.names.set(id, name);
    }
    return name;
  }

  dark() {
    return this.theme ? this.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  /** @param {string} text */
  read(text) {
    this.text = text;
    const tokens = this.tokenizer.encode(text), kept = this.session.read(tokens);
    this.cut = tokens.length - kept;
    this.focus = Math.min(this.focus, this.session.ids.length - 1);
    if (kept < 1) this.stop_backward();
    this.trail = this.trail.filter(({ reference }) => reference.startsWith("w:"));
    this.compute();
  }

  /** Runs the model on the text, and back if gradients are looked at. */
  compute() {
    this.session.forward();
    if (this.focus < 0) this.focus = this.session.ids.length - (this.session.ids.length > 3 ? 3 : 1);
    if (this.step >= 0 || this.direction === "backward") this.need_backward();
    this.trail = this.trail.filter(({ reference, index }) => {
      const tensor = this.session.tensor(reference);
      return tensor && index.every((i, axis) => i < tensor.shape[axis]);
    });
    this.render();
  }

  /** @returns {boolean} whether there is a backward: a text without a token has none */
  need_backward() {
    if (this.session.ids.length < 2) return false;
    if (!this.session.has_backward) this.session.backward();
    return true;
  }

  /** @param {string} layer @param {"forward" | "backward"} [direction] */
  look_at(layer, direction = this.direction) {
    this.layer = layer;
    this.tab = "operation";
    this.direction = direction === "backward" && this.need_backward() ? "backward" : "forward";
    if (this.direction === "forward") this.stop_backward();
    if (this.step >= 0) this.step = this.steps.findIndex((step) => step.name === layer);
    this.render();
  }

  /** @param {number} step of the backward, from 0 */
  go_to_step(step) {
    if (!this.need_backward()) return;
    this.step = Math.max(0, Math.min(this.steps.length - 1, step));
    this.look_at(this.steps[this.step].name, "backward");
  }

  stop_backward() {
    this.step = -1;
    this.playing = false;
    this.direction = "forward";
  }

  /** @param {string} reference @param {number[]} index @param {boolean} [further] from a number that is shown to one that made it */
  inspect(reference, index, further = false) {
    this.need_backward();
    this.trail = [...(further ? this.trail : []), { reference, index }];
    this.render();
  }

  /** @param {string | null} id */
  plant(id) {
    this.mistake = MISTAKES.find((mistake) => mistake.id === id) ?? null;
    this.session.engine = this.mistake?.engine ?? READABLE;
    this.compute();
  }

  /** @param {number} number */
  choose_checkpoint(number) {
    this.checkpoint = number;
    this.updates = 0;
    this.session.parameters = copy(this.checkpoints[number].parameters);
    this.compute();
  }

  render() {
    for (const panel of this.panels) panel();
  }
}
