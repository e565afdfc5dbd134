// Loss curves.

import { s } from "./dom.js";
import { number } from "./format.js";

/** @param {{ name: string, values: number[], kind: string }[]} lines by update @param {string} label */
export function chart(lines, label) {
  const W = 560, H = 220, left = 52, right = 12, top = 24, bottom = 34;
  const finite = lines.flatMap(({ values }) => values.filter(Number.isFinite));
  const count = Math.max(2, ...lines.map(({ values }) => values.length)), high = Math.min(14, Math.max(...finite, 0.01)) * 1.05;
  const x = (/** @type {number} */ i) => left + (i / (count - 1)) * (W - left - right), y = (/** @type {number} */ v) => H - bottom - (Math.min(v, high) / high) * (H - top - bottom);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => share * high);
  const words = lines.map(({ name, values }) => `${name}: from ${number(values[0] ?? NaN, 3)} to ${number(values.at(-1) ?? NaN, 3)}`).join("; ");
  return s("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img", "aria-label": `${label}. ${words}` },
    ticks.map((v) => [s("line", { x1: left, x2: W - right, y1: y(v), y2: y(v), class: "grid-line" }), s("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, number(v, 2))]).flat(),
    s("text", { x: left, y: H - 8 }, "0"), s("text", { x: W - right, y: H - 8, "text-anchor": "end" }, count === 2 ? "1 update" : `${count - 1} updates`), s("text", { x: left, y: 12, class: "axis" }, "loss, nats per token"),
    lines.map(({ values, kind, name }, k) => values.length ? [
      s("polyline", { class: `line ${kind}`, points: values.map((v, i) => `${x(i).toFixed(1)},${y(Number.isFinite(v) ? v : high).toFixed(1)}`).join(" ") }),
      s("circle", { class: `dot ${kind}`, cx: x(values.length - 1), cy: y(Number.isFinite(values.at(-1) ?? NaN) ? values.at(-1) ?? 0 : high), r: 3.5 }),
      lines.length > 1 ? s("text", { class: `legend ${kind}`, x: W - right - 6, y: top + 14 + 18 * k, "text-anchor": "end" }, name) : null] : []).flat());
}
