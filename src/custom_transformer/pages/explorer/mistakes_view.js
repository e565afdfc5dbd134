// A mistake planted: what finite differences say of it, and what it does to training.

import { chart } from "./chart.js";
import { TOLERANCE, check_parameter } from "./check.js";
import { breath, button, h, replace } from "./dom.js";
import { number } from "./format.js";
import { optimizer_for } from "./learn.js";
import { mistakes_of } from "./mistakes.js";
import { Pass, READABLE } from "./model.js";
import { clip_scale, global_norm, update } from "./optim.js";
import { prose } from "./terms.js";
import { copy } from "./weights.js";

/** @typedef {import("./app.js").App} App */

const UPDATES = 60;

/** What another test finds of a mistake that finite differences cannot betray. @type {Record<string, (app: App) => string>} */
const OTHER_TESTS = {
  mask: (app) => `Another test finds it: the first token’s logits must not depend on the last token. They do${leak(app) > 1e-6 ? `, by ${number(leak(app), 3)}` : " not on this text"}.`,
  qk_values: (app) => `Another test finds it: the logits beside those of another program that has the same weights. They differ by up to ${number(distance(app), 3)}.`,
};

/** @param {App} app */
export function mistakes(app) {
  const panel = h("div", { class: "mistakes" });
  /** @type {import("./check.js").Row[]} */
  let rows = [];
  let checking = false, training = false, known = "";
  /** @type {{ right: number[], wrong: number[] } | null} */
  let curves = null;

  async function check() {
    if (checking || app.session.ids.length < 2) return;
    checking = true;
    rows = [];
    const of = known;
    for (const name of app.session.parameters.keys()) {
      if (known !== of) break;
      rows.push(check_parameter(app.session, name));
      draw();
      await breath();
    }
    checking = false;
    draw();
  }
  async function train() {
    if (training || !app.mistake || app.session.ids.length < 2) return;
    training = true;
    const of = known, { config, ids, labels } = app.session;
    curves = { right: [], wrong: [] };
    const runs = [READABLE, app.mistake.engine].map((engine) => {
      const parameters = copy(app.checkpoints[app.checkpoint].parameters); // a text that the reader has made it learn would show nothing
      return { engine, parameters, optimizer: optimizer_for(app, "sgd", parameters) };
    });
    const lines = [curves.right, curves.wrong];
    for (let i = 0; i <= UPDATES && known === of; i++) {
      runs.forEach(({ engine, parameters, optimizer }, k) => {
        const pass = new Pass(config, parameters, engine);
        lines[k].push(pass.loss(ids, labels));
        const gradients = pass.loss_backward();
        update(optimizer, parameters, gradients, 0.1, clip_scale(global_norm(gradients), 1));
      });
      if (i % 4 === 0) { draw(); await breath(); }
    }
    training = false;
    draw();
  }
  function draw() {
    if (app.tab !== "mistakes") return;
    const { mistake } = app, none = app.session.ids.length < 2;
    const option = (/** @type {string} */ id, /** @type {string} */ name) => h("label", { class: "option" }, h("input", { type: "radio", name: "mistake", "data-key": `mistake-${id}`, ...((mistake?.id ?? "") === id ? { checked: true } : {}), onchange: () => app.plant(id || null) }), name);
    replace(panel,
      h("h2", {}, "Plant a mistake"),
      h("p", {}, prose("Errors that people make in a backward. Most leave a model that still runs and often still learns, only worse. A check of every gradient by finite differences finds what a loss curve hides.", new Set())),
      h("fieldset", { class: "options" }, h("legend", {}, "Which one"), option("", "none"), mistakes_of(app.session.config).map(({ id, title }) => option(id, title))),
      mistake ? h("div", { class: "difference" }, h("p", {}, mistake.words), h("pre", {}, h("del", {}, mistake.right), "\n", h("ins", {}, mistake.planted))) : null,
      h("div", { class: "buttons" }, button(checking ? "checking …" : "check every gradient", check, { disabled: none || checking, "data-key": "check" }),
        button(training ? "training …" : `train ${UPDATES} updates with and without it`, train, { disabled: none || !mistake || training, "data-key": "train" }), mistake ? button("remove the mistake", () => app.plant(null)) : null),
      curves ? h("section", {}, h("h3", {}, "What it does to training"), chart([{ name: "right", values: curves.right, kind: "good" }, { name: "with the mistake", values: curves.wrong, kind: "bad" }], "Loss by update, right and with the mistake"),
        h("p", { class: "soft" }, verdict(curves))) : null,
      rows.length ? table(rows, checking) : h("p", { class: "soft" }, "The check moves each parameter tensor along a random direction and along one number, runs the model in float64, and compares the loss’s change with the gradient."));
  }
  function table(/** @type {typeof rows} */ checked, /** @type {boolean} */ unfinished) {
    const wrong = checked.filter(({ error }) => !(error < TOLERANCE));
    const line = unfinished ? `${checked.length} of ${app.session.parameters.size} checked …`
      : wrong.length ? `✗ ${wrong.length} of ${checked.length} gradients are off.`
        : app.mistake ? (app.mistake.seen ? "✓ All agree: this text and these weights do not show the mistake. Try another text, or a later checkpoint." : "✓ All agree: finite differences compare a backward with its own forward, and here both have the mistake.") : `✓ All ${checked.length} gradients agree.`;
    const other = app.mistake && !app.mistake.seen && !unfinished ? h("p", {}, OTHER_TESTS[app.mistake.id](app)) : null;
    return h("section", {}, h("h3", {}, "What finite differences say"), h("p", { role: "status", class: wrong.length ? "bad" : "good" }, h("b", {}, line)), other,
      h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "each parameter’s check" }, h("table", { class: "checks" },
        h("thead", {}, h("tr", {}, ["parameter", "one number: backward", "measured", "largest deviation, relative", ""].map((name) => (name ? h("th", { scope: "col" }, name) : h("td"))))),
        h("tbody", {}, checked.map(({ name, error, backward, measured, index }) => h("tr", { class: error < TOLERANCE ? "" : "off" }, h("th", { scope: "row" }, h("code", {}, name)),
          h("td", { class: "number" }, h("button", { type: "button", class: "factor", "data-key": `g${name}`, onclick: () => app.inspect(`dw:${name}`, index) }, number(backward))),
          h("td", { class: "number" }, number(measured)), h("td", { class: "number" }, number(error, 2)), h("td", {}, error < TOLERANCE ? "✓" : "✗ off")))))));
  }
  app.panels.push(() => {
    const now = JSON.stringify([app.text, app.mistake?.id, app.checkpoint, app.updates]);
    if (now !== known) [known, rows, curves, checking] = [now, [], null, false];
    draw();
  });
  return panel;
}

/** @param {{ right: number[], wrong: number[] }} curves */
function verdict({ right, wrong }) {
  if (right.length <= UPDATES) return "SGD, learning rate 0.1, both from the checkpoint’s weights on your text …";
  const [a, b] = [right[UPDATES], wrong[UPDATES]];
  const words = !Number.isFinite(b) || b > wrong[0] * 1.05 ? "It does not learn at all." : b > a * 1.3 + 0.01 ? "It still learns, but worse." : b < a * 0.7 - 0.01 ? "It seems to learn better, which a curve alone would praise." : "The curves hardly differ: a loss curve would never have told you.";
  return `${words} After ${UPDATES} updates of the checkpoint by SGD with a learning rate of 0.1: ${number(a, 3)} without, ${number(b, 3)} with the mistake.`;
}

/** The logits of a text. @param {App} app @param {Int32Array} ids @param {import("./model.js").Engine} [engine] */
function logits_of(app, ids, engine = app.session.engine) {
  const { config, parameters, labels } = app.session;
  /** @type {import("./tensor.js").Numbers} */
  let logits = new Float32Array();
  new Pass(config, parameters, engine, (kind, name, tensor) => { if (kind === "y" && name === "head") logits = tensor.data; }).loss(ids, labels);
  return logits;
}

/** The largest difference. @param {import("./tensor.js").Numbers} a @param {import("./tensor.js").Numbers} b */
function most(a, b) {
  let largest = 0;
  for (let i = 0; i < a.length; i++) largest = Math.max(largest, Math.abs(a[i] - b[i]));
  return largest;
}

/** How far the first token's logits move when the last token changes. @param {App} app */
function leak(app) {
  const { config, ids } = app.session, other = ids.slice();
  other[ids.length - 1] = (other[ids.length - 1] + 1) % config.vocab_size;
  return most(logits_of(app, ids).slice(0, config.vocab_size), logits_of(app, other).slice(0, config.vocab_size));
}

/** How far the mistake moves the logits. @param {App} app */
function distance(app) {
  return most(logits_of(app, app.session.ids), logits_of(app, app.session.ids, READABLE));
}
