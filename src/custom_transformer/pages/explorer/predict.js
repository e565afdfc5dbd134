// What the model expects after each token, and what it pays for what comes.

import { h, replace } from "./dom.js";
import { number, percent } from "./format.js";
import { heatmap } from "./heatmap.js";
import { prose } from "./terms.js";

/** @typedef {import("./app.js").App} App */

const SHOWN = 6;

/** The text as tokens, each underlined by its loss. @param {App} app */
export function strip(app) {
  const list = h("div", { class: "strip", role: "group", "aria-label": "Tokens of your text. Choose one to see what the model expects after it." });
  app.panels.push(() => {
    const { ids, labels } = app.session, losses = app.session.tensor("a:loss.losses");
    replace(list, ...[...ids].map((id, t) => {
      const loss = t > 0 ? losses?.data[t - 1] ?? 0 : NaN;
      const chip = h("button", { type: "button", class: t === 0 ? "token start" : "token", "data-key": `token${t}`, "aria-pressed": app.focus === t && app.tab === "predict",
        onclick: () => { app.focus = t; app.tab = "predict"; app.render(); } },
      h("span", {}, app.token(id)), t === 0 ? null : h("span", { class: "hidden" }, " loss "), h("small", {}, t === 0 ? "" : loss.toFixed(2)));
      chip.style.setProperty("--surprise", t === 0 ? "0" : String(Math.min(1, loss / 6)));
      return chip;
    }), labels.length < 2 ? h("span", { class: "soft" }, "type something") : null, app.cut > 0 ? h("span", { class: "soft" }, `… ${app.cut} further tokens do not fit into this model’s ${app.session.config.max_seq_len}`) : null);
  });
  return list;
}

/** @param {App} app */
export function predict(app) {
  const panel = h("div", { class: "predict" });
  app.panels.push(() => {
    if (app.tab === "predict") replace(panel, ...content(app));
  });
  return panel;
}

/** @param {App} app */
function content(app) {
  const { session } = app, t = app.focus, p = session.tensor("a:loss.probabilities"), z = session.tensor("y:head");
  if (!p || !z) return [];
  const V = p.width, row = p.data.subarray(t * V, (t + 1) * V), order = [...row.keys()].sort((a, b) => row[b] - row[a]);
  const label = session.labels[t], rank = order.indexOf(label), best = order.slice(0, SHOWN);
  const shown = label >= 0 && rank >= SHOWN ? [...best, label] : best;
  const before = [...session.ids.slice(Math.max(1, t - 7), t + 1)].map((id) => app.token(id)).join("");
  const line = (/** @type {number} */ id) => {
    const bar = h("span", { class: "fill" });
    bar.style.setProperty("width", `${Math.max(0.5, 100 * row[id])}%`);
    return h("tr", { class: id === label ? "right" : "" }, h("th", { scope: "row" }, h("span", { class: "word" }, app.token(id)), id === label ? h("small", {}, rank === 0 ? " ✓ comes" : ` comes, place ${rank + 1}`) : null),
      h("td", { class: "bar-cell" }, h("span", { class: "bar", "aria-hidden": "true" }, bar)),
      h("td", { class: "number" }, percent(row[id])),
      h("td", { class: "number" }, h("button", { type: "button", class: "factor", "aria-label": `logit of ${app.token(id)}: ${number(z.at(t, id))}. What made it?`, "data-key": `z${id}`, onclick: () => app.inspect("y:head", [t, id]) }, number(z.at(t, id)))));
  };
  const verdict = label < 0 ? "Nothing follows yet: this is what the model would write next."
    : `What comes is ‘${app.token(label)}’, to which the model gave ${percent(row[label])}: a loss of ${number(-Math.log(row[label]), 3)} nats.`;
  const blocks = Array.from({ length: session.config.n_blocks }, (_, i) => i).filter((i) => session.config.n_blocks <= 4 || i < 2 || i >= session.config.n_blocks - 2);
  /** @type {Set<string>} */
  const seen = new Set();
  return [
    h("h2", {}, "What it expects"),
    h("p", {}, ...(t ? ["After ", h("b", { class: "word" }, `${t > 8 ? "…" : ""}${before}`)] : ["At the start of a text"]), ...prose(` the model gives every entry of its vocabulary a logit, a score, and softmax makes probabilities of them. ${verdict} Choose another token above.`, seen)),
    h("table", { class: "expectations" }, h("thead", {}, h("tr", {}, ["next token", "", "probability", "logit"].map((name) => (name ? h("th", { scope: "col" }, name) : h("td"))))), h("tbody", {}, shown.map(line))),
    h("h2", {}, "Where it looks"),
    h("p", {}, prose("Attention of every head, as heat maps: a row for each token, a column for each token that it takes something over from. Each row adds up to 1; grey is the future, which is masked.", seen)),
    ...blocks.map((i) => h("section", { class: "heads", "aria-label": `attention of block ${i}` }, h("h3", {}, `Block ${i}`),
      h("div", { class: "grid" }, Array.from({ length: session.config.n_heads }, (_, k) => heatmap(app, `a:blocks.${i}.attention.P`, { plane: k, title: `head ${k}`, compact: true, causal: true, shares: true }))))),
  ];
}
