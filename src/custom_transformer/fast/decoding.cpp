// One new token per row, and attention to cached keys and values.

#include "kernels.h"

namespace {

// A product of a few rows is as fast as its matrix is read. A thread reads a short stretch of each row of the matrix,
// which the processor does not foresee, so the next rows are fetched ahead.

inline Vector<float> widened(const float* from) { return load_vector(from); }
inline Vector<double> widened(const double* from) { return load_vector(from); }
inline Vector<float> widened(const bfloat16* from) {
  typedef std::uint16_t Halves __attribute__((vector_size(REGISTER_BYTES / 2)));
  typedef std::uint32_t Bits __attribute__((vector_size(REGISTER_BYTES)));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(halves, Bits) << 16);
}

// The chains of ROWS rows of x and WIDE vectors of columns, prolonged by `steps` values of k
template <int ROWS, int WIDE, typename T, typename W>
inline void prolong(const T* x, Index K, const T* weight, Index N, Index steps, W* chains, Index width) {
  Vector<W> sums[ROWS][WIDE];
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; v++) sums[row][v] = load_vector(chains + row * width + v * LANES<W>);
  for (Index k = 0; k < steps; k++, weight += N) {
    Vector<W> w[WIDE];
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; v++) w[v] = widened(weight + v * LANES<W>);
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      const Vector<W> xk = in_all_lanes(load(x[row * K + k]));
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; v++) sums[row][v] = mul_add(xk, w[v], sums[row][v]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; v++) store_vector(chains + row * width + v * LANES<W>, sums[row][v]);
}

// y (rows, N) = x (rows, K) · weight (K, N): a chain over k in order
template <typename T, typename W>
void few_rows_product(const T* x /* rows K */, const T* weight /* K N */, Index rows, Index K, Index N,
                      T* y /* rows N */) {
  constexpr int ROWS = 4, WIDE = 4;
  constexpr Index GROUP = WIDE * LANES<W>;
  constexpr Index WIDTH = 8 * GROUP;  // columns at a time: a stretch of each row of the matrix
  constexpr Index STEPS = 8;          // rows of the matrix at a time: in the cache until each row of x has met them
  constexpr Index FETCHED = 16;       // rows ahead
#pragma omp parallel
  {
    std::vector<W> room(rows * WIDTH);
    W* chains = room.data();
    const Part part(ceil_div(N, GROUP));
    const Index end = std::min(part.last * GROUP, N);
    for (Index first = part.first * GROUP; first < end; first += WIDTH) {
      const Index wide = std::min(WIDTH, end - first);
      std::fill(room.begin(), room.end(), W(0));
      for (Index k = 0; k < K; k += STEPS) {
        const Index steps = std::min(STEPS, K - k);
        const T* w = weight + k * N + first;
        for (Index next = FETCHED; next < std::min(FETCHED + STEPS, K - k); next++)
          for (Index i = 0; i < wide; i += 64 / sizeof(T)) __builtin_prefetch(&w[next * N + i], 0, 2);
        for (Index column = 0; column < wide; column += GROUP) {
          Index b = 0;
          if (column + GROUP <= wide) {
            for (; b + ROWS <= rows; b += ROWS)
              prolong<ROWS, WIDE>(x + b * K + k, K, w + column, N, steps, chains + b * WIDTH + column, WIDTH);
            for (; b < rows; b++)
              prolong<1, WIDE>(x + b * K + k, K, w + column, N, steps, chains + b * WIDTH + column, WIDTH);
          }
          for (; b < rows; b++)  // the last columns
            for (Index step = 0; step < steps; step++)
#pragma omp simd
              for (Index i = column; i < wide; i++) {
                W& sum = chains[b * WIDTH + i];
                sum = mul_add(load(x[b * K + k + step]), load(w[step * N + i]), sum);
              }
        }
      }
      for (Index b = 0; b < rows; b++)
        for (Index i = 0; i < wide; i++) store(&y[b * N + first + i], chains[b * WIDTH + i]);
    }
  }
}

// to (ROWS, OUTPUTS), whose rows are ld apart, = x (ROWS, D) · weight (OUTPUTS, D) transposed, summed in row_sum's order.
// Several sums at a time, so that their multiply-adds overlap.
template <int ROWS, int OUTPUTS, typename T, typename W>
inline void dot_products(const T* x, const T* weight, Index D, T* to, Index ld) {
  constexpr int PARTS = WAYS / LANES<W>, COUNT = ROWS * OUTPUTS;
  Vector<W> sums[COUNT][PARTS] = {};
  Index i = 0;
  for (; i + WAYS <= D; i += WAYS)
#pragma GCC unroll 8
    for (int part = 0; part < PARTS; part++) {
      Vector<W> w[OUTPUTS];
#pragma GCC unroll 8
      for (int v = 0; v < OUTPUTS; v++) w[v] = widened(weight + v * D + i + part * LANES<W>);
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; row++) {
        const Vector<W> of_x = widened(x + row * D + i + part * LANES<W>);
#pragma GCC unroll 8
        for (int v = 0; v < OUTPUTS; v++)
          sums[row * OUTPUTS + v][part] = mul_add(of_x, w[v], sums[row * OUTPUTS + v][part]);
      }
    }
#pragma GCC unroll 16
  for (int output = 0; output < COUNT; output++) {
    W lanes[WAYS];
#pragma GCC unroll 8
    for (int part = 0; part < PARTS; part++) store_vector(lanes + part * LANES<W>, sums[output][part]);
    const T *row = x + output / OUTPUTS * D, *w = weight + output % OUTPUTS * D;
    for (Index j = i; j < D; j++) lanes[j - i] = mul_add(load(row[j]), load(w[j]), lanes[j - i]);
    store(&to[output / OUTPUTS * ld + output % OUTPUTS], folded(lanes));
  }
}

// The logits from part.first on, OUTPUTS at a time; part.first is then the first that is left.
template <int OUTPUTS, typename T, typename W>
inline void logits_of(const T* x, const T* weight, Index rows, Index D, Index V, Part& part, T* logits) {
  constexpr int ROWS = 4;
  for (; part.first + OUTPUTS <= part.last; part.first += OUTPUTS) {
    const T* w = weight + part.first * D;
    T* to = logits + part.first;
    Index b = 0;
    for (; b + ROWS <= rows; b += ROWS) dot_products<ROWS, OUTPUTS, T, W>(x + b * D, w, D, to + b * V, V);
    for (; b < rows; b++) dot_products<1, OUTPUTS, T, W>(x + b * D, w, D, to + b * V, V);
  }
}

// logits (rows, V) = x (rows, D) · weight (V, D) transposed
template <typename T, typename W>
void few_rows_logits(const T* x /* rows D */, const T* weight /* V D */, Index rows, Index D, Index V,
                     T* logits /* rows V */) {
#pragma omp parallel
  {
    Part part(V);
    if (rows > 3) logits_of<4, T, W>(x, weight, rows, D, V, part, logits);  // with fewer rows, reading is the limit
    logits_of<1, T, W>(x, weight, rows, D, V, part, logits);
  }
}

// The `count` new tokens' keys and values, of qkv (B, count, H + 2 G = heads, K) + bias, join the `length` before them
// in keys and values (B, G, capacity, K); their queries, R = H / G to a key, attend to all up to their own:
// y (B, count, H, K). With turns (count, K) of their places, queries and keys are turned.
template <typename T, typename W>
void attend_cached(const T* qkv /* B count heads K */, const W* bias /* heads K? */, const W* turns /* count K? */,
                   T* keys /* B G capacity K */, T* values /* B G capacity K */, Index B, Index count, Index H, Index G,
                   Index heads, Index K, Index capacity, Index length, T* y /* B count H K */) {
  const Index R = H / G;
  const W scale = W(1) / std::sqrt(static_cast<W>(K));
#pragma omp parallel
  {
    std::vector<W> room(length + count + 2 * K);
    W *p = room.data(), *q = p + length + count, *sums = q + K;
    auto read = [&](Index row, Index place, Index head, bool turned) {
      for (Index i = 0; i < K; i++)
        q[i] = load(qkv[(row * heads + head) * K + i]) + (bias ? bias[head * K + i] : W(0));
      if (turns && turned) turn(q, turns + place * K, W(1), K, q);
      for (Index i = 0; i < K; i++) q[i] = rounded<T>(q[i]);
    };
    for (Part part(B * G); part.first < part.last; part.first++) {
      const Index b = part.first / G, g = part.first % G;
      T *k = keys + part.first * capacity * K, *v = values + part.first * capacity * K;
      for (Index place = 0; place < count; place++) {
        const Index row = b * count + place, visible = length + place + 1;
        read(row, place, H + g, true);
        for (Index i = 0; i < K; i++) store(&k[(visible - 1) * K + i], q[i]);
        read(row, place, H + G + g, false);
        for (Index i = 0; i < K; i++) store(&v[(visible - 1) * K + i], q[i]);
        for (Index head = g * R; head < (g + 1) * R; head++) {
          read(row, place, head, true);
          for (Index t = 0; t < visible; t++)
            p[t] = row_sum<W>(K, [&](Index i, W& sum) { sum = mul_add(q[i], load(k[t * K + i]), sum); });
          const W top = row_max<W>(visible, [&](Index t) { return p[t]; });
          const W total = row_sum<W>(visible, [&](Index t, W& sum) {
            p[t] = exp_of((p[t] - top) * scale);
            sum += p[t];
          });
          std::fill_n(sums, K, W(0));
          for (Index t = 0; t < visible; t++)
            for (Index i = 0; i < K; i++) sums[i] = mul_add(p[t], load(v[t * K + i]), sums[i]);
          for (Index i = 0; i < K; i++) store(&y[(row * H + head) * K + i], sums[i] / total);
        }
      }
    }
  }
}

}  // namespace

extern "C" {
EXPORT(few_rows_product) EXPORT(few_rows_logits) EXPORT(attend_cached)
}
