// One operation: its formula, its lines of ops.py, what goes in and out, what it saves and when that is freed.

import { button, h, replace } from "./dom.js";
import { bytes, formulas_of, shape } from "./format.js";
import { end_of_scale, heatmap } from "./heatmap.js";
import { has } from "./mistakes.js";
import { Tensor } from "./tensor.js";
import { prose } from "./terms.js";
import { PURPOSES, words_of } from "./words.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./layers.js").Layer} Layer */

/** @param {App} app */
export function operation(app) {
  const panel = h("div", { class: "operation" });
  app.panels.push(() => {
    if (app.tab !== "operation") return;
    const layer = /** @type {Layer} */ (app.session.layers.find(({ name }) => name === app.layer));
    const backward = app.direction === "backward";
    replace(panel, heading(app, layer), formula(app, layer, backward), ...(backward ? backward_maps(app, layer) : forward_maps(app, layer)), backward ? null : saved(app, layer));
  });
  return panel;
}

/** @param {App} app @param {Layer} layer */
function heading(app, layer) {
  const words = words_of(layer), short = layer.name.split(".").at(-1) ?? "";
  const at = app.session.layers.indexOf(layer), neighbours = app.session.layers;
  const way = (/** @type {"forward" | "backward"} */ direction, /** @type {string} */ text) =>
    button(text, () => { if (direction === "forward") app.stop_backward(); app.look_at(layer.name, direction); }, { "aria-pressed": app.direction === direction, disabled: direction === "backward" && app.session.ids.length < 2 });
  return h("div", { class: "heading" },
    h("h2", {}, words.title),
    h("div", { class: "ways" }, h("div", { class: "switch", role: "group", "aria-label": "Direction" }, way("forward", "Forward"), way("backward", "Backward")),
    h("div", { class: "neighbours" },
      button("↓ below", () => app.look_at(neighbours[at - 1].name), { disabled: at === 0 }), button("↑ above", () => app.look_at(neighbours[at + 1].name), { disabled: at === neighbours.length - 1 }))),
    h("code", {}, layer.name), h("p", {}, PURPOSES[short] ? h("b", {}, PURPOSES[short], " ") : null, prose(app.direction === "backward" ? words.backward : words.forward, new Set())));
}

/** @param {App} app @param {Layer} layer @param {boolean} backward */
function formula(app, layer, backward) {
  const words = words_of(layer);
  if (layer.op === "residual") {
    const [line] = backward ? [`dx = dx + dh`] : ["x = x + h"];
    return h("div", { class: "formula" }, h("pre", {}, line), h("p", { class: "place" }, `src/custom_transformer/maths/${app.session.config.architecture}.py, block_forward and block_backward. Derivation: `, chapter(words.chapter)));
  }
  const found = app.data.excerpts[`${words.excerpt}_${backward ? "backward" : "forward"}`];
  const planted = app.mistake && has(app.mistake, layer.op)
    ? h("div", { class: "planted" }, h("b", {}, "A mistake is planted in this operation: "), h("code", {}, app.mistake.planted)) : null;
  // Rotary attention's docstring says in words how it differs from causal attention, whose formula it has.
  const { formulas, remark } = layer.op === "rotary_attention"
    ? { ...formulas_of(app.data.excerpts[`causal_attention_${backward ? "backward" : "forward"}`].formula), remark: found.formula.replaceAll("`", "") } : formulas_of(found.formula);
  return h("div", { class: "formula" }, h("pre", { class: "math" }, formulas.join("\n")), remark ? h("p", { class: "place" }, remark) : null,
    h("p", { class: "symbols" }, ...prose(symbols(words, backward), new Set())), planted,
    lines(found, true), helpers(app, found).map((helper) => lines(helper, false)),
    h("p", { class: "place" }, source(found.place), ". Derivation: ", chapter(words.chapter)));
}

/** Whether this copy of the page stands in the site that make docs builds, beside the book; elsewhere links to that would
 * lead nowhere. */
const beside_book = () => "site" in document.documentElement.dataset;

/** @param {string} place "src/…/ops.py, line 7" */
function source(place) {
  return beside_book() ? h("a", { href: `source/${place.replace(", line ", ".html#line-")}` }, place) : place;
}

/** @param {string} name */
function chapter(name) {
  return beside_book() ? h("a", { href: `book/${name}.html` }, `the book’s chapter ${name}`)
    : h("span", {}, "the book’s chapter ", h("code", {}, `docs/book/${name}.md`));
}

/** What the formula's letters stand for. @param {import("./words.js").Words} words @param {boolean} backward */
function symbols(words, backward) {
  return `${words.symbols}${backward ? " d before a name: the gradient of the loss with respect to it." : ""}`;
}

/** @param {import("./app.js").Excerpt} excerpt @param {boolean} open */
function lines(excerpt, open) {
  return h("details", { open }, h("summary", {}, `ops.py: ${excerpt.signature}`), h("pre", { class: "code" }, excerpt.code.split("\n").map((line) => h("span", {}, line))));
}

/** Functions of ops.py that the shown one calls. @param {App} app @param {import("./app.js").Excerpt} found */
function helpers(app, found) {
  return Object.entries(app.data.excerpts).filter(([name, excerpt]) => excerpt !== found && found.code.includes(`${name}(`)).map(([, excerpt]) => excerpt);
}

/** @param {App} app @param {Layer} layer */
function forward_maps(app, layer) {
  const { name, op, x } = layer, y = `y:${name}`;
  const input = op === "lookup" ? ids(app) : heatmap(app, x, { title: op === "residual" ? "from the branch, h" : "comes in, x", words: from(x) });
  const weights = layer.parameters.filter((parameter) => op !== "lookup" || parameter).map((parameter) => heatmap(app, `w:${parameter}`, { title: `parameter ${short(parameter)}` }));
  const attention = op.endsWith("attention"), inner = attention ? [heads(app, layer, "P", "attention P of each head", "Rows are queries, columns keys; each row adds up to 1. Grey is the masked future.")]
    : op === "qk_norm" ? [heatmap(app, `a:${name}.r`, { title: "r of each query and key", words: "A column for each head’s query, then one for each head’s key." })]
      : op === "cross_entropy" ? [heatmap(app, "a:loss.probabilities", { title: "softmax: probabilities" }), heatmap(app, "a:loss.losses", { title: "loss of each token" })] : [];
  if (op === "residual") return [sum(app, [[layer.before ?? "", "the stream, x"], [x, "the branch, h"]], y, "x + h")];
  if (op === "cross_entropy") return [heatmap(app, x, { title: "logits come in" }), ...inner];
  return [h("h3", {}, "Values"), input, ...weights, ...inner, heatmap(app, y, { title: "goes out, y" })];
}

/** @param {App} app */
function ids(app) {
  return h("p", {}, "Token ids come in: ", h("code", {}, [...app.session.ids].join(" ")));
}

/** @param {App} app @param {Layer} layer */
function backward_maps(app, layer) {
  const { name, op, dy } = layer;
  if (!app.session.has_backward) return [h("p", {}, "Type a text of at least one token, and there is something to learn from.")];
  const incoming = op === "cross_entropy" ? h("p", {}, "dL = 1 comes in: the loss changes one for one with itself.")
    : dy.length > 1 && op !== "residual" ? sum(app, dy.map((other) => [other, origin(other)]), `dy:${name}`, "comes in, dy")
      : heatmap(app, `dy:${name}`, { title: "gradient comes in, dy", words: "of this operation’s result" });
  const parts = [h("h3", {}, "Gradients"), ...(op === "residual" && dy.length > 1 ? [sum(app, dy.map((other) => [other, origin(other)]), `dy:${name}`, "their sum")] : [incoming])];
  parts.push(silent(app, layer));
  if (op.endsWith("attention")) {
    parts.push(heads(app, layer, "dP", "dP of each head", "Would the loss grow if a token took over more of another?"),
      heads(app, layer, "dS", "dS of each head", "The same for the scores, through the softmax: each row adds up to 0."));
  }
  if (op === "residual") {
    parts.push(h("div", { class: "split" }, h("p", {}, h("b", {}, "The split: "), "both sides of the sum receive the same gradient. One copy goes on down the stream, one into the branch:"),
      h("div", { class: "pair" }, heatmap(app, `dy:${name}`, { title: "down the stream", compact: true }), heatmap(app, `dy:${layer.x.slice(2)}`, { title: "into the branch", compact: true }))));
  } else if (op !== "lookup") parts.push(heatmap(app, op === "positions" ? `dy:${name}` : `dx:${name}`, { title: `gradient goes out, ${op === "cross_entropy" ? "dz" : "dx"}`, words: "to the operation below" }));
  parts.push(joined(app, layer));
  if (op === "lookup" && app.session.config.tie_embeddings) {
    parts.push(h("div", { class: "split" }, h("p", {}, h("b", {}, "Two contributions: "), "the tied table is used at the bottom, where its rows are looked up, and at the top, as the head’s matrix. Its gradient is the sum."),
      sum(app, [["a:token_embedding.as_embedding", "as embedding"], ["dw:head", "as head"]], "dw:token_embedding", "their sum")));
  } else if (op === "head") parts.push(heatmap(app, "dw:head", { title: app.session.config.tie_embeddings ? "gradient of the table, the head’s contribution" : "gradient of head.weight" }));
  else parts.push(...layer.parameters.map((parameter) => heatmap(app, `dw:${parameter}`, { title: `gradient of ${short(parameter)}` })));
  parts.push(saved(app, layer));
  return parts.filter(Boolean);
}

/** Why a gradient is 0 throughout, where it is: above it stands a matrix that is 0, as some are before training.
 * @param {App} app @param {Layer} layer */
function silent(app, layer) {
  const { session } = app, zero = (/** @type {string} */ reference) => session.tensor(reference)?.data.every((v) => v === 0) ?? false;
  if (!zero(`dy:${layer.name}`)) return null;
  const above = session.layers.slice(session.layers.indexOf(layer) + 1).find(({ block, parameters }) => block === layer.block && parameters.some((parameter) => zero(`w:${parameter}`)));
  return above ? h("p", { class: "silent" }, h("b", {}, "This gradient is 0: "), "it came through ", h("code", {}, above.name), ", whose weights begin as 0, and through which nothing comes back yet. That matrix has a gradient and learns first; after an update of it this one is no longer 0.") : null;
}

/** Where a branch left the stream, its gradient joins the stream's again. @param {App} app @param {Layer} layer */
function joined(app, layer) {
  if (layer.block === null || !/norm_\d$/.test(layer.name)) return null;
  const stream = layer.name.endsWith("norm_2") ? `dy:blocks.${layer.block}.residual_2` : `dy:blocks.${layer.block}.residual_1`;
  const total = layer.name.endsWith("norm_2") ? `dy:blocks.${layer.block}.residual_1` : layer.block === 0 ? `dy:${app.session.layers.some(({ op }) => op === "positions") ? "position" : "token"}_embedding` : `dy:blocks.${layer.block - 1}.residual_2`;
  return h("div", { class: "split" }, h("p", {}, h("b", {}, "The residual’s sum: "), "here the branch left the stream, so the two gradients add."),
    sum(app, [[stream, "the stream’s"], [`dx:${layer.name}`, "the branch’s"]], total, "their sum"));
}

/** Heat maps of one scale with + and = between them. @param {App} app @param {string[][]} parts @param {string} total @param {string} title */
function sum(app, parts, total, title) {
  const end = Math.max(...[...parts.map(([reference]) => reference), total].map((reference) => end_of_scale(app.session.tensor(reference))));
  const maps = parts.map(([reference, name]) => heatmap(app, reference, { title: name, compact: true, end }));
  return h("div", { class: "sum" }, maps.flatMap((map, i) => [i ? h("span", { class: "sign" }, "+") : null, map]), h("span", { class: "sign" }, "="), heatmap(app, total, { title, compact: true, end }));
}

/** @param {App} app @param {Layer} layer @param {string} part @param {string} title @param {string} words */
function heads(app, layer, part, title, words) {
  return h("section", { class: "heads", "aria-label": title }, h("p", {}, h("b", {}, title), ". ", h("span", { class: "soft" }, words)),
    h("div", { class: "grid" }, Array.from({ length: app.session.config.n_heads }, (_, i) => heatmap(app, `a:${layer.name}.${part}`, { plane: i, title: `head ${i}`, compact: true, causal: true, shares: part === "P" }))));
}

/** @param {string} reference */
function from(reference) {
  return reference.includes(":") ? `from ${reference.slice(2)}` : "";
}

/** @param {string} reference */
function origin(reference) {
  return reference.startsWith("dx:") ? (/norm_\d$/.test(reference) ? "the branch’s" : `from ${reference.slice(3)}`) : "the stream’s";
}

/** @param {string} parameter */
function short(parameter) {
  return parameter.replace(/^blocks\.\d+\./, "");
}

/** What the forward saved for this backward, and when it is freed. @param {App} app @param {Layer} layer */
function saved(app, layer) {
  const own = app.session.saved.get(layer.name), names = words_of(layer).saved;
  const at = app.steps.indexOf(layer), gone = app.step >= at;
  if (layer.op === "residual") return h("p", { class: "saved" }, h("b", {}, "Saved by the forward: "), "nothing. A sum’s gradient needs no number of the forward.");
  const parameters = new Set([...app.session.parameters.values()].map((p) => p.data));
  const items = names.map((name, i) => {
    const tensor = own?.[i];
    if (!name || !(tensor instanceof Tensor)) return null;
    const parameter = parameters.has(tensor.data);
    return h("li", {}, h("code", {}, name), ` ${shape(tensor.shape)}, `, parameter ? "a parameter, which stays" : `${bytes(tensor.data.byteLength)}${app.step >= 0 ? (gone ? ", freed after this step" : ", held") : ""}`);
  });
  const text = app.step < 0 ? `Freed after step ${at + 1} of ${app.steps.length} of the backward, which is this operation’s.` : "";
  return h("div", { class: "saved" }, h("p", {}, h("b", {}, "Saved by the forward for the backward. "), text), h("ul", {}, items), app.step >= 0 ? memory(app) : null);
}

/** How much is still held at this step. @param {App} app */
function memory(app) {
  const held = (/** @type {number} */ step) => {
    const parameters = new Set([...app.session.parameters.values()].map((p) => p.data)), seen = new Set();
    app.steps.slice(step).forEach(({ name }) => (app.session.saved.get(name) ?? []).forEach((/** @type {any} */ x) => x instanceof Tensor && !parameters.has(x.data) && seen.add(x.data)));
    return [...seen].reduce((sum, data) => sum + data.byteLength, 0);
  };
  const all = held(0), left = held(app.step + 1), bar = h("span", { class: "fill" });
  bar.style.setProperty("width", `${(100 * left) / (all || 1)}%`);
  return h("p", { class: "memory" }, h("span", { class: "bar", "aria-hidden": "true" }, bar), ` after this step ${bytes(left)} of ${bytes(all)} are still held`);
}
