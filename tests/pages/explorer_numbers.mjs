// node explorer_numbers.mjs FOLDER < request.json > answer.json: the explorer's modules in FOLDER at work without a page.

import { readFileSync } from "node:fs";

const folder = process.argv[2];
const request = JSON.parse(readFileSync(0, "utf8"));
const load = (name) => import(`${folder}/${name}.js`);
const [{ Session }, { exact_tensors, rounded_tensors }, { explain }, { check_parameter, place }, { mistakes_of }, { Tokenizer }, optim, { READABLE }] =
  await Promise.all(["session", "weights", "explain", "check", "mistakes", "tokenizer", "optim", "model"].map(load));

const { config, parameters, weights, ids, labels } = request;
const tensors = await exact_tensors(parameters, weights);

function session(engine = READABLE, parameters = tensors) {
  const made = new Session(config, parameters, 0);
  Object.assign(made, { engine, ids: Int32Array.from(ids), labels: Int32Array.from(labels) });
  made.forward();
  made.backward();
  return made;
}

const plain = (map) => Object.fromEntries([...map].map(([name, tensor]) => [name, [...tensor.data]]));
const right = session(), wide = right.in_float64();

// Every tensor, the ones inside operations included, at a few places.
const inside = {
  layer_norm: ["mean", "variance", "rstd", "x_hat", "dx_hat", "mean_dx_hat", "product", "mean_product"],
  rms_norm: ["mean_square", "r", "x_hat", "dx_hat", "product", "mean_product"], swiglu: ["silu", "slope"],
  qk_norm: ["mean_square", "r", "x_hat", "dx_hat", "product", "mean_product"], relu_squared: ["u"],
  causal_attention: ["q", "k", "v", "dY", "S", "P", "dP", "inner", "dS"],
  rotary_attention: ["q", "k", "v", "dY", "S", "P", "dP", "inner", "dS", "dQ", "dK"],
  cross_entropy: ["lse", "probabilities", "losses"], lookup: ["as_embedding"], gelu: ["slope"],
};
const references = [...wide.values.keys()].filter((reference) => !reference.includes("drop") && reference !== "dy:loss")
  .concat(wide.layers.flatMap(({ name, op }) => (inside[op] ?? []).map((part) => `a:${name}.${part}`)));
const explained = [], measured = [];
for (const reference of references) {
  const tensor = wide.tensor(reference), largest = tensor.data.reduce((most, v) => (Number.isFinite(v) ? Math.max(most, Math.abs(v)) : most), 0);
  for (let n = 0; n < 3; n++) {
    const index = place((n * 7919 + 5) % tensor.data.length, tensor.shape), value = tensor.at(...index);
    if (!Number.isFinite(value)) continue;
    const made = explain(wide, reference, index);
    if (!made) throw new Error(`${reference}: nothing made it`);
    const sizes = made.products.map((product) => Math.abs(product.value));
    const sum = made.products.reduce((total, product) => total + product.value, 0);
    if (sizes.length) explained.push([reference, Math.abs(sum - value) / Math.max(...sizes, 1e-12)]);
    const gradient = /^(dy|dx|dw):|\.(dP|dS|as_embedding)$/.test(reference);
    const found = gradient ? right.difference(reference, index) : null;
    if (found) measured.push([reference, Math.abs(found.value - value) / largest]);
  }
}

const betrayed = mistakes_of(config).map(({ id, seen, engine }) => {
  const made = session(engine);
  return { id, seen, off: [...tensors.keys()].filter((name) => check_parameter(made, name).error > 1e-6) };
});

// A unit whose input is 0 at each token stands at the corner of its curve.
const at_corner = [];
if (config.architecture === "modern") {
  const up = tensors.get("blocks.0.up.weight"), unit = 3;
  const cut = new up.constructor(up.data.map((v, i) => (i % up.width === unit ? 0 : v)), up.shape);
  const made = session(READABLE, new Map([...tensors, ["blocks.0.up.weight", cut]]));
  for (const reference of ["dx:blocks.0.relu_squared", "dy:blocks.0.up", "dw:blocks.0.up.weight"]) {
    const exact = made.in_float64().tensor(reference), { value, doubt, corner } = made.difference(reference, [2, unit]);
    at_corner.push({ corner, off: Math.abs(value - exact.at(2, unit)), doubt, largest: Math.max(...exact.data.map(Math.abs)) });
  }
}

const updated = {};
for (const kind of ["sgd", "adamw"]) {
  const copy = new Map([...tensors].map(([name, t]) => [name, new t.constructor(t.data.slice(), t.shape)]));
  const decay = new Map(parameters.filter(({ decays }) => decays).map(({ name }) => [name, 0.01]));
  const optimizer = optim.build_optimizer(kind, copy, decay, [0.9, 0.99]);
  for (let i = 0; i < 2; i++) optim.update(optimizer, copy, right.gradients, 0.01, optim.clip_scale(optim.global_norm(right.gradients), 1));
  updated[kind] = plain(copy);
}

const tokenizer = new Tokenizer(request.tokenizer.entries, request.tokenizer.merges);
const encoded = request.texts.map((text) => tokenizer.encode(text));
process.stdout.write(JSON.stringify({
  loss: right.loss, logits: [...right.values.get("y:head").data], gradients: plain(right.gradients), explained, measured, betrayed, at_corner, updated,
  sound: [...tensors.keys()].filter((name) => check_parameter(right, name).error > 1e-6),
  rounded: plain(await rounded_tensors(parameters, request.rounded)), encoded, decoded: encoded.map((tokens) => tokenizer.decode(tokens)),
}));
