// Updates: the weights take steps against their gradients, and the loss of this text falls.

import { chart } from "./chart.js";
import { breath, button, h, replace } from "./dom.js";
import { formulas_of, number } from "./format.js";
import { build_optimizer, clip_scale, global_norm, update } from "./optim.js";
import { Session } from "./session.js";
import { prose } from "./terms.js";
import { copy } from "./weights.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./scope.js").Tensors} Tensors */
/** @typedef {import("./optim.js").Optimizer} Optimizer */

const UNDO = 8; // states kept: each has the parameters and the optimiser's memory
const LEARNT = 0.05; // nats per token
const OTHERS = ["Four plus five is nine.", "The cat is an animal."]; // one that is not the reader's shows what is forgotten
const FRAME = 40; // milliseconds of computing between two drawings

/** @param {App} app @param {number} lr @param {Optimizer} optimizer */
export function one_update(app, lr, optimizer) {
  const { session } = app, gradients = session.backward();
  update(optimizer, session.parameters, gradients, lr, clip_scale(global_norm(gradients), 1));
  return session.forward();
}

/** A fresh optimiser for these parameters. @param {App} app @param {"sgd" | "adamw"} kind @param {Tensors} parameters */
export function optimizer_for(app, kind, parameters) {
  const decay = new Map(app.data.parameters.filter(({ decays }) => decays).map(({ name }) => [name, 0.01]));
  return build_optimizer(kind, parameters, decay, [0.9, 0.99]);
}

/** @param {App} app */
export function learn(app) {
  const panel = h("div", { class: "learn" });
  /** @type {"sgd" | "adamw"} */
  let kind = "adamw";
  const rates = { adamw: 0.001, sgd: 0.1 };
  /** @type {{ parameters: Tensors, optimizer: Optimizer, losses: number[] }[]} */
  let past = [];
  /** @type {Tensors | null} */
  let before = null; // the parameters before the last press, to show what changed
  let optimizer = optimizer_for(app, kind, app.session.parameters), losses = [NaN], running = false, seen = app.session.parameters, text = app.text;

  // One element throughout, since a button that is made anew while it is pressed is not pressed.
  const stop = button("stop", () => { running = false; });
  const clone = (/** @type {Optimizer} */ o) => ({ ...o, m: copy(o.m), v: copy(o.v) });
  async function run(/** @type {number} */ steps) {
    if (running || !app.need_backward()) return;
    running = true;
    past = [...past.slice(1 - UNDO), { parameters: copy(app.session.parameters), optimizer: clone(optimizer), losses: [...losses] }];
    before = past[past.length - 1].parameters;
    let drawn = performance.now();
    for (let i = 0; i < steps && running; i++) {
      losses.push(one_update(app, rates[kind], optimizer));
      app.updates++;
      if (losses[losses.length - 1] < LEARNT && steps === Infinity) break;
      if (!Number.isFinite(app.session.loss) || losses.length > 2000) break;
      if (performance.now() - drawn > FRAME) {
        app.compute();
        await breath();
        drawn = performance.now();
      }
    }
    running = false;
    app.compute();
  }
  function undo() {
    const state = past.pop();
    if (!state) return;
    app.updates -= losses.length - state.losses.length;
    ({ optimizer, losses } = state);
    app.session.parameters = seen = state.parameters;
    before = null;
    app.compute();
  }
  function restore() {
    past = [];
    before = null;
    app.choose_checkpoint(app.checkpoint);
  }
  function choose(/** @type {"sgd" | "adamw"} */ other) {
    kind = other;
    optimizer = optimizer_for(app, kind, app.session.parameters);
    app.render();
  }
  app.panels.push(() => {
    if (app.session.parameters !== seen) { // another checkpoint
      seen = app.session.parameters;
      optimizer = optimizer_for(app, kind, seen);
      [past, before, losses] = [[], null, []];
    }
    if (app.text !== text || losses.length === 0) [text, losses] = [app.text, [app.session.loss]];
    if (Number.isNaN(losses[0])) losses[0] = app.session.loss;
    if (app.tab !== "learn") return;
    const none = app.session.ids.length < 2;
    const radio = (/** @type {"sgd" | "adamw"} */ value, /** @type {string} */ name) => h("label", {}, h("input", { type: "radio", name: "optimizer", "data-key": value, ...(kind === value ? { checked: true } : {}), onchange: () => choose(value) }), name);
    const go = (/** @type {string} */ name, /** @type {number} */ steps) => button(name, () => run(steps), { disabled: none || running });
    replace(panel,
      h("h2", {}, "Let it learn this text"),
      h("p", {}, prose("An update moves every parameter a little against its gradient. The loss of your text falls; what the model knew of other texts may suffer. AdamW and SGD are two ways to choose the step, and the learning rate says how far it goes.", new Set())),
      h("fieldset", {}, h("legend", {}, "Optimiser"), radio("adamw", "AdamW"), radio("sgd", "SGD"),
        h("label", {}, "learning rate ", h("input", { type: "number", step: "any", min: 0, max: 10, value: rates[kind], "data-key": "rate", onchange: (/** @type {any} */ e) => { rates[kind] = Math.max(0, Math.min(10, Number(e.target.value) || 0)); } }))),
      h("div", { class: "buttons" }, go("1 update", 1), go("10 updates", 10), go("100 updates", 100), go("until it is learnt", Infinity),
        running ? stop : null,
        button("undo", undo, { disabled: !past.length || running }), button("restore the checkpoint", restore, { disabled: !app.updates || running })),
      h("p", { role: "status" }, "loss ", h("b", {}, number(app.session.loss, 4)), " nats per token", app.session.loss < LEARNT ? ", learnt" : "", `, ${app.updates} update${app.updates === 1 ? "" : "s"} since the checkpoint`),
      chart([{ name: "loss", values: losses, kind: "good" }], "The loss of this text by update"),
      forgotten(app),
      h("pre", { class: "math" }, formulas_of(app.data.excerpts[`${kind}_update`].formula).formulas.join("\n")),
      h("p", { class: "symbols" }, ...prose(SYMBOLS[kind], new Set())),
      before ? changes(app, before) : h("p", { class: "soft" }, "After an update, the change of each tensor stands here."));
  });
  return panel;
}

const SYMBOLS = {
  adamw: "θ: a parameter. g: its gradient. m and v: running means of g and of g², with m̂ and v̂ corrected for their start at 0. β₁ and β₂: how slowly those move. η: the learning rate. λ: the weight decay. s: at most 1, so that all gradients together are no larger than 1. ε: against a division by 0.",
  sgd: "θ: a parameter. g: its gradient. η: the learning rate. λ: the weight decay. s: at most 1, so that all gradients together are no larger than 1.",
};

/** What the updates have done to another text. @param {App} app */
function forgotten(app) {
  if (!app.updates) return null;
  const text = [app.data.text, ...OTHERS].find((other) => other !== app.text) ?? "";
  const loss = (/** @type {Tensors} */ parameters) => {
    const other = new Session(app.session.config, parameters, app.session.end);
    other.read(app.tokenizer.encode(text));
    return other.forward();
  };
  const [before, now] = [loss(app.checkpoints[app.checkpoint].parameters), loss(app.session.parameters)];
  return h("p", { class: "soft" }, "Another text, ", h("q", {}, text), `: loss ${number(before, 3)} before your updates, ${number(now, 3)} now${now > before + 0.1 ? ". It is being forgotten." : "."}`);
}

/** How far each tensor went in the last press, relative to its size. @param {App} app @param {Tensors} before */
function changes(app, before) {
  const rows = [...app.session.parameters].map(([name, p]) => {
    const old = /** @type {import("./tensor.js").Tensor} */ (before.get(name)).data;
    let moved = 0, size = 0;
    for (let i = 0; i < p.data.length; i++) {
      moved += (p.data[i] - old[i]) ** 2;
      size += old[i] ** 2;
    }
    return { name, moved: Math.sqrt(moved), relative: size ? Math.sqrt(moved / size) : NaN }; // some matrices are 0 before training
  });
  const largest = Math.max(...rows.map(({ relative }) => relative || 0), 1e-12);
  return h("section", {}, h("h3", {}, "What changed in the last press"), h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "change of each tensor" }, h("table", { class: "changes" },
    h("thead", {}, h("tr", {}, ["parameter", "‖change‖", "", "of its size"].map((name) => (name ? h("th", { scope: "col" }, name) : h("td"))))),
    h("tbody", {}, rows.map(({ name, moved, relative }) => {
      const bar = h("span", { class: "fill" });
      bar.style.setProperty("width", `${(100 * (relative || 0)) / largest}%`);
      return h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), h("td", { class: "number" }, number(moved, 3)), h("td", { class: "bar-cell" }, h("span", { class: "bar", "aria-hidden": "true" }, bar)), h("td", { class: "number" }, Number.isNaN(relative) ? "it was 0" : `${number(100 * relative, 2)}%`));
    })))));
}
