// What each operation does, for somebody who meets it for the first time; and the terms that the page uses.

/**
 * chapter: of the book. saved: names of what the forward saves, in the order of ops.py; "" is not shown.
 * @typedef {{ title: string, short: string, forward: string, backward: string, chapter: string, excerpt: string, saved: string[] }} Words
 */

/** @type {Record<string, Words>} */
export const OPERATIONS = {
  lookup: {
    title: "Token embedding", short: "token table", chapter: "embedding", excerpt: "lookup", saved: ["", "table"],
    forward: "Each token is a whole number. It picks its row of the table: a vector of d_model numbers with which the computation begins.",
    backward: "Each row of the table receives the gradients of the places where its token stands, added up. Rows of other tokens receive nothing here.",
  },
  positions: {
    title: "Position embedding", short: "+ position table", chapter: "embedding", excerpt: "positions", saved: ["table", "", ""],
    forward: "Attention by itself does not know the order of the tokens. So a vector that belongs to the position is added.",
    backward: "An addition hands its gradient on to both sides unchanged: to the stream below and to the table's row for that position.",
  },
  layer_norm: {
    title: "Layer norm", short: "layer norm", chapter: "layer_norm", excerpt: "layer_norm", saved: ["x", "weight", "bias", "mean", "rstd"],
    forward: "Each token's vector is shifted to the mean 0 and scaled to the variance 1, then scaled and shifted by learnt numbers. What follows always sees numbers of a like size.",
    backward: "Moving one input also moves the row's mean and its deviation, so there are three paths back: the direct one, one through the mean, one through the deviation.",
  },
  linear: {
    title: "Linear", short: "linear", chapter: "linear", excerpt: "linear", saved: ["x", "weight", "bias"],
    forward: "Every result is a weighted sum of the inputs, and the weights are learnt. Nearly all the model's parameters stand in such matrices.",
    backward: "The same matrix, transposed, carries the gradient back. A weight's gradient is its input times the gradient of its result, added up over the tokens.",
  },
  causal_attention: {
    title: "Attention", short: "attention", chapter: "attention", excerpt: "causal_attention", saved: ["qkv", "lse", "", "", ""],
    forward: "The only place where tokens exchange something. Each token's query is compared with the keys of itself and of earlier tokens; by softmax the scores become shares, and in these shares it takes over their values. The future is masked.",
    backward: "Backwards through each step: to the values, to the shares, through the softmax to the scores, and from there to queries and keys. The shares are not kept: they are computed again.",
  },
  residual: {
    title: "Residual sum", short: "+", chapter: "block", excerpt: "", saved: [],
    forward: "What the branch has worked out is added to the stream. Nothing is replaced: the stream carries everything on, from the embedding to the head.",
    backward: "An addition hands its gradient on to both sides unchanged. So the gradient splits: one copy goes down the stream at once, the other through the branch. Where the branch left the stream, the two are added.",
  },
  gelu: {
    title: "GELU", short: "GELU", chapter: "gelu", excerpt: "gelu", saved: ["x"],
    forward: "A bend in the road: large inputs pass, negative ones are almost shut off. Without it two matrices in a row would be no more than one.",
    backward: "Each gradient is multiplied by the slope of the curve at its input: near 1 where it passed, near 0 where it was shut off.",
  },
  head: {
    title: "Head", short: "head", chapter: "head", excerpt: "linear", saved: ["x", "weight"],
    forward: "Each token's vector is compared with the row of every token in the table. The result is one number for each entry of the vocabulary, its logit.",
    backward: "The gradient of the logits goes back to the vectors, and to the table. The table is used twice, here and at the bottom, so it receives two contributions.",
  },
  cross_entropy: {
    title: "Loss", short: "softmax, loss", chapter: "cross_entropy", excerpt: "cross_entropy", saved: ["logits", "", "lse", ""],
    forward: "Softmax turns the logits into probabilities. The loss is −log of the probability of the token that really follows, as a mean over the text: 0 if the model was sure and right.",
    backward: "The backward begins here, and simply: the probability of each entry, minus 1 at the right one, divided by the number of tokens.",
  },
};

/** What a linear layer is for, by its name in the block. @type {Record<string, string>} */
export const PURPOSES = {
  norm_1: "Before attention.", norm_2: "Before the feed-forward network.", final_norm: "Before the head.",
  qkv: "Makes each token's query, key and value.", projection: "Mixes what the heads have gathered.",
  up: "The feed-forward network's first half: widens.", down: "Its second half: back to the stream's width.",
};

/** @type {Record<string, string>} */
export const TERMS = {
  "nats per token": "The loss's unit: −ln of a probability. A nat is 1.44 bits.",
  perplexity: "exp(loss): among how many equally likely tokens the model might as well have guessed.",
  block: "Attention and a feed-forward network, each with its norm, added to the residual stream. The model is a stack of them.",
  channel: "One of the d_model numbers in the vector of each token.",
  update: "One step of training: every parameter moves a little against its gradient.",
  "feed-forward network": "Two matrices with GELU between them, applied to each token's vector by itself.",
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
  "finite difference": "A derivative that is measured: move one number a little, run the model again, see how the loss has changed.",
  "heat map": "Numbers as colours. Here blue is negative, orange positive, the middle zero.",
  "tied table": "The table of embeddings is also the head's matrix: one parameter, used twice.",
  checkpoint: "The parameters as they were at one moment of the training.",
  SGD: "Stochastic gradient descent: each parameter minus the learning rate times its gradient.",
  AdamW: "Like SGD, but each parameter's step is scaled by the usual size of its own gradients.",
  "learning rate": "How far one step goes.",
  "weight decay": "Each step also shrinks matrices and tables a little.",
  float32: "Numbers of 32 bits, about 7 digits. The model computes in them; measured derivatives use float64, about 16 digits.",
};
