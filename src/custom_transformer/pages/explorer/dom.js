// Elements, and panels that are drawn anew without losing the keyboard's place.

/** @typedef {Node | string | number | null | undefined | false} Child */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. `on…` properties are listeners, `class` and attributes are set as they are, true is an empty attribute.
 * @param {string} tag @param {Record<string, any>} [properties] @param {(Child | Child[])[]} children @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same for drawings. @param {string} tag @param {Record<string, any>} [properties]
 * @param {(Child | Child[])[]} children @returns {any} */
export function s(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

/** @param {Element} element @param {Record<string, any>} properties @param {(Child | Child[])[]} children */
function filled(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") /** @type {any} */ (element).value = value;
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child || child === 0).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** @type {Node | null} where the pointer is pressed */
let pressed = null;
/** @type {Map<Element, Child[]>} what is drawn when it is let go: an element that is replaced while pressed gets no click */
const waiting = new Map();

if (typeof document !== "undefined") {
  document.addEventListener("pointerdown", (event) => { pressed = /** @type {Node} */ (event.target); }, true);
  const released = () => setTimeout(() => {
    pressed = null;
    waiting.forEach((children, container) => replace(container, ...children));
    waiting.clear();
  });
  document.addEventListener("pointerup", released, true);
  document.addEventListener("pointercancel", released, true);
  document.addEventListener("click", () => { pressed = null; }, true); // it has its target: what it draws need not wait
}

/** Puts new children in the place of the old ones; the element with the focus gets it again, by its data-key.
 * @param {Element} container @param {Child[]} children */
export function replace(container, ...children) {
  if (pressed && container.contains(pressed)) {
    waiting.set(container, children);
    return;
  }
  const active = document.activeElement;
  const key = active && container.contains(active) ? active.getAttribute("data-key") : null;
  container.replaceChildren(...children.filter((child) => child || child === 0).map((child) => (child instanceof Node ? child : String(child))));
  if (key === null) return;
  const again = [...container.querySelectorAll("[data-key]")].find((element) => element.getAttribute("data-key") === key);
  /** @type {HTMLElement | undefined} */ (again)?.focus({ preventScroll: true });
}

/** A button. @param {string} text @param {() => void} press @param {Record<string, any>} [properties] */
export function button(text, press, properties = {}) {
  return h("button", { type: "button", onclick: press, "data-key": text, ...properties }, text);
}

/** Lets the browser draw, and answer the keyboard. */
export function breath() {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
