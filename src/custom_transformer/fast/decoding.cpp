// One new token per row, and attention to cached keys and values.

#include "kernels.h"

namespace {

// A product of a few rows is as fast as its matrix is read.

// y (rows, N) = x (rows, K) · weight (K, N): a chain over k in order
template <typename T, typename W>
void few_rows_product(const T* x /* rows K */, const T* weight /* K N */, Index rows, Index K, Index N,
                      T* y /* rows N */) {
  constexpr Index WIDTH = 256;  // columns for a thread: a stretch of each row of the matrix
#pragma omp parallel
  {
    std::vector<W> room(rows * WIDTH);
    for (Part part(ceil_div(N, WIDTH)); part.first < part.last; part.first++) {
      const Index first = part.first * WIDTH, wide = std::min(WIDTH, N - first);
      W* sums = room.data();
      std::fill(room.begin(), room.end(), W(0));
      for (Index k = 0; k < K; k++) {
        const T* w = weight + k * N + first;
        for (Index b = 0; b < rows; b++) {
          const W xb = load(x[b * K + k]);
          W* sum = sums + b * WIDTH;
#pragma omp simd
          for (Index i = 0; i < wide; i++) sum[i] = mul_add(xb, load(w[i]), sum[i]);
        }
      }
      for (Index b = 0; b < rows; b++)
        for (Index i = 0; i < wide; i++) store(&y[b * N + first + i], sums[b * WIDTH + i]);
    }
  }
}

// logits (rows, V) = x (rows, D) · weight (V, D) transposed
template <typename T, typename W>
void few_rows_logits(const T* x /* rows D */, const T* weight /* V D */, Index rows, Index D, Index V,
                     T* logits /* rows V */) {
#pragma omp parallel
  for (Part part(V); part.first < part.last; part.first++) {
    const T* w = weight + part.first * D;
    for (Index b = 0; b < rows; b++) {
      const T* xb = x + b * D;
      store(&logits[b * V + part.first],
            row_sum<W>(D, [&](Index i, W& sum) { sum = mul_add(load(xb[i]), load(w[i]), sum); }));
    }
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
