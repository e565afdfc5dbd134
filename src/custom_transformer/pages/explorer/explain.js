// What made a number: a sum of products, each factor a number that can itself be asked for.

import { kv_heads } from "./llama.js";
import { angle, qk_norm_gain } from "./ops.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./layers.js").Layer} Layer */

/** A factor of a product; with a reference it can be asked for in turn.
 * @typedef {{ value: number, label: string, reference?: string, index?: number[] }} Factor */
/** @typedef {{ factors: Factor[], value: number }} Product */
/**
 * formula: in the symbols of ops.py. products: their sum is the number; none where a function made it, or nothing did.
 * words: what the formula does not say.
 * @typedef {{ formula: string, products: Product[], words?: string, inputs?: Factor[] }} Explanation
 */

/** @param {Session} session @param {string} reference @param {number[]} index @returns {Explanation | null} */
export function explain(session, reference, index) {
  const [kind, full] = [reference.slice(0, reference.indexOf(":")), reference.slice(reference.indexOf(":") + 1)];
  const name = kind === "a" ? full.slice(0, full.lastIndexOf(".")) : full;
  const layer = session.layers.find((one) => (kind.endsWith("w") ? one.parameters.includes(name) : one.name === name));
  const at = new Asked(session, layer);
  if (kind === "w") return { formula: "θ ← θ − η · …", products: [], words: "A weight: training made it, step by step, from its gradients." };
  if (kind === "a") return layer ? inside(at, layer, full.slice(full.lastIndexOf(".") + 1), index) : null;
  if (reference === "dw:head") return at.sum("dE = dzᵀ x", at.range(session.ids.length), (t) => [at.n("dy:head", t, index[0]), at.n("y:final_norm", t, index[1])]);
  if (!layer) return null;
  if (kind === "dy") return incoming(at, layer, index);
  const rule = rules[layer.op]?.[kind];
  return rule ? rule(at, layer, index, name) : null;
}

/** Builds products from references. */
class Asked {
  /** @param {Session} session @param {Layer | undefined} layer */
  constructor(session, layer) {
    this.session = session;
    this.layer = layer;
  }

  /** @param {string} reference @param {number[]} index @returns {Factor} */
  n(reference, ...index) {
    const tensor = this.session.tensor(reference);
    return { value: tensor ? tensor.at(...index) : NaN, label: "", reference, index };
  }

  /** @param {number} value @param {string} label @returns {Factor} */
  c(value, label) {
    return { value, label };
  }

  /** @param {string} reference */
  width(reference) {
    return this.session.tensor(reference)?.width ?? 0;
  }

  /** @param {number} count */
  range(count) {
    return Array.from({ length: count }, (_, i) => i);
  }

  /** The heads of an attention with turns: group says which shared head a query head uses, sharers the converse, and
   * turn by how much its pair i is turned at position t. */
  heads() {
    const { config } = this.session, { d_model, n_heads: H } = config, G = kv_heads(config), K = d_model / H, R = H / G;
    return { H, G, K, group: (/** @type {number} */ h) => Math.floor(h / R), sharers: (/** @type {number} */ g) => this.range(R).map((r) => g * R + r),
      turn: (/** @type {number} */ t, /** @type {number} */ i) => { const by = angle(t, i % (K / 2), K, config.rope_base); return { cos: Math.cos(by), sin: Math.sin(by) }; } };
  }

  /** What a normed query or key is multiplied with. @returns {Factor} */
  gain() {
    return this.c(qk_norm_gain(this.heads().K), "g");
  }

  /** One product for each of `over`, and further ones. @param {string} formula @param {number[]} over
   * @param {(i: number) => Factor[]} factors @param {Factor[][]} [more] @returns {Explanation} */
  sum(formula, over, factors, more = []) {
    return this.of(formula, [...over.map(factors), ...more]);
  }

  /** @param {string} formula @param {Factor[][]} products @param {string} [words] @returns {Explanation} */
  of(formula, products, words) {
    return { formula, words, products: products.map((factors) => ({ factors, value: factors.reduce((p, f) => p * f.value, 1) })) };
  }
}

/** The gradient of a layer's result comes from the layers that read it. @param {Asked} at @param {Layer} layer
 * @param {number[]} index */
function incoming(at, layer, index) {
  if (layer.name === "loss") return at.of("dL = 1", [[at.c(1, "1")]], "The backward begins here: the loss changes one for one with itself.");
  const both = layer.dy.length > 1;
  const words = both
    ? "This result is read twice: by the stream, which carries it on, and by the branch. Their gradients add."
    : "Handed back by the one layer that reads this result.";
  return at.of(both ? "dx = d through the stream + d through the branch" : `d${layer.name} = dx of the next layer`, layer.dy.map((other) => [at.n(other, ...index)]), words);
}

/** @typedef {(at: Asked, layer: Layer, index: number[], name: string) => Explanation | null} Rule */

/** @type {Record<string, Record<string, Rule>>} */
const rules = {
  lookup: {
    y: (at, _, [t, d]) => at.of("x[t] = table[input_ids[t]]", [[at.n("w:token_embedding", at.session.ids[t], d)]], `Row ${at.session.ids[t]} of the table is this token's.`),
    dw: (at, layer, [v, d]) => at.session.config.tie_embeddings
      ? at.of("d_table = d from looking rows up + d from the head", [[at.n("a:token_embedding.as_embedding", v, d)], [at.n("dw:head", v, d)]],
        "The tied table is used twice, at the bottom as embeddings and at the top as the head, so its gradients add.")
      : looked_up(at, [v, d]),
  },
  positions: {
    y: (at, layer, [t, d]) => at.of("y[t] = x[t] + table[t]", [[at.n(layer.x, t, d)], [at.n("w:position_embedding", t, d)]]),
    dx: (at, layer, index) => at.of("dx = dy", [[at.n(`dy:${layer.name}`, ...index)]]),
    dw: (at, layer, [t, d]) => t < at.session.ids.length
      ? at.of("d_table[t] = dy[t]", [[at.n(`dy:${layer.name}`, t, d)]])
      : at.of("d_table[t] = 0", [[at.c(0, "0")]], "The text has no token at this position."),
  },
  residual: {
    y: (at, layer, [t, d]) => at.of("x + h", [[at.n(layer.before ?? "", t, d)], [at.n(layer.x, t, d)]], "The stream, and what the branch adds to it."),
  },
  layer_norm: {
    y: (at, { name, parameters }, [t, d]) => at.of("y = w ∘ x̂ + b", [[at.n(`w:${parameters[0]}`, d), at.n(`a:${name}.x_hat`, t, d)],
      ...(parameters[1] ? [[at.n(`w:${parameters[1]}`, d)]] : [])]),
    dx: (at, { name }, [t, d]) => at.of("dx = rstd · (dx̂ − mean dx̂ − x̂ ∘ mean(dx̂ ∘ x̂))", [
      [at.n(`a:${name}.rstd`, t, 0), at.n(`a:${name}.dx_hat`, t, d)],
      [at.c(-1, "−1"), at.n(`a:${name}.rstd`, t, 0), at.n(`a:${name}.mean_dx_hat`, t, 0)],
      [at.c(-1, "−1"), at.n(`a:${name}.rstd`, t, 0), at.n(`a:${name}.x_hat`, t, d), at.n(`a:${name}.mean_product`, t, 0)],
    ]),
    dw: (at, { name }, [d], parameter) => parameter.endsWith("bias")
      ? at.sum("db = Σ_rows dy", at.range(at.session.ids.length), (t) => [at.n(`dy:${name}`, t, d)])
      : at.sum("dw = Σ_rows dy ∘ x̂", at.range(at.session.ids.length), (t) => [at.n(`dy:${name}`, t, d), at.n(`a:${name}.x_hat`, t, d)]),
  },
  linear: {
    y: (at, { x, parameters }, [t, j]) => at.sum("y = x W + b", at.range(at.width(x)), (i) => [at.n(x, t, i), at.n(`w:${parameters[0]}`, i, j)],
      parameters[1] ? [[at.n(`w:${parameters[1]}`, j)]] : []),
    dx: (at, { name, parameters }, [t, i]) => at.sum("dx = dy Wᵀ", at.range(at.width(`dy:${name}`)), (j) => [at.n(`dy:${name}`, t, j), at.n(`w:${parameters[0]}`, i, j)]),
    dw: (at, { name, x }, index, parameter) => parameter.endsWith("bias")
      ? at.sum("db = Σ_rows dy", at.range(at.session.ids.length), (t) => [at.n(`dy:${name}`, t, index[0])])
      : at.sum("dW = xᵀ dy", at.range(at.session.ids.length), (t) => [at.n(x, t, index[0]), at.n(`dy:${name}`, t, index[1])]),
  },
  head: {
    y: (at, { x, parameters }, [t, v]) => at.sum("z = x Eᵀ", at.range(at.width(x)), (d) => [at.n(x, t, d), at.n(`w:${parameters[0]}`, v, d)]),
    dx: (at, { parameters }, [t, d]) => at.sum("dx = dz E", at.range(at.width("dy:head")), (v) => [at.n("dy:head", t, v), at.n(`w:${parameters[0]}`, v, d)]),
    dw: (at, _, [v, d]) => at.sum("dE = dzᵀ x", at.range(at.session.ids.length), (t) => [at.n("dy:head", t, v), at.n("y:final_norm", t, d)]),
  },
  rms_norm: {
    y: (at, { name, parameters }, [t, d]) => parameters[0] ? at.of("y = w ∘ x̂", [[at.n(`w:${parameters[0]}`, d), at.n(`a:${name}.x_hat`, t, d)]])
      : at.of("y = x̂", [[at.n(`a:${name}.x_hat`, t, d)]], "This norm has no gain."),
    dx: (at, { name }, [t, d]) => at.of("dx = r (dx̂ − x̂ mean(dx̂ ∘ x̂))", [
      [at.n(`a:${name}.r`, t, 0), at.n(`a:${name}.dx_hat`, t, d)],
      [at.c(-1, "−1"), at.n(`a:${name}.r`, t, 0), at.n(`a:${name}.x_hat`, t, d), at.n(`a:${name}.mean_product`, t, 0)],
    ]),
    dw: (at, { name }, [d]) => at.sum("dw = Σ_rows dy ∘ x̂", at.range(at.session.ids.length), (t) => [at.n(`dy:${name}`, t, d), at.n(`a:${name}.x_hat`, t, d)]),
  },
  qk_norm: {
    y: (at, { name, x }, [t, c]) => {
      const { H, G, K } = at.heads();
      return c < (H + G) * K ? at.of("y = g x̂", [[at.gain(), at.n(`a:${name}.x_hat`, t, c)]]) : at.of("y = x", [[at.n(x, t, c)]], "Of a value: values stay as they are.");
    },
    dx: (at, { name }, [t, c]) => {
      const { H, G, K } = at.heads(), h = Math.floor(c / K);
      if (h >= H + G) return at.of("dx = dy", [[at.n(`dy:${name}`, t, c)]], "Of a value: values stayed as they were, and so do their gradients.");
      return at.of("dx = r (dx̂ − x̂ mean(dx̂ ∘ x̂))", [
        [at.n(`a:${name}.r`, t, h), at.n(`a:${name}.dx_hat`, t, c)],
        [at.c(-1, "−1"), at.n(`a:${name}.r`, t, h), at.n(`a:${name}.x_hat`, t, c), at.n(`a:${name}.mean_product`, t, h)],
      ]);
    },
  },
  swiglu: {
    y: (at, { name, x }, [t, f]) => at.of("y = a σ(a) ∘ b", [[at.n(`a:${name}.silu`, t, f), at.n(x, t, at.width(x) / 2 + f)]]),
    dx: (at, { name, x }, [t, c]) => {
      const F = at.width(x) / 2, f = c % F, d = at.n(`dy:${name}`, t, f);
      return c < F ? at.of("da = dy ∘ b ∘ σ (1 + a (1 − σ))", [[d, at.n(x, t, F + f), at.n(`a:${name}.slope`, t, f)]])
        : at.of("db = dy ∘ a σ", [[d, at.n(`a:${name}.silu`, t, f)]]);
    },
  },
  gelu: {
    y: (at, { x }, [t, f]) => { const input = at.n(x, t, f); return at.of("y = ½ x (1 + tanh u)", [[input, at.c(input.value === 0 ? 0.5 : 0.5 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (input.value + 0.044715 * input.value ** 3))), "½ (1 + tanh u)")]]); },
    dx: (at, { name }, [t, f]) => at.of("dx = dy ∘ (½ (1 + τ) + ½ x (1 − τ²) u′)", [[at.n(`dy:${name}`, t, f), at.n(`a:${name}.slope`, t, f)]]),
  },
  relu_squared: {
    y: (at, { name }, [t, f]) => at.of("y = u², u = max(x, 0)", [[at.n(`a:${name}.u`, t, f), at.n(`a:${name}.u`, t, f)]]),
    dx: (at, { name }, [t, f]) => at.of("dx = dy ∘ 2 u, u = max(x, 0)", [[at.n(`dy:${name}`, t, f), at.c(2, "2"), at.n(`a:${name}.u`, t, f)]]),
  },
  causal_attention: {
    y: (at, { name }, [t, c]) => {
      const K = at.session.config.d_model / at.session.config.n_heads, h = Math.floor(c / K);
      return at.sum("Y = P V", at.range(t + 1), (s) => [at.n(`a:${name}.P`, h, t, s), at.n(`a:${name}.v`, h, s, c % K)]);
    },
    dx: (at, { name }, [t, c]) => {
      const { d_model: D, n_heads: H } = at.session.config, K = D / H, T = at.session.ids.length;
      const part = Math.floor(c / D), h = Math.floor((c % D) / K), i = c % K, root = at.c(1 / Math.sqrt(K), "1/√K");
      if (part === 0) return at.sum("dQ = dS K / √K", at.range(t + 1), (s) => [at.n(`a:${name}.dS`, h, t, s), at.n(`a:${name}.k`, h, s, i), root]);
      const later = at.range(T).slice(t);
      if (part === 1) return at.sum("dK = dSᵀ Q / √K", later, (s) => [at.n(`a:${name}.dS`, h, s, t), at.n(`a:${name}.q`, h, s, i), root]);
      return at.sum("dV = Pᵀ dY", later, (s) => [at.n(`a:${name}.P`, h, s, t), at.n(`a:${name}.dY`, h, s, i)]);
    },
  },
  rotary_attention: {
    y: (at, { name }, [t, c]) => {
      const { K, group } = at.heads(), h = Math.floor(c / K);
      return at.sum("Y = P V", at.range(t + 1), (s) => [at.n(`a:${name}.P`, h, t, s), at.n(`a:${name}.v`, group(h), s, c % K)]);
    },
    dx: (at, { name }, [t, c]) => {
      const { K, H, G, sharers } = at.heads(), h = Math.floor(c / K), i = c % K;
      if (h < H) return turned_back(at, `a:${name}.dQ`, "dQ", h, t, i);
      if (h < H + G) return turned_back(at, `a:${name}.dK`, "dK", h - H, t, i);
      return at.of("dV = Pᵀ dY, summed over the heads that share V", sharers(h - H - G).flatMap((one) =>
        at.range(at.session.ids.length).slice(t).map((s) => [at.n(`a:${name}.P`, one, s, t), at.n(`a:${name}.dY`, one, s, i)])));
    },
  },
  cross_entropy: {
    y: (at) => {
      const counted = at.range(at.session.ids.length).filter((t) => at.session.labels[t] >= 0);
      return at.sum("L = 1/n Σ (log Σ_v exp z_v − z_label)", counted, (t) => [at.c(1 / counted.length, "1/n"), at.n("a:loss.losses", t, 0)]);
    },
    dx: (at, layer, index) => dz(at, index),
  },
};

/** A gradient through a turn: turned by −1 times the angle. @param {Asked} at @param {string} of @param {string} symbol
 * @param {number} h @param {number} t @param {number} i */
function turned_back(at, of, symbol, h, t, i) {
  const { K, turn } = at.heads(), first = i < K / 2, { cos, sin } = turn(t, i);
  return at.of(`${symbol} turned back: ${first ? "a cos + b sin" : "b cos − a sin"}`, [
    [at.n(of, h, t, i), at.c(cos, "cos")], [...(first ? [] : [at.c(-1, "−1")]), at.n(of, h, t, first ? i + K / 2 : i - K / 2), at.c(sin, "sin")]],
  "Queries and keys were turned by an angle; their gradient is turned by as much the other way.");
}

/** @param {Asked} at @param {number[]} index */
function looked_up(at, [v, d]) {
  const places = at.range(at.session.ids.length).filter((t) => at.session.ids[t] === v);
  const found = at.sum("d_table[v] = Σ over the t where token v stands of dx[t]", places, (t) => [at.n("dy:token_embedding", t, d)]);
  return places.length ? found : { ...found, products: [{ factors: [at.c(0, "0")], value: 0 }], words: "This token is not in the text, so its row was not looked up." };
}

/** @param {Asked} at @param {number[]} index */
function dz(at, [t, v]) {
  const { labels } = at.session, n = labels.filter((label) => label >= 0).length;
  if (labels[t] < 0) return at.of("dz = 0", [[at.c(0, "0")]], "What follows the last token is not known, so this row does not count.");
  const own = labels[t] === v ? [[at.c(-1, "−1 (the label)"), at.c(1 / n, "1/n")]] : [];
  return at.of("dz = 1/n · (softmax z − onehot(label))", [[at.n("a:loss.probabilities", t, v), at.c(1 / n, "1/n")], ...own]);
}

/** @param {Asked} at @param {Layer} layer @param {string} part @param {number[]} index @returns {Explanation | null} */
function inside(at, layer, part, index) {
  const { name, x, parameters } = layer, a = (/** @type {string} */ other) => `a:${name}.${other}`, [r] = index;
  const D = at.width(x), { d_model } = at.session.config, [h, t, s] = index, { H, G, K, group, sharers, turn } = at.heads(), rotary = layer.op === "rotary_attention";
  const mean = (/** @type {string} */ of, /** @type {string} */ formula) =>
    at.sum(formula, at.range(D), (d) => [at.c(1 / D, "1/D"), at.n(of, r, d)]);
  const given = x.endsWith("qk_norm") ? "qkv, normed" : "qkv";
  // A channel of qkv: queries first, then keys, then values.
  const channel = (/** @type {number} */ which, /** @type {number} */ i) => (which === 0 ? 0 : rotary ? (H + (which - 1) * G) * K : which * d_model) + h * K + i;
  const piece = (/** @type {number} */ which, /** @type {string} */ words) => {
    if (!rotary || which === 2) return at.of(`one head's piece of ${given}`, [[at.n(x, t, channel(which, s))]], words);
    const first = s < K / 2, { cos, sin } = turn(t, s);
    return at.of(`one head's piece of ${given}, turned: ${first ? "a cos − b sin" : "b cos + a sin"}`, [
      [at.n(x, t, channel(which, s)), at.c(cos, "cos")], [...(first ? [at.c(-1, "−1")] : []), at.n(x, t, channel(which, first ? s + K / 2 : s - K / 2)), at.c(sin, "sin")]],
    `${words} Turned by an angle that grows with the position.`);
  };
  /** @type {Record<string, () => Explanation>} */
  const made = {
    x_hat: () => layer.op === "rms_norm" ? at.of("x̂ = x r", [[at.n(x, ...index), at.n(a("r"), r, 0)]]) : at.of("x̂ = (x − mean x) · rstd", [[at.n(x, ...index), at.n(a("rstd"), r, 0)], [at.c(-1, "−1"), at.n(a("mean"), r, 0), at.n(a("rstd"), r, 0)]]),
    mean_square: () => at.of("mean x² = 1/D Σ x²", at.range(D).map((d) => [at.c(1 / D, "1/D"), at.n(x, r, d), at.n(x, r, d)])),
    r: () => ({ formula: "r = (mean x² + ε)^−½", products: [], inputs: [{ ...at.n(a("mean_square"), r, 0), label: "mean x²" }, at.c(at.session.config.norm_eps, "ε")] }),
    silu: () => ({ formula: "a σ(a)", products: [], inputs: [{ ...at.n(x, ...index), label: "a" }], words: "The gate: how far it is open." }),
    mean: () => mean(x, "mean x = 1/D Σ x"),
    variance: () => at.of("var x = 1/D Σ (x − mean x)²", at.range(D).map((d) => { const v = at.n(x, r, d).value - at.n(a("mean"), r, 0).value; return [at.c(1 / D, "1/D"), { ...at.n(x, r, d), value: v * v, label: "(x − mean)²" }]; })),
    rstd: () => ({ formula: "rstd = (var x + ε)^−½", products: [], inputs: [{ ...at.n(a("variance"), r, 0), label: "var x" }, at.c(1e-5, "ε")] }),
    dx_hat: () => parameters[0] ? at.of("dx̂ = dy ∘ w", [[at.n(`dy:${name}`, ...index), at.n(`w:${parameters[0]}`, index[1])]]) : at.of("dx̂ = dy", [[at.n(`dy:${name}`, ...index)]], "This norm has no gain."),
    mean_dx_hat: () => mean(a("dx_hat"), "mean dx̂ = 1/D Σ dx̂"),
    product: () => at.of("dx̂ ∘ x̂", [[at.n(a("dx_hat"), ...index), at.n(a("x_hat"), ...index)]]),
    mean_product: () => mean(a("product"), "mean(dx̂ ∘ x̂) = 1/D Σ dx̂ ∘ x̂"),
    slope: () => layer.op === "swiglu"
      ? { formula: "σ (1 + a (1 − σ))", products: [], inputs: [{ ...at.n(x, ...index), label: "a" }], words: "The slope of a σ(a), the gate's." }
      : { formula: "½ (1 + τ) + ½ x (1 − τ²) u′", products: [], inputs: [{ ...at.n(x, ...index), label: "x" }], words: "The slope of GELU at x." },
    dQ: () => at.sum("dQ = dS K / √K", at.range(t + 1), (key) => [at.n(a("dS"), h, t, key), at.n(a("k"), group(h), key, s), at.c(1 / Math.sqrt(K), "1/√K")]),
    dK: () => at.of("dK = dSᵀ Q / √K, summed over the heads that share K", sharers(h).flatMap((one) =>
      at.range(at.session.ids.length).slice(t).map((query) => [at.n(a("dS"), one, query, t), at.n(a("q"), one, query, s), at.c(1 / Math.sqrt(K), "1/√K")]))),
    q: () => piece(0, "Of the query that this token asks with."),
    k: () => piece(1, "Of the key that this token offers."),
    v: () => piece(2, "Of the value that this token hands over when it is attended to."),
    dY: () => at.of("one head's piece of dy", [[at.n(`dy:${name}`, t, h * K + s)]]),
    S: () => s > t ? { formula: "S = −∞", products: [], words: "The key lies in the query's future: masked." }
      : at.sum("S = Q Kᵀ / √K", at.range(K), (i) => [at.n(a("q"), h, t, i), at.n(a("k"), group(h), s, i), at.c(1 / Math.sqrt(K), "1/√K")]),
    P: () => ({ formula: "P = softmax S: exp S / Σ_keys exp S", products: [], inputs: at.range(t + 1).map((key) => ({ ...at.n(a("S"), h, t, key), label: `S of key ${key}` })) }),
    dP: () => at.sum("dP = dY Vᵀ", at.range(K), (i) => [at.n(a("dY"), h, t, i), at.n(a("v"), group(h), s, i)]),
    inner: () => at.sum("Σ_keys dP ∘ P", at.range(h === undefined ? 0 : t + 1), (key) => [at.n(a("dP"), h, t, key), at.n(a("P"), h, t, key)]),
    dS: () => at.of("dS = P ∘ (dP − Σ_keys dP ∘ P)", [[at.n(a("P"), h, t, s), at.n(a("dP"), h, t, s)], [at.c(-1, "−1"), at.n(a("P"), h, t, s), at.n(a("inner"), h, t, 0)]]),
    lse: () => ({ formula: "log Σ_v exp z_v", products: [], words: "Over the whole vocabulary." }),
    probabilities: () => ({ formula: "softmax z = exp(z − log Σ_v exp z_v)", products: [], inputs: [{ ...at.n(x, ...index), label: "z" }, { ...at.n(a("lse"), r, 0), label: "log Σ exp z" }] }),
    losses: () => at.session.labels[r] < 0 ? at.of("0", [[at.c(0, "0")]], "No label, no loss.")
      : at.of("log Σ_v exp z_v − z_label", [[at.n(a("lse"), r, 0)], [at.c(-1, "−1"), at.n(x, r, at.session.labels[r])]]),
    u: () => ({ formula: "u = max(x, 0)", products: [], inputs: [{ ...at.n(x, ...index), label: "x" }], words: "What is negative is cut off." }),
    as_embedding: () => looked_up(at, index),
  };
  return (layer.op === "qk_norm" ? inside_qk_norm(at, layer, index)[part] : made[part])?.() ?? null;
}

/** Of the norm of queries and keys; its own numbers have one column for each of the (H + G) heads.
 * @param {Asked} at @param {Layer} layer @param {number[]} index @returns {Record<string, () => Explanation>} */
function inside_qk_norm(at, { name, x }, [t, c]) {
  const { K } = at.heads(), a = (/** @type {string} */ other) => `a:${name}.${other}`, own = at.range(K).map((i) => c * K + i), h = Math.floor(c / K);
  return {
    mean_square: () => at.of("mean x² = 1/K Σ x²", own.map((i) => [at.c(1 / K, "1/K"), at.n(x, t, i), at.n(x, t, i)])),
    r: () => ({ formula: "r = (mean x² + ε)^−½", products: [], inputs: [{ ...at.n(a("mean_square"), t, c), label: "mean x²" }, at.c(at.session.config.norm_eps, "ε")] }),
    x_hat: () => at.of("x̂ = x r", [[at.n(x, t, c), at.n(a("r"), t, h)]]),
    dx_hat: () => at.of("dx̂ = g dy", [[at.gain(), at.n(`dy:${name}`, t, c)]]),
    product: () => at.of("dx̂ ∘ x̂", [[at.n(a("dx_hat"), t, c), at.n(a("x_hat"), t, c)]]),
    mean_product: () => at.of("mean(dx̂ ∘ x̂) = 1/K Σ dx̂ ∘ x̂", own.map((i) => [at.c(1 / K, "1/K"), at.n(a("product"), t, i)])),
  };
}
