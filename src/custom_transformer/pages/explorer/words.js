// What each operation does, for somebody who meets it for the first time; and the terms that the page uses.

/**
 * chapter: of the book. saved: names of what the forward saves, in the order of ops.py; "" is not shown.
 * symbols: what the formula's letters stand for.
 * @typedef {{ title: string, short: string, forward: string, backward: string, symbols: string, chapter: string, excerpt: string,
 *   saved: string[] }} Words
 */

/** @type {Record<string, Words>} */
const OPERATIONS = {
  lookup: {
    title: "Token embedding", short: "token table", chapter: "embedding", excerpt: "lookup", saved: ["", "table"],
    forward: "Each token is a whole number. It picks its row of the table: a vector of d_model numbers with which the computation begins.",
    symbols: "b: the batch, here one text. t: the token's place in the text. v: an entry of the vocabulary.",
    backward: "Each row of the table receives the gradients of the places where its token stands, added up. Rows of other tokens receive nothing here.",
  },
  positions: {
    title: "Position embedding", short: "+ position table", chapter: "embedding", excerpt: "positions", saved: ["table", "", ""],
    forward: "Attention by itself does not know the order of the tokens. So a vector that belongs to the position is added.",
    symbols: "t: the token's place in the text. start: the first place, here 0. b: the batch, here one text.",
    backward: "An addition hands its gradient on to both sides unchanged: to the stream below and to the table's row for that position.",
  },
  layer_norm: {
    title: "Layer norm", short: "layer norm", chapter: "layer_norm", excerpt: "layer_norm", saved: ["x", "weight", "bias", "mean", "rstd"],
    forward: "Each token's vector is shifted to the mean 0 and scaled to the variance 1, then scaled and shifted by learnt numbers. What follows always sees numbers of a like size.",
    symbols: "x: a row for each token; mean and var run along it. ∘: product number by number. w and b: the learnt gain and bias. rstd: 1 / standard deviation. ε: 0.00001, so that nothing is divided by 0.",
    backward: "Moving one input also moves the row's mean and its deviation, so there are three paths back: the direct one, one through the mean, one through the deviation.",
  },
  linear: {
    title: "Linear", short: "linear", chapter: "linear", excerpt: "linear", saved: ["x", "weight", "bias"],
    forward: "Every result is a weighted sum of the inputs, and the weights are learnt. Nearly all the model's parameters stand in such matrices.",
    symbols: "x: a row for each token. W: the weights, a row for each input channel and a column for each output channel. b: the bias, where the model has one. Wᵀ: W with rows and columns exchanged.",
    backward: "The same matrix, transposed, carries the gradient back. A weight's gradient is its input times the gradient of its result, added up over the tokens.",
  },
  causal_attention: {
    title: "Attention", short: "attention", chapter: "attention", excerpt: "causal_attention", saved: ["qkv", "lse", "", "", ""],
    forward: "The only place where tokens exchange something. Each token's query is compared with the keys of itself and of earlier tokens; by softmax the scores become shares, and in these shares it takes over their values. The future is masked.",
    symbols: "Q, K, V: queries, keys, values of one head, a row for each token. P: the shares. S: the scores Q Kᵀ / √K, in which √K is the root of the head's number of channels. ∘: product number by number. Dropout is for training only; here P̃ = P.",
    backward: "Backwards through each step: to the values, to the shares, through the softmax to the scores, and from there to queries and keys. The shares are not kept: they are computed again.",
  },
  residual: {
    title: "Residual sum", short: "+", chapter: "block", excerpt: "", saved: [],
    forward: "What the branch has worked out is added to the stream. Nothing is replaced: the stream carries everything on, from the embedding to the head.",
    symbols: "x: the stream. h: the branch.",
    backward: "An addition hands its gradient on to both sides unchanged. So the gradient splits: one copy goes down the stream at once, the other through the branch. Where the branch left the stream, the two are added.",
  },
  gelu: {
    title: "GELU", short: "GELU", chapter: "gelu", excerpt: "gelu", saved: ["x"],
    forward: "A bend in the road: large inputs pass, negative ones are almost shut off. Without it two matrices in a row would be no more than one.",
    symbols: "Each number by itself: x becomes y. tanh: a curve from −1 to 1. u′: the slope of u. ∘: product number by number.",
    backward: "Each gradient is multiplied by the slope of the curve at its input: near 1 where it passed, near 0 where it was shut off.",
  },
  rms_norm: {
    title: "RMS norm", short: "RMS norm", chapter: "rms_norm", excerpt: "rms_norm", saved: ["x", "weight", "r"],
    forward: "Each token's vector is divided by its size, the root mean square of its numbers, then scaled by learnt numbers. What follows always sees numbers of a like size.",
    symbols: "x: a row for each token; the mean runs along it. r: 1 / root mean square. ∘: product number by number. w: the learnt gain. ε: a small number, so that nothing is divided by 0.",
    backward: "Moving one input also moves the row's size, so there are two paths back: the direct one, and one through the size.",
  },
  qk_norm: {
    title: "Norm of queries and keys", short: "QK norm", chapter: "qk_norm", excerpt: "qk_norm", saved: ["qkv", "r", ""],
    forward: "Each query and each key is divided by its own size, the root mean square of its numbers, and multiplied by one fixed number, the gain g. So only their directions count, and no score can grow beyond 10: softmax stays in the range where attention can learn. Values pass as they are.",
    symbols: "x: the numbers of one query or key; the mean runs along its K numbers. r: 1 / root mean square. ε: a small number, so that nothing is divided by 0. g: √(10 / √K), the same for all; nothing in it is learnt.",
    backward: "As in RMS norm there are two paths back, the direct one and one through the size. Together they leave only what turns the vector: its length does not count, so no gradient asks for another. The gradients of values pass.",
  },
  swiglu: {
    title: "SwiGLU", short: "SwiGLU", chapter: "swiglu", excerpt: "swiglu", saved: ["x"],
    forward: "Half of the numbers are gates: large ones let their partner in the other half pass, negative ones almost shut it off.",
    symbols: "a: the gate, the first half of the input. b: the other half. σ: the sigmoid, a curve from 0 to 1. ∘: product number by number.",
    backward: "A product has two factors, so there are two gradients: the gate's is the partner times the gate's slope, the partner's is the open gate.",
  },
  relu_squared: {
    title: "Squared ReLU", short: "ReLU²", chapter: "relu_squared", excerpt: "relu_squared", saved: ["x"],
    forward: "A bend in the road: what is negative is cut off, and what is positive is squared (ReLU is the cut alone). Without a bend two matrices in a row would be no more than one.",
    symbols: "Each number by itself: x becomes y. max(x, 0): x where it is positive, elsewhere 0. ∘: product number by number.",
    backward: "Each gradient is multiplied by the slope of the curve at its input: 2x where it is positive, 0 where it was cut off. A unit that is cut off at a token learns nothing from it.",
  },
  rotary_attention: {
    title: "Rotary attention", short: "attention", chapter: "rotary", excerpt: "rotary_attention", saved: ["qkv", "lse", "", "", "", "", ""],
    forward: "The only place where tokens exchange something, and where order comes in: queries and keys are turned by an angle that grows with the position, so that a score depends on the distance. By softmax the scores become shares, in which each token takes over values. Several heads may share one key and one value.",
    symbols: "Q, K, V: turned queries, turned keys and values of one head, a row for each token. P: the shares. S: the scores Q Kᵀ / √K, in which √K is the root of the head's number of channels. ∘: product number by number. Dropout is for training only; here P̃ = P.",
    backward: "As for any attention; then a shared key's and value's gradients are added over the heads that share it, and queries and keys are turned back. The shares are not kept: they are computed again.",
  },
  head: {
    title: "Head", short: "head", chapter: "head", excerpt: "linear", saved: ["x", "weight"],
    forward: "Each token's vector is compared with the row of every token in the table. The result is one number for each entry of the vocabulary, its logit.",
    backward: "The gradient of the logits goes back to the vectors, and to the table. Where the table is also the embedding's, it is used twice, here and at the bottom, and receives two contributions.",
    symbols: "x: a row for each token. W: the table, transposed, so that y is the logits. b: there is none here.",
  },
  cross_entropy: {
    title: "Loss", short: "softmax, loss", chapter: "cross_entropy", excerpt: "cross_entropy", saved: ["logits", "", "lse", ""],
    forward: "Softmax turns the logits into probabilities. The loss is −log of the probability of the token that really follows, as a mean over the text: 0 if the model was sure and right.",
    symbols: "L: the loss. z: the logits, a row for each token. label: the token that follows. onehot: 1 at the label, 0 elsewhere. n: how many tokens have a label: the last one's is not known, so its row is 0.",
    backward: "The backward begins here, and simply: the probability of each entry, minus 1 at the right one, divided by the number of tokens.",
  },
};

/** What is different of an RMS norm without a gain. @type {Partial<Words>} */
const WITHOUT_GAIN = {
  forward: "Each token's vector is divided by its size, the root mean square of its numbers. What follows always sees numbers of a like size. This norm has no gain, so nothing in it is learnt.",
  symbols: "x: a row for each token; the mean runs along it. r: 1 / root mean square. ε: a small number, so that nothing is divided by 0. w: a gain, which this norm has not: y = x̂ and dx̂ = dy.",
};

/** The words for a layer. @param {import("./layers.js").Layer} layer @returns {Words} */
export function words_of({ op, parameters }) {
  return op === "rms_norm" && !parameters.length ? { ...OPERATIONS.rms_norm, ...WITHOUT_GAIN } : OPERATIONS[op];
}

/** What a linear layer is for, by its name in the block. @type {Record<string, string>} */
export const PURPOSES = {
  norm_1: "Before attention.", norm_2: "Before the feed-forward network.", final_norm: "Before the head.",
  qkv: "Makes each token's query, key and value.", projection: "Mixes what the heads have gathered.",
  up: "The feed-forward network's first half: widens.", gate_up: "The feed-forward network's first half: widens, to gates and their partners.", down: "Its second half: back to the stream's width.",
};

/** @type {Record<string, string>} */
export const TERMS = {
  "nats per token": "The loss's unit: −ln of a probability. A nat is 1.44 bits.",
  perplexity: "exp(loss): among how many equally likely tokens the model might as well have guessed.",
  block: "Attention and a feed-forward network, each with its norm, added to the residual stream. The model is a stack of them.",
  channel: "One of the d_model numbers in the vector of each token.",
  update: "One step of training: every parameter moves a little against its gradient.",
  "feed-forward network": "Two matrices with a bend between them (GELU, SwiGLU or squared ReLU), applied to each token's vector by itself.",
  "chain rule": "The gradient of a number is the sum, over all that it flows into, of their gradients times how strongly they depend on it.",
  tensor: "Numbers in rows and columns, or in several such tables.",
  token: "A piece of text that the model reads as one unit: a word, a part of one, or a single byte.",
  vocabulary: "All tokens that the model knows, each with a number.",
  logit: "A score of one vocabulary entry. The larger it is compared with the others, the likelier the entry.",
  softmax: "Turns scores into probabilities: exp of each, divided by the sum of all.",
  loss: "How surprised the model was by the text: −log of the probability of each right token, as a mean, in nats. 0 is perfect; guessing among n entries costs ln n.",
  gradient: "How fast the loss changes when a number changes. Each number in the model has one; training moves against it.",
  backward: "The computation of all gradients, from the loss back to the first layer, by the chain rule.",
  parameter: "A number that training changes: the entries of matrices and tables, biases, gains.",
  "residual stream": "The vector of each token that runs from the embedding to the head; every branch adds to it.",
  attention: "How much each token takes over from itself and from each earlier one.",
  head: "Of attention: one of several that look at the text side by side, each with its own queries, keys and values. Of the model: the last matrix, which gives the logits.",
  query: "What a token asks with: it is compared with the keys of the tokens before it.",
  gain: "Of a norm: what its result is multiplied with. In most norms one learnt number for each channel.",
  ReLU: "Rectified linear unit: max(x, 0). It lets positive numbers pass and cuts off negative ones.",
  "root mean square": "The usual size of some numbers: the root of the mean of their squares.",
  "finite difference": "A derivative that is measured: move one number a little, run the model again, see how the loss has changed.",
  "heat map": "Numbers as colours. Here blue is negative, orange positive, the middle zero.",
  "tied table": "The table of embeddings is also the head's matrix: one parameter, used twice.",
  checkpoint: "The parameters as they were at one moment of the training.",
  rounded: "To keep this page small, each number of a matrix is rounded to one of a few dozen levels of its row. The loss hardly changes. The run's best checkpoint is here exactly.",
  dropout: "In training, some numbers may be set to 0 by chance, against learning by heart. A model in use drops nothing.",
  batch: "Several texts that training reads at once. This page reads one.",
  SGD: "Stochastic gradient descent: each parameter minus the learning rate times its gradient.",
  AdamW: "Like SGD, but each parameter's step is scaled by the usual size of its own gradients.",
  "learning rate": "How far one step goes.",
  "weight decay": "Each step also shrinks matrices and tables a little.",
  float32: "Numbers of 32 bits, about 7 digits. The model computes in them; measured derivatives use float64, about 16 digits.",
};
