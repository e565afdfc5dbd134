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

/** @param {Tensor} x */
export function copied(x) {
  return new Tensor(x.data.slice(), x.shape, x.transposed);
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

// The product is made block by block, so that what is worked on stays in the processor's nearest caches. The arrays for it
// are made once: new memory would cost as much time as the sums in it.
const COLUMNS = 256, DEPTH = 256;
const factors = new Float64Array(16), block = new Float64Array(DEPTH * COLUMNS);
let sums = new Float64Array(COLUMNS);

/**
 * C = A B. Blocks of B and C are held in float64, whatever their kind: each number is converted once, sums are exact to
 * 16 digits, and the inner loop sees one kind of array only, for which a browser can compile it well.
 * @param {Tensor} a (M, K) @param {Tensor} b (K, N) @param {Tensor} c (M, N)
 */
function multiply(a, b, c) {
  const [m, k] = a.shape, n = c.shape[1];
  const row = a.transposed ? 1 : k, column = a.transposed ? m : 1; // from one row, and one column, of A to the next
  if (sums.length < (m + 3) * COLUMNS) sums = new Float64Array((m + 3) * COLUMNS);
  for (let start = 0; start < n; start += COLUMNS) {
    const width = Math.min(COLUMNS, n - start);
    sums.fill(0, 0, (m + 3) * width);
    for (let first = 0; first < k; first += DEPTH) {
      const depth = Math.min(DEPTH, k - first);
      pack(b, first, depth, start, width);
      block.fill(0, depth * width, (depth + (-depth & 3)) * width);
      for (let i = 0; i < m; i += 4) {
        for (let p = 0; p < depth; p += 4) {
          const whole = i + 3 < m && p + 3 < depth;
          for (let r = 0; r < 4; r++) {
            for (let q = 0; q < 4; q++) {
              const inside = whole || (i + r < m && p + q < depth);
              factors[4 * r + q] = inside ? a.data[(i + r) * row + (first + p + q) * column] : 0;
            }
          }
          four_by_four(factors, block, p * width, sums, i * width, width);
        }
      }
    }
    for (let i = 0; i < m; i++) c.data.set(sums.subarray(i * width, (i + 1) * width), i * n + start);
  }
}

/** Puts a block of B row by row into `block`. @param {Tensor} b @param {number} first @param {number} depth @param {number} start
 * @param {number} width */
function pack(b, first, depth, start, width) {
  const [k, n] = b.shape, B = b.data;
  if (b.transposed) {
    for (let j = 0; j < width; j++) for (let p = 0, from = (start + j) * k + first; p < depth; p++) block[p * width + j] = B[from + p];
  } else {
    for (let p = 0; p < depth; p++) block.set(B.subarray((first + p) * n + start, (first + p) * n + start + width), p * width);
  }
}

/**
 * Four rows of A with four of B: each number of B that is read serves four sums, and each sum takes four products.
 * @param {Float64Array} a 4 × 4 @param {Float64Array} B @param {number} b where its first row begins
 * @param {Float64Array} C @param {number} c @param {number} n width of a row
 */
function four_by_four(a, B, b, C, c, n) {
  const a00 = a[0], a01 = a[1], a02 = a[2], a03 = a[3], a10 = a[4], a11 = a[5], a12 = a[6], a13 = a[7];
  const a20 = a[8], a21 = a[9], a22 = a[10], a23 = a[11], a30 = a[12], a31 = a[13], a32 = a[14], a33 = a[15];
  const b1 = b + n, b2 = b1 + n, b3 = b2 + n, c1 = c + n, c2 = c1 + n, c3 = c2 + n;
  for (let j = 0; j < n; j++) {
    const x0 = B[b + j], x1 = B[b1 + j], x2 = B[b2 + j], x3 = B[b3 + j];
    C[c + j] += a00 * x0 + a01 * x1 + a02 * x2 + a03 * x3;
    C[c1 + j] += a10 * x0 + a11 * x1 + a12 * x2 + a13 * x3;
    C[c2 + j] += a20 * x0 + a21 * x1 + a22 * x2 + a23 * x3;
    C[c3 + j] += a30 * x0 + a31 * x1 + a32 * x2 + a33 * x3;
  }
}
