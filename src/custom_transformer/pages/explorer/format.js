// Numbers, formulas and tokens as people read them.

/** Four digits that count; − is a minus sign. @param {number} value @param {number} [digits] */
export function number(value, digits = 4) {
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5 ? trimmed(value, digits) : value.toExponential(digits - 1).replace(/e\+?(.*)/, (_, power) => `·10${raised(power)}`);
  return text.replace(/-/g, "−");
}

/** @param {string} power a whole number */
function raised(power) {
  return power.replace(/[-\d]/g, (sign) => (sign === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(sign)]));
}

/** @param {number} value @param {number} digits */
function trimmed(value, digits) {
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(8, places));
}

/** @param {number} share */
export function percent(share) {
  return share >= 0.9995 ? "100%" : share >= 0.0995 ? `${(share * 100).toFixed(0)}%` : share >= 0.001 ? `${(share * 100).toFixed(1)}%` : "<0.1%";
}

/** @param {number} size */
export function bytes(size) {
  return size < 1024 ? `${size} B` : size < 1 << 20 ? `${(size / 1024).toFixed(size < 10240 ? 1 : 0)} KiB` : `${(size / (1 << 20)).toFixed(1)} MiB`;
}

/** @param {number[]} sizes */
export function shape(sizes) {
  return sizes.join(" × ");
}

/** A token with its spaces seen; where it is no text, its bytes. @param {string} text @param {number[]} bytes */
export function visible(text, bytes) {
  if (/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\ufffd]/.test(text)) return bytes.map((byte) => `‹${byte.toString(16).toUpperCase().padStart(2, "0")}›`).join("");
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
}

/** The formulas of a docstring's first paragraph, and what is remarked behind them: its source, a condition.
 * @param {string} text @returns {{ formulas: string[], remark: string }} */
export function formulas_of(text) {
  const [first, ...others] = text.split(/ {8,}/);
  return { formulas: first.split(/[,;]  +/), remark: others.join(" ") };
}
