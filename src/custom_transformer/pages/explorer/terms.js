// Terms in running text, each with its explanation at hand.

import { h } from "./dom.js";
import { TERMS } from "./words.js";

/** Longer terms first, so that "residual stream" is not taken for "stream". */
const PATTERN = new RegExp(`\\b(${Object.keys(TERMS).sort((a, b) => b.length - a.length).join("|")})(s|es)?\\b`, "i");

/**
 * Text in which the first use of each term can be asked for. seen: terms that stand above in the same panel.
 * @param {string} text @param {Set<string>} seen @returns {(Node | string)[]}
 */
export function prose(text, seen) {
  const parts = [];
  let rest = text;
  for (let found = PATTERN.exec(rest); found; found = PATTERN.exec(rest)) {
    const key = Object.keys(TERMS).find((term) => term.toLowerCase() === found?.[1].toLowerCase()) ?? "";
    const end = found.index + found[0].length;
    parts.push(rest.slice(0, found.index), seen.has(key) ? found[0] : term(found[0], key));
    seen.add(key);
    rest = rest.slice(end);
  }
  return [...parts, rest];
}

/** @param {string} text as it stands in the sentence @param {string} key in TERMS */
export function term(text, key) {
  const note = h("span", { class: "note", role: "note", hidden: true }, h("b", {}, key), ": ", TERMS[key]);
  const show = (/** @type {boolean} */ shown) => {
    note.hidden = !shown;
    ask.setAttribute("aria-expanded", String(shown));
    note.style.removeProperty("left");
    const beyond = note.getBoundingClientRect().right - (document.documentElement.clientWidth - 12);
    if (shown && beyond > 0) note.style.setProperty("left", `${-beyond}px`);
  };
  const ask = h("button", { type: "button", class: "term", "aria-expanded": "false", "data-key": `term-${key}`, onclick: () => show(note.hidden), onblur: () => show(false),
    onkeydown: (/** @type {KeyboardEvent} */ event) => { if (event.key === "Escape") show(false); } }, text);
  return h("span", { class: "asked" }, ask, note);
}
