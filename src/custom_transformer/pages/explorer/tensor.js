// Arrays with a shape, and the one matrix product that everything below is made of.
// Results have the kind of their inputs: float32 for the pass that is shown, float64 for finite differences.

/** @typedef {Float32Array | Float64Array} Numbers */

export class Tensor {
  /**
   * @param {Numbers} data row by row; of a transposed view, column by column
   * @param {number[]} shape
   * @param {boolean} [transposed] a matrix whose transpose is what `data` holds
   */
  constructor(data, shape, transposed = false) {
    this.data = data;
    this.shape = shape;
    this.transposed = transposed;
  }

  /** The transpose of a matrix, on the same numbers. */
  get T() {
    return new Tensor(this.data, [this.shape[1], this.shape[0]], !this.transposed);
  }

  /** Size of the last axis. */
  get width() {
    return this.shape[this.shape.length - 1];
  }

  /** Number of rows when all axes but the last are one. */
  get rows() {
    return this.data.length / this.width;
  }

  /** @param {number[]} index @returns {number} */
  at(...index) {
    return this.data[this.offset(index)];
  }

  /** @param {number[]} index place of an element in `data` */
  offset(index) {
    if (this.transposed) return index[1] * this.shape[0] + index[0];
    return index.reduce((place, i, axis) => place * this.shape[axis] + i, 0);
  }
}

/** @param {Tensor} like whose kind of numbers @param {number[]} shape zeros */
export function zeros(like, shape) {
  const size = shape.reduce((a, b) => a * b, 1);
  return new Tensor(like.data instanceof Float64Array ? new Float64Array(size) : new Float32Array(size), shape);
}

/** @param {Tensor} x @param {(value: number, place: number) => number} f */
export function map(x, f) {
  const y = zeros(x, x.shape);
  for (let i = 0; i < x.data.length; i++) y.data[i] = f(x.data[i], i);
  return y;
}

/** x + y @param {Tensor} x @param {Tensor} y @returns {Tensor} */
export function add(x, y) {
  return map(x, (value, i) => value + y.data[i]);
}

/** The same matrix row by row. @param {Tensor} x */
export function contiguous(x) {
  if (!x.transposed) return x;
  const [rows, columns] = x.shape;
  const y = zeros(x, [rows, columns]);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) y.data[i * columns + j] = x.data[j * rows + i];
  return y;
}

/** Σ of x ∘ y, in float64 @param {Numbers} x @param {Numbers} y */
export function inner(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
  return sum;
}

/** Σ over the rows -> (width,) @param {Tensor} x */
export function sum_rows(x) {
  const sums = new Float64Array(x.width);
  for (let r = 0, i = 0; r < x.rows; r++) for (let j = 0; j < x.width; j++, i++) sums[j] += x.data[i];
  const y = zeros(x, [x.width]);
  y.data.set(sums);
  return y;
}

/**
 * C = A B. A leading axis, the heads', is gone through one by one.
 * @param {Tensor} a (…, M, K) @param {Tensor} b (…, K, N) @returns {Tensor} (…, M, N)
 */
export function matmul(a, b) {
  if (a.shape.length === 3) {
    const [heads, m] = a.shape;
    const c = zeros(a, [heads, m, b.width]);
    for (let h = 0; h < heads; h++) multiply(head(a, h), head(b, h), head(c, h));
    return c;
  }
  const c = zeros(a, [a.shape[0], b.shape[1]]);
  multiply(a, b, c);
  return c;
}

/** One matrix of several, on the same numbers. @param {Tensor} x (H, M, N) @param {number} h */
export function head(x, h) {
  const [, m, n] = x.shape;
  return new Tensor(x.data.subarray(h * m * n, (h + 1) * m * n), [m, n]);
}

/** The transposes of several matrices. @param {Tensor} x (H, M, N) @returns {Tensor} (H, N, M) */
export function transpose_each(x) {
  const [heads, m, n] = x.shape;
  const y = zeros(x, [heads, n, m]);
  for (let h = 0; h < heads; h++) y.data.set(contiguous(head(x, h).T).data, h * m * n);
  return y;
}

const COLUMNS = 256; // of B and C at a time, so that eight rows of them stay in the processor's nearest cache

/**
 * Adds A B to C, four rows of A and four of B at a time: each number of B that is read serves four rows of C, and
 * each number of C four products. The order of the loops reads B and C as they lie in memory.
 * @param {Tensor} a (M, K) @param {Tensor} b (K, N) @param {Tensor} c (M, N)
 */
function multiply(a, b, c) {
  const [m, k] = a.shape;
  const n = b.shape[1];
  const A = a.data, B = contiguous(b).data, C = c.data;
  const row = a.transposed ? 1 : k, column = a.transposed ? m : 1; // from one row, and one column, of A to the next
  // A browser compiles a loop for the kinds of numbers that it has seen there; float32's is kept for float32 alone.
  const fours = A instanceof Float64Array ? 0 : m - (m % 4);
  for (let start = 0; start < n; start += COLUMNS) {
    const end = Math.min(n, start + COLUMNS);
    for (let i = 0; i < fours; i += 4) {
      let p = 0;
      for (; p + 3 < k; p += 4) four_by_four(A, i * row + p * column, row, column, B, p * n, C, i * n, n, start, end);
      for (let r = i; r < i + 4; r++) one_row(A, r * row + p * column, column, k - p, B, p * n, C, r * n, n, start, end);
    }
    for (let i = fours; i < m; i++) one_row(A, i * row, column, k, B, 0, C, i * n, n, start, end);
  }
}

/**
 * @param {Numbers} A @param {number} a place of the first of 4 × 4 @param {number} row @param {number} column
 * @param {Numbers} B @param {number} b @param {Numbers} C @param {number} c
 * @param {number} n @param {number} start @param {number} end
 */
function four_by_four(A, a, row, column, B, b, C, c, n, start, end) {
  const a1 = a + row, a2 = a1 + row, a3 = a2 + row;
  const a00 = A[a], a01 = A[a + column], a02 = A[a + 2 * column], a03 = A[a + 3 * column];
  const a10 = A[a1], a11 = A[a1 + column], a12 = A[a1 + 2 * column], a13 = A[a1 + 3 * column];
  const a20 = A[a2], a21 = A[a2 + column], a22 = A[a2 + 2 * column], a23 = A[a2 + 3 * column];
  const a30 = A[a3], a31 = A[a3 + column], a32 = A[a3 + 2 * column], a33 = A[a3 + 3 * column];
  const b1 = b + n, b2 = b1 + n, b3 = b2 + n, c1 = c + n, c2 = c1 + n, c3 = c2 + n;
  for (let j = start; j < end; j++) {
    const x0 = B[b + j], x1 = B[b1 + j], x2 = B[b2 + j], x3 = B[b3 + j];
    C[c + j] += a00 * x0 + a01 * x1 + a02 * x2 + a03 * x3;
    C[c1 + j] += a10 * x0 + a11 * x1 + a12 * x2 + a13 * x3;
    C[c2 + j] += a20 * x0 + a21 * x1 + a22 * x2 + a23 * x3;
    C[c3 + j] += a30 * x0 + a31 * x1 + a32 * x2 + a33 * x3;
  }
}

/**
 * One row of C, from `k` numbers of A's row.
 * @param {Numbers} A @param {number} a @param {number} column @param {number} k
 * @param {Numbers} B @param {number} b @param {Numbers} C @param {number} c
 * @param {number} n @param {number} start @param {number} end
 */
function one_row(A, a, column, k, B, b, C, c, n, start, end) {
  let p = 0;
  for (; p + 3 < k; p += 4) {
    const b0 = b + p * n, b1 = b0 + n, b2 = b1 + n, b3 = b2 + n;
    const a0 = A[a + p * column], a1 = A[a + (p + 1) * column];
    const a2 = A[a + (p + 2) * column], a3 = A[a + (p + 3) * column];
    for (let j = start; j < end; j++) {
      C[c + j] += a0 * B[b0 + j] + a1 * B[b1 + j] + a2 * B[b2 + j] + a3 * B[b3 + j];
    }
  }
  for (; p < k; p++) {
    const factor = A[a + p * column], place = b + p * n;
    for (let j = start; j < end; j++) C[c + j] += factor * B[place + j];
  }
}
