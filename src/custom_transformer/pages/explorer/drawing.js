// The architecture: the residual stream as a line, branches that leave it and are added to it again. Data flows up,
// the gradient down through the same drawing.

import { h, replace, s } from "./dom.js";
import { number } from "./format.js";
import { has } from "./mistakes.js";
import { words_of } from "./words.js";

/** @typedef {import("./app.js").App} App */
/** @typedef {import("./layers.js").Layer} Layer */

const WIDTH = 312, STREAM = 40, LEFT = 88, BOX = 188, HEIGHT = 24, ROW = 31.5, MIDDLE = LEFT + BOX / 2;

/** The height of each layer's place, from the bottom. @param {Layer[]} layers */
function places(layers) {
  const rows = new Map();
  let row = 1;
  for (const { name, op, block } of layers) {
    if (op === "residual") rows.set(name, rows.get(name.replace("residual_1", "projection").replace("residual_2", "down")));
    else {
      if (block !== null && name.endsWith("norm_1")) row += 0.6;
      if (name === "final_norm") row += 0.35;
      rows.set(name, row++);
    }
  }
  const total = (row - 1) * ROW + HEIGHT / 2 + 4;
  return { total, y: (/** @type {string} */ name) => total - rows.get(name) * ROW };
}

/** @param {App} app */
export function drawing(app) {
  const { layers, config } = app.session, { total, y } = places(layers);
  const graph = s("svg", { viewBox: `0 0 ${WIDTH} ${total}`, role: "group", "aria-label": "The architecture. Arrow keys move from operation to operation." });
  const legend = h("p", { class: "legend soft" });
  const holder = h("div", {}, legend, h("div", { class: "drawing" }, graph));
  const order = layers.map(({ name }) => name);
  let looked_at = "";
  graph.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const by = { ArrowUp: 1, ArrowDown: -1, Home: -order.length, End: order.length }[event.key];
    if (!by) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(order.length - 1, order.indexOf(app.layer) + by));
    app.look_at(order[next]);
    /** @type {HTMLElement | null} */ (graph.querySelector(`[data-key="${order[next]}"]`))?.focus();
  });
  app.panels.push(() => {
    graph.setAttribute("class", app.step >= 0 || app.direction === "backward" ? "backward" : "forward");
    replace(graph, frames(config.n_blocks, y), edges(app, layers, y, total), ...layers.map((layer) => node(app, layer, y(layer.name))));
    legend.textContent = `Small numbers: at the top the loss, below it the size (root mean square) of each operation’s ${app.direction === "backward" ? "gradient" : "result"}.${app.mistake ? " Dashed red: here the mistake is planted." : ""}`;
    const now = `${app.layer} ${app.trail.length > 0}`; // on a narrow page the inspector takes room from the drawing
    if (now !== looked_at) requestAnimationFrame(() => bring_into_view(graph)); // when all panels have their place
    looked_at = now;
  });
  return holder;
}

/** Scrolls the drawing, and only it, to the operation that is looked at. @param {SVGElement} graph */
function bring_into_view(graph) {
  const frame = graph.parentElement, box = graph.querySelector(".selected")?.getBoundingClientRect();
  if (!frame || !box) return;
  const { top, bottom } = frame.getBoundingClientRect(), margin = 2 * ROW;
  if (box.top - margin < top) frame.scrollTop += box.top - margin - top;
  else if (box.bottom + margin > bottom) frame.scrollTop += box.bottom + margin - bottom;
}

/** @param {number} blocks @param {(name: string) => number} y */
function frames(blocks, y) {
  return s("g", { class: "frames" }, Array.from({ length: blocks }, (_, i) => {
    const top = y(`blocks.${i}.down`) - HEIGHT / 2 - 6, bottom = y(`blocks.${i}.norm_1`) + HEIGHT / 2 + 17;
    return [s("rect", { x: 12, y: top, width: LEFT + BOX - 4, height: bottom - top, rx: 9 }),
      s("text", { x: LEFT + BOX - 2, y: bottom - 5, "text-anchor": "end" }, `block ${i}`)];
  }).flat());
}

/** @param {App} app @param {Layer[]} layers @param {(name: string) => number} y @param {number} total */
function edges(app, layers, y, total) {
  const n = app.session.config.n_blocks, half = HEIGHT / 2;
  /** @type {SVGElement[]} */
  const parts = [];
  /** @param {string} d the way that data takes @param {string} layer after whose backward the gradient has passed */
  const edge = (d, layer) => parts.push(s("path", { d, class: `edge ${edge_state(app, layer)}`, "marker-end": "url(#up)", "marker-start": "url(#down)" }));
  const first = y("token_embedding"), last = y("final_norm"), positions = layers.some(({ op }) => op === "positions");
  edge(`M${MIDDLE} ${total - 4} V${first + half + 3}`, "token_embedding");
  let below = first, start = `M${LEFT} ${first} H${STREAM}`; // of the stream, as far as the next sum
  if (positions) {
    const second = y("position_embedding");
    edge(`${start} V${second + 12}`, "position_embedding");
    edge(`M${LEFT} ${second} H${STREAM + 12}`, "position_embedding");
    below = second - 11;
    start = "";
  }
  for (let i = 0; i < n; i++) {
    const b = `blocks.${i}`, at = (/** @type {string} */ name) => y(`${b}.${name}`);
    for (const [norm, end, sum] of [["norm_1", "projection", "residual_1"], ["norm_2", "down", "residual_2"]]) {
      edge(`${start || `M${STREAM} ${below}`} V${at(end) + 12}`, `${b}.${norm}`);
      start = "";
      edge(`M${STREAM} ${at(norm) + 14} H${LEFT - 22} Q${LEFT - 14} ${at(norm) + 14} ${LEFT - 12} ${at(norm) + 8} L${LEFT - 3} ${at(norm)}`, `${b}.${norm}`);
      const names = layers.filter(({ block, op }) => block === i && op !== "residual").map(({ name }) => name.slice(b.length + 1));
      const chain = names.slice(names.indexOf(norm), names.indexOf(end) + 1);
      for (let k = 0; k + 1 < chain.length; k++) edge(`M${MIDDLE} ${at(chain[k]) - half} V${at(chain[k + 1]) + half + 2}`, `${b}.${chain[k + 1]}`);
      edge(`M${LEFT} ${at(end)} H${STREAM + 12}`, `${b}.${sum}`);
      below = at(end) - 11;
    }
  }
  edge(`M${STREAM} ${below} V${last} H${LEFT - 3}`, "final_norm");
  edge(`M${MIDDLE} ${last - half} V${y("head") + half + 2}`, "head");
  edge(`M${MIDDLE} ${y("head") - half} V${y("loss") + half + 2}`, "loss");
  const right = LEFT + BOX;
  const tied = app.session.config.tie_embeddings
    ? [s("path", { class: "tied", d: `M${right} ${first} H${right + 20} V${y("head")} H${right + 2}` }),
      s("text", { class: "tied", x: right + 32, y: (first + y("head")) / 2, transform: `rotate(-90 ${right + 32} ${(first + y("head")) / 2})`, "text-anchor": "middle" }, "one table, used twice")] : [];
  const marker = (/** @type {string} */ id, /** @type {string} */ d) =>
    s("marker", { id, viewBox: "0 0 8 8", refX: 4, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" }, s("path", { d }));
  return s("g", {}, s("defs", {}, marker("up", "M0 0 L8 4 L0 8 Z"), marker("down", "M8 0 L0 4 L8 8 Z")), parts, tied);
}

/** @param {App} app @param {string} layer */
function edge_state(app, layer) {
  if (app.step < 0) return "";
  const at = app.steps.findIndex(({ name }) => name === layer);
  return at < app.step ? "done" : at === app.step ? "flowing" : "waiting";
}

/** @param {App} app @param {Layer} layer @param {number} y */
function node(app, layer, y) {
  const { name, op } = layer, words = words_of(layer), short = name.split(".").at(-1) ?? "";
  const at = app.steps.findIndex((step) => step.name === name);
  const state = app.step < 0 ? "" : at < app.step ? "done" : at === app.step ? "now" : "waiting";
  const selected = app.layer === name && app.tab === "operation";
  const backward = app.direction === "backward" || app.step >= 0;
  const value = app.session.tensor(backward && op !== "cross_entropy" ? `dy:${name}` : `y:${name}`);
  const known = value && (app.step < 0 || at <= app.step || !backward);
  const size = known ? (name === "loss" ? app.session.loss : root_mean_square(value.data)) : NaN;
  const purpose = op === "linear" ? `linear: ${short}` : op === "positions" ? "position table" : name === "final_norm" ? "final norm" : /^norm_\d$/.test(short) ? `${words.short} ${short.at(-1)}` : words.short;
  const shown = known && op !== "residual" ? number(size, 3) : "";
  const visible = op === "residual" ? "+" : `${op === "positions" ? "+ " : ""}${purpose} ${shown}`; // what is read aloud begins with it
  const label = `${visible}: ${words.title}, ${name}${known ? `, ${name === "loss" ? "loss" : backward ? "size of the gradient" : "size of the result"} ${number(size, 3)}` : ""}${has(app.mistake, op) ? ", a mistake is planted here" : ""}`;
  const group = s("g", {
    class: `node ${op} ${state} ${selected ? "selected" : ""} ${has(app.mistake, op) ? "mistaken" : ""}`, role: "button", "aria-label": label,
    "aria-current": selected ? "true" : null, tabindex: app.layer === name ? 0 : -1, "data-key": name,
    onclick: () => app.look_at(name), onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); app.look_at(name); }
    },
  });
  if (op === "residual" || op === "positions") {
    group.append(s("circle", { cx: STREAM, cy: y, r: 11 }), s("text", { class: "plus", x: STREAM, y: y + 5, "text-anchor": "middle" }, "+ "));
    if (op === "residual") return group;
  }
  const box = s("rect", { x: LEFT, y: y - HEIGHT / 2, width: BOX, height: HEIGHT, rx: 6 });
  group.append(box, s("text", { class: "name", x: LEFT + 10, y: y + 4.5 }, `${purpose} `),
    s("text", { class: "size", x: LEFT + BOX - 8, y: y + 4, "text-anchor": "end" }, shown));
  return group;
}

/** @param {import("./tensor.js").Numbers} data */
function root_mean_square(data) {
  let sum = 0;
  for (const value of data) sum += value * value;
  return Math.sqrt(sum / data.length);
}
