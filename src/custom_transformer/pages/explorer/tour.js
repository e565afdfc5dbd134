// A first visit, step by step. Each step brings the page where it is about, and marks that place.

import { architecture_of } from "./architecture.js";
import { place } from "./check.js";
import { button, h, replace } from "./dom.js";
import { mistakes_of } from "./mistakes.js";
import { prose } from "./terms.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {{ title: string, words: string, at: string, go: (app: App) => void }} Step */

/** @param {App} app */
function lower_block(app) {
  return `blocks.${app.session.config.n_blocks - 1}`;
}

/** Block 0's layer before the units. @param {App} app */
function widens(app) {
  return `blocks.0.${architecture_of(app.session.config).widens}`;
}

/** The place of a tensor's largest number. @param {App} app @param {string} reference */
function largest(app, reference) {
  const tensor = app.session.tensor(reference), data = tensor?.data ?? [];
  let best = 0;
  for (let i = 0; i < data.length; i++) if (Math.abs(data[i]) > Math.abs(data[best])) best = i;
  return place(best, tensor?.shape ?? [1, 1]);
}

/** The place of a row's largest positive number, which the units let pass. @param {App} app @param {string} reference @param {number} row */
function largest_of_row(app, reference, row) {
  const { data, width } = /** @type {import("./tensor.js").Tensor} */ (app.session.tensor(reference)), numbers = data.subarray(row * width, (row + 1) * width);
  return [row, numbers.indexOf(Math.max(...numbers))];
}

/** @type {Step[]} */
export const STEPS = [
  { title: "A text becomes tokens", at: ".strip", go: (app) => { app.stop_backward(); app.focus = Math.min(2, app.session.ids.length - 1); app.tab = "predict"; app.render(); },
    words: "Type into the box: the whole model computes at each key. The text is cut into tokens; a dot stands for a space, and “start” begins every text. The number under each is its loss: how much it surprised the model, in nats. A strong orange line means surprising." },
  { title: "What the model expects", at: ".expectations", go: (app) => { app.tab = "predict"; app.render(); },
    words: "Choose a token. After it, the model gives every entry of its vocabulary a logit, and softmax turns these into probabilities. The one that really comes is marked." },
  { title: "The way up", at: ".drawing", go: (app) => { app.stop_backward(); app.look_at("blocks.0.attention", "forward"); },
    words: "This is the architecture itself, from the tokens at the bottom to the loss at the top. The line at the left is the residual stream; branches read it and add to it. Here you look at attention, where tokens take something over from earlier ones." },
  { title: "Numbers as colours", at: ".operation .map", go: (app) => app.look_at(widens(app), "forward"),
    words: "A heat map shows a tensor: a row for each token, a column for each channel. Blue is negative, orange positive; the scale stands beneath. Point at it and read; click, and the number opens beside it." },
  { title: "What made a number", at: "#inspector", go: (app) => { app.look_at(widens(app), "forward"); app.inspect(`y:${widens(app)}`, largest_of_row(app, `y:${widens(app)}`, Math.min(1, app.session.ids.length - 1))); },
    words: "This number is a sum of products: inputs times weights. Every factor can be clicked, and shows what made it in turn, down to the table of tokens." },
  { title: "The gradient starts at the loss", at: ".operation", go: (app) => { app.trail = []; app.go_to_step(0); },
    words: "Now the backward. Its question for each number: how fast would the loss change? It begins here: probability minus 1 for the right token, probability for all others." },
  { title: "And flows down", at: ".drawing", go: (app) => app.go_to_step(app.steps.findIndex(({ name }) => name === `${lower_block(app)}.${architecture_of(app.session.config).units}`)),
    words: "The same drawing, upside down. Each operation takes the gradient of its result and hands down the gradient of its input, by its own two lines of ops.py. The dashed lines show where it flows now. Step with the buttons above the drawing, or let it play." },
  { title: "The stream splits the gradient", at: ".operation .split", go: (app) => app.go_to_step(app.steps.findIndex(({ name }) => name === `${lower_block(app)}.norm_2`)),
    words: "A sum hands its gradient to both sides. So the gradient of the stream is itself a sum: what came down the stream, and what came through the branch." },
  { title: "Is it true?", at: "#inspector", go: (app) => { const name = `${lower_block(app)}.down.weight`; app.go_to_step(app.steps.findIndex((step) => step.name === `${lower_block(app)}.down`)); app.inspect(`dw:${name}`, largest(app, `dw:${name}`)); },
    words: "A gradient can be measured: move the number a little, run the model again, see how the loss changes. Both stand here side by side. You may check any number of the page so." },
  { title: "Let it learn", at: ".learn", go: (app) => { app.trail = []; app.stop_backward(); app.tab = "learn"; app.render(); },
    words: "Press an update: every parameter moves a little against its gradient, and the loss falls. A hundred, and it knows your sentence. A second text shows what is forgotten meanwhile. Undo brings it back; the slider at the top is the training run itself." },
  { title: "Plant a mistake", at: ".mistakes", go: (app) => { app.tab = "mistakes"; app.plant(mistakes_of(app.session.config)[0].id); },
    words: "A lost mean, a sign, a forgotten contribution: such a model often still learns. Press “check every gradient” and see how finite differences betray it. Then the page is yours: remove the mistake, and type something of your own." },
];

/** @param {App} app */
export function tour(app) {
  let at = -1;
  const panel = h("section", { class: "tour", "aria-label": "Guided tour", hidden: true });
  function show(/** @type {number} */ step) {
    for (const old of document.querySelectorAll(".toured")) old.classList.remove("toured");
    at = step;
    panel.hidden = at < 0;
    room();
    if (at < 0) return;
    if (at < STEPS.length - 1 && app.mistake) app.plant(null);
    STEPS[at].go(app);
    draw();
    room();
    const marked = document.querySelector(STEPS[at].at);
    marked?.classList.add("toured");
    /** @type {HTMLElement | null} */ (panel.querySelector("h2"))?.focus({ preventScroll: true });
    const tall = marked && marked.getBoundingClientRect().height > innerHeight - panel.offsetHeight - 30;
    marked?.scrollIntoView({ block: tall ? "start" : "nearest" });
  }
  /** What sticks to the window's top stays below the tour. */
  function room() {
    document.documentElement.style.setProperty("--tour", at < 0 ? "0px" : `${panel.offsetHeight + 6}px`);
  }
  function draw() {
    const { title, words } = STEPS[at];
    /** @type {Set<string>} */
    const seen = new Set();
    replace(panel,
      h("h2", { tabindex: -1 }, h("small", {}, `${at + 1} of ${STEPS.length} `), title), h("p", {}, prose(words, seen)),
      h("div", { class: "buttons" }, button("← back", () => show(at - 1), { disabled: at === 0 }), at === STEPS.length - 1 ? button("end", () => show(-1), { class: "main", "data-key": "next" }) : button("next →", () => show(at + 1), { class: "main", "data-key": "next" }),
        at === STEPS.length - 1 ? null : button("leave the tour", () => show(-1), { class: "quiet" })));
  }
  app.panels.push(() => { // panels are drawn anew, and the mark with them
    if (at >= 0) document.querySelector(STEPS[at].at)?.classList.add("toured");
  });
  return { panel, start: () => show(0) };
}
