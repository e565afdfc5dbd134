// One new token per row.

#include "kernels.h"

namespace {

// A product of a few rows is as fast as its matrix is read: each thread reads a part of it, in the order it lies in.

// y (rows, N) = x (rows, K) · weight (K, N)
template <typename T, typename W>
void few_rows_product(const T* x /* rows K */, const T* weight /* K N */, Index rows, Index K, Index N,
                      T* y /* rows N */) {
  ColumnSums<W> sums(rows * N);
#pragma omp parallel
  {
    W* mine = sums.mine();
    Part part(K / 4 + 1);
    for (Index four = part.first; four < part.last; four++) {
      for (Index b = 0; b < rows; b++) {
        const T *xb = x + b * K, *w = weight + four * 4 * N;
        W* sum = mine + b * N;
        if (four < K / 4) {
          const W x0 = load(xb[four * 4]), x1 = load(xb[four * 4 + 1]), x2 = load(xb[four * 4 + 2]),
                  x3 = load(xb[four * 4 + 3]);
#pragma omp simd
          for (Index i = 0; i < N; i++) {
            sum[i] += x0 * load(w[i]) + x1 * load(w[N + i]) + x2 * load(w[2 * N + i]) + x3 * load(w[3 * N + i]);
          }
        } else {
          for (Index k = four * 4; k < K; k++)
            for (Index i = 0; i < N; i++) sum[i] += load(xb[k]) * load(weight[k * N + i]);
        }
      }
    }
  }
  std::vector<W> total(rows * N);
  sums.write(total.data(), 0, rows * N);
  for (Index i = 0; i < rows * N; i++) store(&y[i], total[i]);
}

// logits (rows, V) = x (rows, D) · weight (V, D) transposed
template <typename T, typename W>
void few_rows_logits(const T* x /* rows D */, const T* weight /* V D */, Index rows, Index D, Index V,
                     T* logits /* rows V */) {
#pragma omp parallel
  for (Part part(V); part.first < part.last; part.first++) {
    const T* w = weight + part.first * D;
    for (Index b = 0; b < rows; b++) {
      W sum = 0;
#pragma omp simd reduction(+ : sum)
      for (Index i = 0; i < D; i++) sum += load(x[b * D + i]) * load(w[i]);
      store(&logits[b * V + part.first], sum);
    }
  }
}

// The new token's keys and values, of qkv (B, H + 2 G = heads, K) + bias, join the `length` before them in keys and
// values (B, G, capacity, K); its queries, R = H / G to a key, attend to all of them: y (B, H, K). With turns (K) of its
// place, its queries and keys are turned.
template <typename T, typename W>
void attend_cached(const T* qkv /* B heads K */, const W* bias /* heads K? */, const W* turns /* K? */,
                   T* keys /* B G capacity K */, T* values /* B G capacity K */, Index B, Index H, Index G, Index heads,
                   Index K, Index capacity, Index length, W scale, T* y /* B H K */) {
  const Index R = H / G;
  auto read = [&](Index b, Index head, bool turned, W* to) {
    for (Index i = 0; i < K; i++) to[i] = load(qkv[(b * heads + head) * K + i]) + (bias ? bias[head * K + i] : W(0));
    if (turns && turned) turn(to, turns, W(1), K);
  };
#pragma omp parallel
  {
    std::vector<W> room(length + 1 + 2 * K);
    W *p = room.data(), *q = p + length + 1, *sum = q + K;
    for (Part part(B * G); part.first < part.last; part.first++) {
      Index b = part.first / G, g = part.first % G;
      T *k = keys + part.first * capacity * K, *v = values + part.first * capacity * K;
      read(b, H + g, true, q);
      for (Index i = 0; i < K; i++) store(&k[length * K + i], q[i]);
      read(b, H + G + g, false, q);
      for (Index i = 0; i < K; i++) store(&v[length * K + i], q[i]);
      for (Index head = g * R; head < (g + 1) * R; head++) {
        read(b, head, true, q);
        W top = -INFINITY, total = 0;
        for (Index t = 0; t <= length; t++) {
          W score = 0;
#pragma omp simd reduction(+ : score)
          for (Index i = 0; i < K; i++) score += q[i] * load(k[t * K + i]);
          p[t] = score * scale;
          top = p[t] > top ? p[t] : top;
        }
#pragma omp simd reduction(+ : total)
        for (Index t = 0; t <= length; t++) {
          p[t] = exp_of(p[t] - top);
          total += p[t];
        }
        for (Index i = 0; i < K; i++) sum[i] = 0;
        for (Index t = 0; t <= length; t++)
          for (Index i = 0; i < K; i++) sum[i] += p[t] * load(v[t * K + i]);
        for (Index i = 0; i < K; i++) store(&y[(b * H + head) * K + i], sum[i] / total);
      }
    }
  }
}

}  // namespace

extern "C" {
EXPORT(few_rows_product) EXPORT(few_rows_logits) EXPORT(attend_cached)
}
