// The page.

import { App, checkpoints_of } from "./app.js";
import { button, h, replace } from "./dom.js";
import { drawing } from "./drawing.js";
import { number } from "./format.js";
import { inspector } from "./inspector.js";
import { learn } from "./learn.js";
import { mistakes } from "./mistakes_view.js";
import { operation } from "./operation.js";
import { predict, strip } from "./predict.js";
import { tour } from "./tour.js";
import { prose, term } from "./terms.js";
import { TERMS } from "./words.js";

const TABS = /** @type {const} */ ([["predict", "Predict"], ["operation", "Operation"], ["learn", "Learn"], ["mistakes", "Mistakes"]]);

/** @param {App} app */
function header(app, /** @type {() => void} */ start) {
  const themes = /** @type {const} */ (["", "light", "dark"]);
  const theme = button("theme: system", () => {
    app.theme = themes[(themes.indexOf(app.theme) + 1) % 3];
    document.documentElement.dataset.theme = app.theme;
    theme.textContent = `theme: ${app.theme || "system"}`;
    app.render();
  }, { class: "quiet", "data-key": "theme" });
  const { config } = app.session, count = [...app.session.parameters.values()].reduce((sum, p) => sum + p.data.length, 0);
  return h("header", {}, h("div", {}, h("h1", {}, "See a gradient flow"),
    h("p", { class: "lead" }, prose(`A transformer of ${count.toLocaleString("en")} parameters (${config.n_blocks} blocks, ${config.n_heads} heads, ${config.d_model} channels) runs in this page, forward and backward, on what you type. Nothing leaves it.`, new Set()))),
  h("div", { class: "buttons" }, button("take the tour", start, { class: "main" }), theme));
}

/** @param {App} app */
function text_input(app) {
  const box = h("textarea", { id: "text", rows: 1, spellcheck: "false", autocomplete: "off", maxlength: 2000, oninput: (/** @type {any} */ event) => app.read(event.target.value) });
  box.value = app.text;
  const figures = h("p", { class: "figures", id: "figures" });
  const name = h("output", {}), label = h("label", { for: "checkpoint" }), slider = h("input", { type: "range", id: "checkpoint", min: 0, max: app.checkpoints.length - 1, value: app.checkpoint, step: 1, oninput: (/** @type {any} */ event) => app.choose_checkpoint(Number(event.target.value)) });
  app.panels.push(() => {
    const { session } = app, { forward, backward } = session.milliseconds, chosen = app.checkpoints[app.checkpoint];
    slider.value = String(app.checkpoint);
    slider.setAttribute("aria-valuetext", chosen.name);
    replace(name, chosen.name, ...(chosen.exact ? [] : [", ", term("rounded", "rounded")]), app.updates ? ` + ${app.updates} of your updates` : "");
    label.textContent = `Checkpoint ${app.checkpoint + 1} of ${app.checkpoints.length} of the training run`;
    const counted = session.ids.length - 1;
    replace(figures, h("span", {}, `${counted} `, term(counted === 1 ? "token" : "tokens", "token")), counted ? h("span", {}, term("loss", "loss"), " ", h("b", {}, number(session.loss, 4)), " ", term("nats per token", "nats per token")) : null, counted ? h("span", {}, term("perplexity", "perplexity"), ` ${number(Math.exp(session.loss), 3)}`) : null,
      h("span", { class: "soft" }, `forward ${forward.toFixed(0)} ms${session.has_backward ? `, backward ${backward.toFixed(0)} ms` : ""}`));
  });
  return h("section", { class: "input", "aria-label": "Your text" }, h("div", { class: "typing" }, h("label", { for: "text" }, "Your text"), box),
    h("div", { class: "moment" }, label, slider, name), strip(app), figures);
}

/** @param {App} app */
function backward_controls(app) {
  const bar = h("div", { class: "controls", role: "group", "aria-label": "The backward, step by step" });
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const next = () => {
    if (!app.playing) return;
    if (app.step >= app.steps.length - 1) { app.playing = false; return app.render(); }
    app.go_to_step(app.step + 1);
    timer = setTimeout(next, 1100);
  };
  const play = () => {
    clearTimeout(timer);
    app.playing = !app.playing;
    if (app.playing && (app.step < 0 || app.step >= app.steps.length - 1)) app.go_to_step(0);
    else app.render();
    if (app.playing) timer = setTimeout(next, 1100);
  };
  app.panels.push(() => {
    const none = app.session.ids.length < 2, begun = app.step >= 0;
    replace(bar,
      button(app.playing ? "❚❚ pause" : "▼ backward", play, { class: "main", disabled: none, "data-key": "play" }),
      button("◀ step", () => app.go_to_step(app.step - 1), { disabled: app.step <= 0, "aria-label": "◀ step back", "data-key": "previous" }),
      button("step ▶", () => app.go_to_step(app.step + 1), { disabled: none || app.step >= app.steps.length - 1, "aria-label": "next step ▶", "data-key": "following" }),
      begun ? button("▲ forward again", () => { app.stop_backward(); app.render(); }, { class: "quiet", "data-key": "stop" }) : null,
      h("span", { class: "soft", role: "status" }, begun ? `step ${app.step + 1} of ${app.steps.length}` : ""));
  });
  return bar;
}

/** @param {App} app @param {Record<string, HTMLElement>} contents */
function tabs(app, contents) {
  const list = h("div", { role: "tablist", class: "tabs", "aria-label": "What to look at" });
  const choose = (/** @type {import("./app.js").Tab} */ tab) => { app.tab = tab; app.render(); };
  const heads = TABS.map(([id, name]) => h("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, onclick: () => choose(id) }, name));
  const panels = TABS.map(([id]) => h("div", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, tabindex: -1 }, contents[id]));
  list.append(...heads);
  list.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const by = { ArrowRight: 1, ArrowLeft: TABS.length - 1 }[event.key];
    if (!by) return;
    const next = (TABS.findIndex(([id]) => id === app.tab) + by) % TABS.length;
    choose(TABS[next][0]);
    heads[next].focus();
  });
  app.panels.push(() => TABS.forEach(([id], i) => {
    heads[i].setAttribute("aria-selected", String(app.tab === id));
    heads[i].tabIndex = app.tab === id ? 0 : -1;
    panels[i].hidden = app.tab !== id;
  }));
  return [list, ...panels];
}

/** @param {App} app */
function banner(app) {
  const line = h("p", { class: "banner", role: "status" });
  app.panels.push(() => {
    line.hidden = !app.mistake && !app.missing;
    if (app.missing) replace(line, `This model has no place called ‘${app.missing}’: a model of another architecture may have it.`);
    if (app.mistake) replace(line, h("b", {}, "A mistake is planted: "), app.mistake.title, " ", button("remove it", () => app.plant(null), { "data-key": "remove" }));
  });
  return line;
}

function glossary() {
  return h("details", { class: "glossary" }, h("summary", {}, "Words"), h("dl", {}, Object.entries(TERMS).map(([term, words]) => h("div", {}, h("dt", {}, term), h("dd", {}, words)))));
}

async function start() {
  const data = JSON.parse(/** @type {HTMLElement} */ (document.getElementById("data")).textContent ?? "");
  const app = new App(data, await checkpoints_of(data)), guide = tour(app);
  const main = tabs(app, { predict: predict(app), operation: operation(app), learn: learn(app), mistakes: mistakes(app) });
  const root = /** @type {HTMLElement} */ (document.getElementById("app"));
  root.replaceChildren(header(app, guide.start), h("main", {}, text_input(app), guide.panel, banner(app),
    h("div", { class: "columns" }, h("section", { class: "left", "aria-label": "Architecture" }, backward_controls(app), drawing(app)), h("section", { class: "middle", "aria-label": "Details" }, main), inspector(app))),
  h("footer", {}, glossary(), h("p", { class: "soft" }, "Made by ", h("code", {}, "python -m custom_transformer explore"), ". The script in this page mirrors ", h("code", {}, "src/custom_transformer/maths/ops.py"), ", function by function; tests hold both equal.")));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.render());
  const go = () => { // #layer_norm, #blocks.0.norm_1 or #update
    const asked = decodeURIComponent(location.hash.slice(1));
    const layer = app.session.layers.find(({ name, op }) => name === asked || op === asked);
    app.missing = layer || asked === "update" ? "" : asked;
    if (layer) app.look_at(layer.name, "backward");
    else {
      if (asked === "update") app.tab = "learn";
      app.render();
    }
  };
  app.read(data.text);
  go();
  addEventListener("hashchange", go);
  Object.assign(window, { explorer: app }); // for whoever opens the console, and for the tests
}

start();
