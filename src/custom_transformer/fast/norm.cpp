// The residual addition and the norm after it; and the norm of queries and keys.

#include "kernels.h"

namespace {

// x_sum = x + dropout(h + h_bias);  y = layer norm of x_sum; without mean, its RMS norm. Without h: x_sum is x and is
// not written. Without weight, it is 1.
template <typename T, typename W>
void add_norm_forward(const W* x /* rows D */, const T* h /* rows D? */, const W* h_bias /* D? */,
                      const std::uint8_t* keep /* rows D? */, W keep_scale, const W* weight /* D? */,
                      const W* bias /* D? */, W eps, Index rows, Index D, W* x_sum /* rows D */, T* y /* rows D */,
                      W* mean /* rows? */, W* rstd /* rows */) {
#pragma omp parallel
  {
    std::vector<W> row(D);
    W* v = row.data();
    for (Part part(rows); part.first < part.last; part.first++) {
      Index n = part.first;
      for (Index i = 0; i < D; i++) v[i] = x[n * D + i];
      if (h) {
        for (Index i = 0; i < D; i++) {
          W add = load(h[n * D + i]) + (h_bias ? h_bias[i] : W(0));
          v[i] += keep ? (keep[n * D + i] ? add * keep_scale : W(0)) : add;
        }
        for (Index i = 0; i < D; i++) x_sum[n * D + i] = v[i];
      }
      const W m = mean ? row_sum<W>(D, [&](Index i, W& sum) { sum += v[i]; }) / D : W(0);
      if (mean) mean[n] = m;
      const W squares = row_sum<W>(D, [&](Index i, W& sum) { sum = mul_add(v[i] - m, v[i] - m, sum); });
      const W r = W(1) / std::sqrt(squares / D + eps);
      for (Index i = 0; i < D; i++)
        store(&y[n * D + i], mul_add((v[i] - m) * r, weight ? weight[i] : W(1), bias ? bias[i] : W(0)));
      rstd[n] = r;
    }
  }
}

// y again, from the saved mean and rstd
template <typename T, typename W>
void norm_again(const W* x_sum /* rows D */, const W* weight /* D? */, const W* bias /* D? */,
                const W* mean /* rows? */, const W* rstd /* rows */, Index rows, Index D, T* y /* rows D */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    Index n = part.first;
    const W m = mean ? mean[n] : W(0), r = rstd[n];
    for (Index i = 0; i < D; i++) {
      store(&y[n * D + i], mul_add((x_sum[n * D + i] - m) * r, weight ? weight[i] : W(1), bias ? bias[i] : W(0)));
    }
  }
}

// dx = d_residual + the norm's gradient: the gradient of x and, through dropout, of h, whose column sums are h_bias's.
// dh: null where there was no h, or where it equals dx (no dropout, T = W).
template <typename T, typename W>
void add_norm_backward(const T* dy /* rows D */, const W* d_residual /* rows D? */, const W* x_sum /* rows D */,
                       const W* weight /* D? */, const W* mean /* rows? */, const W* rstd /* rows */,
                       const std::uint8_t* keep /* rows D? */, W keep_scale, Index rows, Index D, W* dx /* rows D */,
                       T* dh /* rows D? */, W* dweight /* D? */, W* dbias /* D? */, W* dh_bias /* D? */) {
  ColumnSums<W> sums(rows, 3 * D);
#pragma omp parallel
  sums.rows([&](Index n, W* sum_weight) {
    W *sum_bias = sum_weight + D, *sum_h = sum_weight + 2 * D;
    const Index at = n * D;
    const W m = mean ? mean[n] : W(0), r = rstd[n];
    W mean_dx_hat, mean_product;
    row_sums(D, mean_dx_hat, mean_product, [&](Index i, W& sum, W& sum_of_products) {
      const W dyi = load(dy[at + i]), x_hat = (x_sum[at + i] - m) * r, dx_hat = weight ? dyi * weight[i] : dyi;
      sum_weight[i] = mul_add(dyi, x_hat, sum_weight[i]);
      sum_bias[i] += dyi;
      sum += dx_hat;
      sum_of_products = mul_add(dx_hat, x_hat, sum_of_products);
    });
    mean_dx_hat = mean ? mean_dx_hat / D : W(0);
    mean_product /= D;
    for (Index i = 0; i < D; i++) {
      const W x_hat = (x_sum[at + i] - m) * r;
      const W d = mul_add(-x_hat, mean_product, mul_add(load(dy[at + i]), weight ? weight[i] : W(1), -mean_dx_hat));
      dx[at + i] = mul_add(r, d, d_residual ? d_residual[at + i] : W(0));
    }
    if (keep) {
      for (Index i = 0; i < D; i++) {
        const W d = keep[at + i] ? dx[at + i] * keep_scale : W(0);
        sum_h[i] += d;
        store(&dh[at + i], d);
      }
    } else {
      for (Index i = 0; i < D; i++) sum_h[i] += dx[at + i];
      if (dh)
        for (Index i = 0; i < D; i++) store(&dh[at + i], dx[at + i]);
    }
  });
  sums.write(dweight, 0, D);
  sums.write(dbias, D, D);
  sums.write(dh_bias, 2 * D, D);
}

// Of the first `normed` heads, y = gain x̂ of x (rows heads K); y of the others is x. See ops.qk_norm_forward.
// y may be x.
template <typename T, typename W>
void qk_norm_forward(const T* x /* rows heads K */, Index rows, Index heads, Index K, Index normed, W eps, W gain,
                     T* y /* rows heads K */, W* rms_inverse /* rows normed */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    for (Index h = 0; h < heads; h++) {
      const T* from = x + (part.first * heads + h) * K;
      T* to = y + (part.first * heads + h) * K;
      if (h >= normed) {
        if (to != from) std::memcpy(to, from, K * sizeof(T));
        continue;
      }
      const W squares = row_sum<W>(K, [&](Index i, W& sum) { sum = mul_add(load(from[i]), load(from[i]), sum); });
      const W r = W(1) / std::sqrt(squares / K + eps);
      for (Index i = 0; i < K; i++) store(&to[i], load(from[i]) * (gain * r));
      rms_inverse[part.first * normed + h] = r;
    }
  }
}

// dx = r gain (dy − y mean(dy ∘ y) / gain²), in terms of the result y; of the other heads dx = dy. dx may be dy.
template <typename T, typename W>
void qk_norm_backward(const T* dy /* rows heads K */, const T* y /* rows heads K */,
                      const W* rms_inverse /* rows normed */, Index rows, Index heads, Index K, Index normed, W gain,
                      T* dx /* rows heads K */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    for (Index h = 0; h < heads; h++) {
      const Index at = (part.first * heads + h) * K;
      if (h >= normed) {
        if (dx != dy) std::memcpy(dx + at, dy + at, K * sizeof(T));
        continue;
      }
      const W inner = row_sum<W>(K, [&](Index i, W& sum) { sum = mul_add(load(dy[at + i]), load(y[at + i]), sum); });
      const W along = inner / (K * gain * gain), factor = gain * rms_inverse[part.first * normed + h];
      for (Index i = 0; i < K; i++) store(&dx[at + i], factor * mul_add(-load(y[at + i]), along, load(dy[at + i])));
    }
  }
}

}  // namespace

extern "C" {
EXPORT(qk_norm_forward) EXPORT(qk_norm_backward)
EXPORT(add_norm_forward) EXPORT(norm_again) EXPORT(add_norm_backward)
}
