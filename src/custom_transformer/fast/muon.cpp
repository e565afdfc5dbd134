// Muon's updates, one matrix per thread at a time.
//
// x ← a x + (b A + c A²) x with A = x xᵀ is done on the small side alone (s rows): x_k = Q_k x₀ and A_k = Q_k A₀ Q_kᵀ,
// where Q_k is a polynomial of A₀. With P = a + b A + c A², the next Q is P Q and the next A is P A P. All of these are
// symmetric and commute, so that of each product only the half on and above the diagonal is computed. The long side
// is part of two products, the first A and the last Q x.

#include "kernels.h"

namespace {

constexpr Index BLOCK = 256;  // columns of a product's right operand, whose packed chunk the cache holds

// A matrix of rows and columns, in room for whole tiles each way, so that every panel of it is a full one. The numbers
// beyond its size are and stay 0.
template <typename W> struct Tiles {
  static constexpr Index NR = COLUMNS<W>;
  Index ld;
  Buffer<W> data;
  static Index room(Index count) { return ceil_div(ceil_div(count, ROWS) * ROWS, NR) * NR; }
  Tiles(Index rows, Index columns) : ld(room(columns)), data(buffer<W>(room(rows) * ld)) {
    std::fill(data.get(), data.get() + room(rows) * ld, W(0));
  }
  W* row(Index i) const { return data.get() + i * ld; }
  operator Matrix<W>() const { return {data.get(), ld, 1}; }
};

// What a thread needs for a matrix of D_in rows and D_out columns: the matrix, what it becomes, and of the small side
// A, P, Q and the next of one of them.
template <typename W> struct Workspace {
  Index D_in, D_out, side;
  Tiles<W> x, y, gram, p, q, next;
  Buffer<W> packed_a, packed_b;
  Workspace(Index rows, Index columns)
      : D_in(rows), D_out(columns), side(std::min(rows, columns)), x(rows, columns), y(rows, columns), gram(side, side),
        p(side, side), q(side, side), next(side, side), packed_a(buffer<W>(ROWS * CHUNK)),
        packed_b(buffer<W>(BLOCK * CHUNK)) {}
};

enum class Half { BOTH, UPPER };

// c = a · b of three Tiles or their transposes, in this thread, with the bits of products.h. UPPER: only tiles that
// touch the diagonal or lie above it.
template <Half HALF, typename W>
void product_here(Index M, Index N, Index K, Matrix<W> a, Matrix<W> b, const Tiles<W>& c, Workspace<W>& w) {
  constexpr Index NR = COLUMNS<W>;
  static_assert(BLOCK % NR == 0);
  for (Index j0 = 0; j0 < N; j0 += BLOCK)
    for (Index k = 0; k < K; k += CHUNK) {
      const Index j1 = std::min(j0 + BLOCK, N), depth = std::min(CHUNK, K - k);
      pack_panels<NR>(b.from(k, j0).transposed(), ceil_div(j1 - j0, NR) * NR, depth, w.packed_b.get());
      for (Index i = 0; i < (HALF == Half::UPPER ? std::min(M, j1) : M); i += ROWS) {
        pack<ROWS>(a.from(i, k), ROWS, depth, w.packed_a.get());
        for (Index j = HALF == Half::UPPER ? std::max(j0, i / NR * NR) : j0; j < j1; j += NR) {
          const W *of_a = w.packed_a.get(), *of_b = w.packed_b.get() + (j - j0) * depth;
          W* to = c.row(i) + j;
          if (k == 0)
            tile<W, Sums::NEW>(of_a, of_b, depth, nullptr, 0, to, c.ld);
          else
            tile<W, Sums::ADDED>(of_a, of_b, depth, to, c.ld, to, c.ld);
        }
      }
    }
}

// The half below the diagonal is made the mirror image of the one above it.
template <typename W> void mirror(Index side, const Tiles<W>& c) {
  for (Index i = 0; i < side; i += 4)
    for (Index j = i; j < side; j += 4) {
      if constexpr (std::is_same_v<W, float>)
        if (j > i && j + 4 <= side) {
          Four rows[4];
          for (Index r = 0; r < 4; r++) rows[r] = four_cells(c.row(i + r) + j);
          transpose(rows);
          for (Index r = 0; r < 4; r++) std::memcpy(c.row(j + r) + i, &rows[r], 16);
          continue;
        }
      for (Index down = j; down < std::min(j + 4, side); down++)
        for (Index across = i; across < std::min(i + 4, down); across++) c.row(down)[across] = c.row(across)[down];
    }
}

// c = a · b of symmetric matrices that commute, so that c is symmetric, too
template <typename W> void symmetric_product(const Tiles<W>& a, const Tiles<W>& b, const Tiles<W>& c, Workspace<W>& w) {
  // a is read as its transpose, whose rows are packed as they lie.
  product_here<Half::UPPER, W>(w.side, w.side, w.side, Matrix<W>(a).transposed(), b, c, w);
  mirror(w.side, c);
}

template <typename W> void multiply(Index rows, Index columns, const Tiles<W>& c, W factor) {
  for (Index i = 0; i < rows; i++) {
    W* row = c.row(i);
#pragma omp simd
    for (Index j = 0; j < columns; j++) row[j] *= factor;
  }
}

// Σ c², row after row
template <typename W> double squares(Index rows, Index columns, const Tiles<W>& c) {
  double total = 0;
  for (Index i = 0; i < rows; i++) {
    const W* row = c.row(i);
    total += row_sum<double>(columns, [&](Index j, double& sum) {
      sum = mul_add(static_cast<double>(row[j]), static_cast<double>(row[j]), sum);
    });
  }
  return total;
}

constexpr double TINY = 1e-30;  // as in muon.py

// w.y = what muon.py's `orthogonalised` makes of w.x, but for a factor, which is returned
template <typename W> W orthogonalise(const W* quintics, Index iterations, Workspace<W>& w) {
  const Index s = w.side;
  const bool wide = w.D_in <= w.D_out;
  const Matrix<W> x = w.x, rows = wide ? x : x.transposed();
  const W to_unit = static_cast<W>(1 / std::max(std::sqrt(squares(w.D_in, w.D_out, w.x)), TINY));
  multiply(w.D_in, w.D_out, w.x, to_unit);
  product_here<Half::UPPER, W>(s, s, std::max(w.D_in, w.D_out), rows, rows.transposed(), w.gram, w);
  mirror(s, w.gram);
  W factor = 1;
  for (Index iteration = 0; iteration < iterations; iteration++, quintics += 3) {
    symmetric_product(w.gram, w.gram, w.p, w);
    if (iteration == 0) {
      const double fourth_power = std::max(std::sqrt(squares(s, s, w.p)), TINY), square = std::sqrt(fourth_power);
      factor = static_cast<W>(1 / std::sqrt(square));
      multiply(s, s, w.gram, static_cast<W>(1 / square));
      multiply(s, s, w.p, static_cast<W>(1 / fourth_power));
    }
    const W a = quintics[0], b = quintics[1], c = quintics[2];
    for (Index i = 0; i < s; i++) {
      const W* gram = w.gram.row(i);
      W* p = w.p.row(i);
#pragma omp simd
      for (Index j = 0; j < s; j++) p[j] = mul_add(c, p[j], b * gram[j]);
      p[i] += a;
    }
    const bool last = iteration + 1 == iterations;
    if (!last) {
      symmetric_product(w.p, w.gram, w.next, w);
      symmetric_product(w.p, w.next, w.gram, w);
    }
    if (iteration == 0) {
      std::swap(w.p, w.q);
    } else {
      symmetric_product(w.p, w.q, w.next, w);
      std::swap(w.q, w.next);
    }
  }
  if (wide)
    product_here<Half::BOTH, W>(w.D_in, w.D_out, s, Matrix<W>(w.q).transposed(), x, w.y, w);
  else
    product_here<Half::BOTH, W>(w.D_in, w.D_out, s, x, w.q, w.y, w);
  return factor;
}

// w.x = β m + (1 − β) s g with the new m = β m + (1 − β) s g, rows of m and g so far apart
template <typename W>
void take_gradient(const W* gradient, Index ld_gradient, W* momentum, Index ld_momentum, W scale, W beta,
                   W one_minus_beta, Workspace<W>& w) {
  for (Index i = 0; i < w.D_in; i++) {
    const W* g = gradient + i * ld_gradient;
    W *m = momentum + i * ld_momentum, *x = w.x.row(i);
#pragma omp simd
    for (Index j = 0; j < w.D_out; j++) {
      const W scaled = g[j] * scale;
      m[j] = mul_add(scaled - m[j], one_minus_beta, m[j]);
      x[j] = mul_add(m[j] - scaled, beta, scaled);
    }
  }
}

// muon.py's `muon_update` of each matrix. addresses: of its parameter, gradient and momentum, in which the numbers of a
// row lie side by side. sizes: D_in, D_out, and how far apart the rows of each of the three are. constants: 1 − lr λ,
// and lr times the shape's factor.
template <typename W>
void muon_updates(const Index* addresses /* count 3 */, const Index* sizes /* count 5 */,
                  const W* constants /* count 2 */, const W* quintics /* iterations 3 */, Index iterations, W scale,
                  W beta, W one_minus_beta, Index count) {
#pragma omp parallel if (count > 1)
  {
    arithmetic_as_defined();
    std::unique_ptr<Workspace<W>> own;  // for the matrices of one size, which come one after another
#pragma omp for schedule(dynamic)
    for (Index n = 0; n < count; n++) {
      const Index *address = addresses + 3 * n, *size = sizes + 5 * n;
      if (!own || own->D_in != size[0] || own->D_out != size[1]) {
        own.reset();
        own = std::make_unique<Workspace<W>>(size[0], size[1]);
      }
      Workspace<W>& w = *own;
      take_gradient(reinterpret_cast<const W*>(address[1]), size[3], reinterpret_cast<W*>(address[2]), size[4], scale,
                    beta, one_minus_beta, w);
      const W shrink = constants[2 * n], rate = constants[2 * n + 1] * orthogonalise(quintics, iterations, w);
      for (Index i = 0; i < w.D_in; i++) {
        W *theta = reinterpret_cast<W*>(address[0]) + i * size[2], *y = w.y.row(i);
#pragma omp simd
        for (Index j = 0; j < w.D_out; j++) theta[j] = mul_add(-rate, y[j], theta[j] * shrink);
      }
    }
  }
}

}  // namespace

extern "C" {
EXPORT_UPDATE(muon_updates)
}
