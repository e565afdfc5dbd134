// One number: what made it, factor by factor, and beside a gradient the measured derivative.

import { axes_of, place_of, symbol_of, title_of } from "./describe.js";
import { button, h, replace } from "./dom.js";
import { explain } from "./explain.js";
import { number } from "./format.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./explain.js").Factor} Factor */

const SHOWN = 8; // products, the largest first; the others as one sum

/** @param {App} app */
export function inspector(app) {
  const panel = h("aside", { class: "inspector", id: "inspector", "aria-label": "One number" });
  /** @type {string} */
  let last = "";
  let all = false;
  app.panels.push(() => {
    const asked = app.trail.at(-1), key = JSON.stringify(asked ?? null);
    panel.classList.toggle("empty", !asked);
    if (key !== last) all = false;
    const fresh = key !== last;
    last = key;
    if (!asked) return replace(panel, h("h2", {}, "One number"), h("p", { class: "soft" }, "Click any number or any spot of a heat map: here you see what made it, and beside a gradient its measured value."));
    const more = () => { all = true; app.render(); };
    replace(panel, ...content(app, asked.reference, asked.index, all, more));
    if (fresh) panel.scrollTop = 0;
  });
  return panel;
}

/** @param {App} app @param {string} reference @param {number[]} index @param {boolean} all @param {() => void} more */
function content(app, reference, index, all, more) {
  const tensor = app.session.tensor(reference);
  if (!tensor) return [h("h2", {}, "One number"), h("p", {}, "It does not exist for this text.")];
  const value = tensor.at(...index), made = explain(app.session, reference, index);
  const back = app.trail.length > 1
    ? button(`← ${symbol_of(app.trail[app.trail.length - 2].reference)}`, () => { app.trail = app.trail.slice(0, -1); app.render(); }, { class: "quiet", "data-key": "back" }) : null;
  return [
    h("div", { class: "bar-of-buttons" }, h("h2", {}, "One number"), back, button("×", () => { app.trail = []; app.render(); }, { class: "quiet", "aria-label": "Close", "data-key": "close" })),
    h("div", {}, h("p", { class: "which" }, title_of(reference), h("br"), h("span", { class: "soft" }, place_of(app, reference, index))),
      h("p", { class: "value", role: "status" }, number(value, 6)), made ? products(app, made, value, all, more) : null),
    h("div", {}, measured(app, reference, index), neighbours(app, reference, index)),
  ];
}

/** @param {App} app @param {import("./explain.js").Explanation} made @param {number} value @param {boolean} all @param {() => void} more */
function products(app, made, value, all, more) {
  const sorted = made.products.length > SHOWN ? [...made.products].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)) : made.products;
  const shown = all ? sorted : sorted.slice(0, SHOWN).filter(({ value: product }, i) => sorted.length <= SHOWN || i === 0 || product !== 0), rest = sorted.slice(shown.length);
  const total = made.products.reduce((sum, product) => sum + product.value, 0);
  const rows = shown.map(({ factors, value: product }) => h("tr", {}, h("td", {}, h("div", { class: "factors" }, factors.flatMap((factor, i) => [i ? " × " : null, factor_of(app, factor)]))), h("td", { class: "number" }, factors.length > 1 || made.products.length > 1 ? number(product) : "")));
  const parts = [h("h3", {}, "What made it"), h("pre", { class: "math" }, made.formula), made.words ? h("p", { class: "soft" }, made.words) : null];
  if (made.inputs) parts.push(h("ul", { class: "inputs" }, made.inputs.slice(0, 24).map((factor) => h("li", {}, factor.label, " = ", factor_of(app, factor, false)))));
  if (!rows.length) return parts.filter(Boolean);
  parts.push(h("table", { class: "products" },
    h("caption", { class: "hidden" }, "products and their sum"),
    h("tbody", {}, rows,
      rest.length ? h("tr", {}, h("td", {}, button(rest.some(({ value: product }) => product !== 0) ? `+ ${rest.length} smaller ones` : `+ ${rest.length} that ${rest.length === 1 ? "is" : "are"} 0`, more, { class: "quiet", "data-key": "more" })), h("td", { class: "number" }, number(rest.reduce((sum, product) => sum + product.value, 0)))) : null,
      made.products.length > 1 ? h("tr", { class: "total" }, h("th", { scope: "row" }, `sum of ${made.products.length}`), h("td", { class: "number" }, number(total, 6))) : null)));
  const off = Math.abs(total - value) > 1e-3 * Math.max(Math.abs(value), ...made.products.map((product) => Math.abs(product.value)));
  if (off && app.mistake) parts.push(h("p", { class: "bad" }, `By the formula it is ${number(total, 6)}. The planted mistake made ${number(value, 6)} of it.`));
  return parts.filter(Boolean);
}

/** A number to click on. @param {App} app @param {Factor} factor @param {boolean} [named] */
function factor_of(app, factor, named = true) {
  const { reference, index, value, label } = factor;
  if (!reference || !index) return h("span", { class: "factor" }, label === "−1" || label === String(value) ? label : [label ? h("small", {}, label, " ") : null, number(value)]);
  const place = index.length > 2 ? `[${index.join(",")}]` : `[${index.join(",")}]`;
  const name = label || `${symbol_of(reference)}${place}`;
  return h("button", { type: "button", class: "factor", title: `${title_of(reference)}, ${place_of(app, reference, index)}`, "data-key": `${reference}${place}${label}`,
    onclick: () => app.inspect(reference, index, true) }, named ? h("small", {}, name, " ") : null, number(value));
}

/** Backward beside finite difference. @param {App} app @param {string} reference @param {number[]} index */
function measured(app, reference, index) {
  const kind = reference.slice(0, reference.indexOf(":"));
  const gradient = kind === "a" ? { S: "dS", P: "dP" }[reference.slice(reference.lastIndexOf(".") + 1)] : null;
  // The gradient that belongs to this number: itself, or of a value the gradient of the loss with respect to it.
  const of = kind === "w" ? `dw:${reference.slice(2)}` : kind === "y" ? `dy:${reference.slice(2)}` : gradient ? `${reference.slice(0, reference.lastIndexOf("."))}.${gradient}` : reference;
  if (app.session.ids.length < 2 || reference === "y:loss") return null;
  const wide = app.session.in_float64(), exact = wide.tensor(of), found = wide.has_backward ? app.session.difference(of, index) : null;
  const own = app.session.tensor(of);
  if (!exact || !found || !own) return null;
  const expected = exact.at(...index), size = Math.max(Math.abs(expected), Math.abs(found.value), 1e-12);
  const difference = Math.abs(expected - found.value), error = difference / size, tiny = size < found.doubt;
  const ok = error < 1e-5 || difference <= found.doubt;
  const row = (/** @type {string} */ name, /** @type {string} */ value) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "number" }, value));
  return h("section", { class: `measured ${ok ? "good" : "bad"}` },
    h("h3", {}, of === reference ? "Is it true?" : "Its gradient"),
    of === reference ? null : h("p", { class: "soft" }, "How fast the loss changes when this number changes."),
    h("table", {}, h("tbody", {}, row("backward, float32", number(own.at(...index), 6)), row("backward, float64", number(expected, 8)), row("finite difference", number(found.value, 8)))),
    h("p", {}, h("b", {}, tiny ? "✓ both are zero, as far as can be measured" : ok ? `✓ equal within ${number(error, 1)} of its size${error < 1e-5 ? "" : ", as far as can be measured here"}` : `✗ off by ${number(error * 100, 3)}%`), h("span", { class: "soft" }, ` The model ran four times in float64 with this number moved by ±${number(found.h, 2)} and ±${number(2 * found.h, 2)}. In float32, rounding would hide the agreement.${corner_words(found)}`)));
}

/** What a corner of the units' curve had to do with it. @param {import("./differences.js").Difference} found */
function corner_words({ corner, doubt }) {
  if (corner === "near") return " With larger steps a unit’s input would go across 0, where the slope of its curve has a corner, and a difference across a corner measures neither side.";
  return corner === "across" ? ` Even with these steps a unit’s input goes across 0, where the slope of its curve has a corner: what is measured may be off by ${number(doubt, 1)}.` : "";
}

/** The numbers around it. @param {App} app @param {string} reference @param {number[]} index */
function neighbours(app, reference, index) {
  const tensor = /** @type {import("./tensor.js").Tensor} */ (app.session.tensor(reference));
  const sizes = tensor.shape, last = sizes.length - 1, before = last - 1;
  if (tensor.data.length === 1) return null;
  const around = (/** @type {number} */ at, /** @type {number} */ size, /** @type {number} */ count) => {
    const first = Math.max(0, Math.min(at - Math.floor(count / 2), size - count));
    return Array.from({ length: Math.min(count, size) }, (_, i) => first + i);
  };
  const columns = around(index[last], sizes[last], 3), rows = before >= 0 ? around(index[before], sizes[before], 5) : [0];
  const axes = axes_of(reference, sizes, app.session.config.vocab_size, app.session.ids.length);
  const cell = (/** @type {number} */ r, /** @type {number} */ c) => {
    const there = [...index];
    there[last] = c;
    if (before >= 0) there[before] = r;
    const here = there.every((i, axis) => i === index[axis]);
    return h("td", {}, h("button", { type: "button", class: "factor", "aria-current": here ? "true" : null, "data-key": `n${there.join(",")}`, "aria-label": `${number(tensor.at(...there), 3)}: ${place_of(app, reference, there)}`, onclick: () => { app.trail[app.trail.length - 1] = { reference, index: there }; app.render(); } }, number(tensor.at(...there), 3)));
  };
  const go = (/** @type {number} */ axis) => h("label", {}, axes[axis] ?? "", h("input", { type: "number", min: 0, max: sizes[axis] - 1, value: index[axis], "data-key": `axis${axis}`, onchange: (/** @type {any} */ event) => {
    const to = Math.max(0, Math.min(sizes[axis] - 1, Math.round(Number(event.target.value) || 0)));
    app.trail[app.trail.length - 1] = { reference, index: index.map((i, other) => (other === axis ? to : i)) };
    app.render();
  } }));
  return h("section", {}, h("h3", {}, "Its neighbours"), h("table", { class: "neighbour-numbers" }, h("caption", { class: "hidden" }, "numbers around it"),
    h("thead", {}, h("tr", {}, h("td", {}), columns.map((c) => h("th", { scope: "col" }, c)))), h("tbody", {}, rows.map((r) => h("tr", {}, h("th", { scope: "row" }, before >= 0 ? r : ""), columns.map((c) => cell(r, c)))))),
    h("div", { class: "go" }, "go to ", sizes.map((size, axis) => (size > 1 ? go(axis) : null))));
}
