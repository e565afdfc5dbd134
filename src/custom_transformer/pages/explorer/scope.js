// The mirror of maths/scope.py: a layer's parameters, what it saves and its gradients, all under the layer's one name.

import { Tensor } from "./tensor.js";

/** @typedef {import("./ops.js").Op} Op */
/** @typedef {Map<string, Tensor>} Tensors */

/**
 * What a watcher sees: "x" a layer's input and "y" its result, "dy" the gradient of that result, "dx" the gradient
 * that the layer hands to the one before, "dw" a parameter's gradient, each under its name. What it returns for "x"
 * or "y" takes that tensor's place: so a finite difference moves one number.
 * @typedef {(kind: "x" | "y" | "dy" | "dx" | "dw", name: string, tensor: Tensor) => Tensor | void} Watch
 */

export class Scope {
  /**
   * @param {Tensors} parameters of the whole model
   * @param {Map<string, any[]> | null} saved what each layer saves; null keeps nothing
   * @param {Map<Op, Op>} equals operations that stand in for others: here, planted mistakes
   * @param {Watch} watch
   * @param {Tensors} gradients is given each parameter's gradient as soon as it is ready
   * @param {string} prefix
   */
  constructor(parameters, saved, equals, watch, gradients = new Map(), prefix = "") {
    this.parameters = parameters;
    this.saved = saved;
    this.equals = equals;
    this.watch = watch;
    this.gradients = gradients;
    this.prefix = prefix;
  }

  /** The scope of the part called `name`. @param {string} name */
  part(name) {
    return new Scope(this.parameters, this.saved, this.equals, this.watch, this.gradients, `${this.prefix}${name}.`);
  }

  /** The layer's result; what it saves is kept under its name.
   * @param {string} name @param {Op} op @param {any} x @param {any[]} others @returns {Tensor} */
  forward(name, op, x, ...others) {
    op = this.equals.get(op) ?? op;
    x = this.watch("x", this.prefix + name, x) ?? x;
    const { y, saved } = op.forward(x, ...names(name, op).map((part) => this.get(part)), ...others);
    this.saved?.set(this.prefix + name, saved);
    return this.watch("y", this.prefix + name, y) ?? y;
  }

  /** The gradient of the layer's input; those of its parameters are handed on.
   * @param {string} name @param {Op} op @param {any} dy @param {any[]} others @returns {Tensor} */
  backward(name, op, dy, ...others) {
    op = this.equals.get(op) ?? op;
    this.watch("dy", this.prefix + name, dy);
    const [dx, ...gradients] = op.backward(dy, this.take(name), ...others);
    names(name, op).forEach((part, i) => this.give(part, gradients[i]));
    if (dx !== null) this.watch("dx", this.prefix + name, dx);
    return /** @type {Tensor} */ (dx);
  }

  /** A parameter of this scope; null if the model has none of this name. @param {string} name */
  get(name) {
    return this.parameters.get(this.prefix + name) ?? null;
  }

  /** What the layer saved, which is freed after its backward. @param {string} name */
  take(name) {
    const saved = /** @type {any[]} */ (this.saved?.get(this.prefix + name));
    this.saved?.delete(this.prefix + name);
    return saved;
  }

  /** @param {string} name @param {Tensor | null} gradient */
  give(name, gradient) {
    if (gradient === null) return;
    this.watch("dw", this.prefix + name, gradient);
    this.gradients.set(this.prefix + name, gradient);
  }
}

/** @param {string} name @param {Op} op */
function names(name, op) {
  return op.parameters.map((part) => (part ? `${name}.${part}` : name));
}
