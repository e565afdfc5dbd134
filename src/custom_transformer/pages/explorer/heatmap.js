// A tensor as colours, with a scale; each number can be pointed at and asked for.

import { axes_of, place_of, title_of } from "./describe.js";
import { h } from "./dom.js";
import { number, shape } from "./format.js";
import { Tensor, contiguous, head, inner } from "./tensor.js";

/** @typedef {import("./app.js").App} App */

const WIDEST = 520; // columns that are drawn one by one

// Blue – neutral – orange: told apart with every kind of colour vision (after Crameri's vik and ColorBrewer's PuOr).
const SCALES = {
  light: { low: [24, 84, 158], middle: [250, 250, 248], high: [196, 83, 0] },
  dark: { low: [104, 172, 255], middle: [24, 28, 33], high: [255, 154, 66] },
};

/** @param {number} x from −1 to 1 @param {boolean} dark @returns {number[]} */
function colour(x, dark) {
  const { low, middle, high } = dark ? SCALES.dark : SCALES.light;
  const end = x < 0 ? low : high, share = Math.min(1, Math.abs(x)) ** 0.8;
  return middle.map((m, i) => Math.round(m + (end[i] - m) * share));
}

/** The size that the ends of the scale stand for: all but 1 in 200 numbers are within. @param {Tensor | null} x */
export function end_of_scale(x) {
  if (!x) return 1;
  const step = Math.max(1, Math.floor(x.data.length / 20000)), sizes = [];
  for (let i = 0; i < x.data.length; i += step) if (Number.isFinite(x.data[i])) sizes.push(Math.abs(x.data[i]));
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor((sizes.length - 1) * 0.995)] || sizes[sizes.length - 1] || 1;
}

/** Rows that are drawn: all, or of a table those of the text and those with the largest numbers.
 * @param {App} app @param {Tensor} x */
function rows_shown(app, x) {
  if (x.rows <= 600) return Array.from({ length: x.rows }, (_, i) => i);
  const own = [...new Set(app.session.ids)], size = new Map();
  for (let r = 0; r < x.rows; r++) size.set(r, row_norm(x, r));
  const others = [...size.keys()].filter((r) => !own.includes(r)).sort((a, b) => size.get(b) - size.get(a)).slice(0, 24);
  return [...own, ...others];
}

/** @param {Tensor} x @param {number} r */
function row_norm(x, r) {
  const row = x.data.subarray(r * x.width, (r + 1) * x.width);
  return inner(row, row);
}

/**
 * @param {App} app @param {string} reference
 * @param {{ title?: string, words?: string, plane?: number, end?: number, compact?: boolean, causal?: boolean, shares?: boolean }} [options]
 * plane: one head of several. causal: what lies in a token’s future is masked. shares: from 0 to 1, none negative
 */
export function heatmap(app, reference, { title = title_of(reference), words = "", plane, end, compact = false, causal = false, shares = false } = {}) {
  const whole = app.session.tensor(reference);
  if (!whole) return h("figure", { class: "map" }, h("figcaption", {}, title), h("p", { class: "soft" }, "Not computed yet."));
  const x = plane === undefined ? flat(contiguous(whole)) : head(whole, plane);
  const rows = rows_shown(app, x), scale = shares ? 1 : end ?? end_of_scale(x);
  const axes = axes_of(reference, whole.shape, app.session.config.vocab_size, app.session.ids.length);
  const row_axis = axes[plane === undefined ? 0 : 1], labelled = whole.shape.length > 1 && (row_axis === "token" || row_axis === "entry");
  const height = rows.length === 1 ? 18 : Math.max(2, Math.min(compact ? 14 : 17, Math.floor((compact ? 170 : 300) / rows.length)));
  const stripe = Math.ceil(x.width / WIDEST);
  const canvas = h("canvas", {
    width: Math.ceil(x.width / stripe), height: rows.length, tabindex: 0, role: "application", "aria-roledescription": "heat map",
    "data-key": `${reference}/${plane ?? ""}`, "data-reference": reference,
    "aria-label": `${title}, ${shape(whole.shape)}. Arrow keys move from number to number, Enter explains one.`,
  });
  paint(canvas, x, rows, scale, app.dark(), stripe, causal);
  const marker = h("div", { class: "marker", hidden: true });
  const readout = h("output", { class: "readout", "aria-live": "polite" }, compact ? "" : "point at a number, or press Enter on one");
  let cursor = [0, 0];
  /** @param {number[]} at row and column drawn @returns {number[]} */
  const index_of = ([r, c]) => {
    if (plane !== undefined) return [plane, r, c];
    return whole.shape.length === 1 ? [c] : [rows[r], c];
  };
  const show = () => {
    const [r, c] = cursor, index = index_of(cursor);
    readout.textContent = `${place_of(app, reference, index)}: ${number(whole.at(...index), 5)}`;
    marker.hidden = false;
    for (const [side, value] of [["left", c / x.width], ["top", r / rows.length], ["width", 1 / x.width], ["height", 1 / rows.length]]) {
      marker.style.setProperty(String(side), `${100 * Number(value)}%`);
    }
  };
  const point = (/** @type {MouseEvent} */ event) => {
    const box = canvas.getBoundingClientRect();
    const part = (/** @type {number} */ at, /** @type {number} */ size, /** @type {number} */ count) => Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
    cursor = [part(event.clientY - box.top, box.height, rows.length), part(event.clientX - box.left, box.width, x.width)];
    show();
  };
  canvas.addEventListener("mousemove", point);
  canvas.addEventListener("click", (/** @type {MouseEvent} */ event) => { point(event); app.inspect(reference, index_of(cursor)); });
  canvas.addEventListener("focus", show);
  canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const step = event.shiftKey ? 10 : 1;
    const move = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] }[event.key];
    if (event.key === "Enter" || event.key === " ") app.inspect(reference, index_of(cursor));
    else if (move) cursor = [clamp(cursor[0] + move[0], rows.length), clamp(cursor[1] + move[1], x.width)];
    else return;
    event.preventDefault();
    show();
  });
  const labels = labelled && height >= 9 ? h("div", { class: "labels", "aria-hidden": "true" }, rows.map((r) => h("span", {}, app.token(row_axis === "token" ? app.session.ids[r] : r)))) : null;
  const body = h("div", { class: "body" }, labels, h("div", { class: "frame" }, canvas, marker));
  body.style.setProperty("--height", `${Math.max(height * rows.length, 14)}px`);
  body.style.setProperty("--row", `${height}px`);
  const striped = stripe > 1 ? ` Each stripe is the largest of ${stripe} neighbours.` : "";
  const some = rows.length < x.rows ? ` The ${rows.length} rows of the text's tokens and with the largest numbers, of ${x.rows.toLocaleString("en")}.` : "";
  return h("figure", { class: compact ? "map compact" : "map" },
    h("figcaption", {}, h("b", {}, title), " ", h("span", { class: "soft" }, shape(plane === undefined ? whole.shape : whole.shape.slice(1)), words || some || striped ? ". " : "", words, words && !/[.?]$/.test(words) ? "." : "", some, striped)),
    body, h("div", { class: "below" }, readout, scale_bar(scale, app.dark(), shares)));
}

/** @param {Tensor} x a vector as one row */
function flat(x) {
  return x.shape.length === 1 ? new Tensor(x.data, [1, x.shape[0]]) : x;
}

/** @param {number} value @param {number} count */
function clamp(value, count) {
  return Math.max(0, Math.min(count - 1, value));
}

/** @param {HTMLCanvasElement} canvas @param {Tensor} x @param {number[]} rows @param {number} scale @param {boolean} dark
 * @param {number} [stripe] columns that share one: the number furthest from 0 is shown
 * @param {boolean} [causal] */
function paint(canvas, x, rows, scale, dark, stripe = 1, causal = false) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(canvas.width, rows.length), table = Array.from({ length: 201 }, (_, i) => colour(i / 100 - 1, dark));
  rows.forEach((r, row) => {
    for (let c = 0; c < canvas.width; c++) {
      let value = x.data[r * x.width + c * stripe];
      for (let i = c * stripe + 1; i < Math.min(x.width, (c + 1) * stripe); i++) if (Math.abs(x.data[r * x.width + i]) > Math.abs(value)) value = x.data[r * x.width + i];
      const masked = !Number.isFinite(value) || (causal && c > r), place = 4 * (row * canvas.width + c);
      const [red, green, blue] = masked ? (dark ? [60, 66, 73] : [214, 217, 220]) : table[Math.round(100 * Math.max(-1, Math.min(1, value / scale)) + 100)];
      image.data.set([red, green, blue, 255], place);
    }
  });
  context.putImageData(image, 0, 0);
}

/** @param {number} end @param {boolean} dark @param {boolean} shares */
function scale_bar(end, dark, shares) {
  const canvas = h("canvas", { width: 101, height: 1, "aria-hidden": "true" });
  paint(canvas, new Tensor(Float32Array.from({ length: 101 }, (_, i) => (shares ? i / 100 : i / 50 - 1)), [1, 101]), [0], 1, dark);
  return h("span", { class: "scale" }, number(shares ? 0 : -end, 2), canvas, number(end, 2));
}
