// The optimisers.

#include "kernels.h"

namespace {

// Σ g², in double; each thread's part in blocks, whose sums lose less than one long sum would. The parts are the same
// whether or not one thread does them all.
template <typename W> double sum_of_squares(const W* g /* count */, Index count) {
  Index threads = omp_get_max_threads();
  std::vector<double> sums(threads, 0.0);
#pragma omp parallel for schedule(static, 1) if (count >= FEW)
  for (Index thread = 0; thread < threads; thread++) {
    Part part(count, thread, threads);
    double total = 0;
    for (Index start = part.first; start < part.last; start += 4096) {
      double block = 0;
      Index end = std::min(start + 4096, part.last);
#pragma omp simd reduction(+ : block)
      for (Index i = start; i < end; i++) block += static_cast<double>(g[i]) * static_cast<double>(g[i]);
      total += block;
    }
    sums[thread] = total;
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// θ ← (1 − lr λ) θ − lr · scale · g
template <typename W> void sgd_update(W* parameter /* count */, const W* gradient /* count */, W shrink, W rate,
                                      Index count) {
#pragma omp parallel if (count >= FEW)
  {
    Part part(count);
#pragma omp simd
    for (Index i = part.first; i < part.last; i++) parameter[i] = parameter[i] * shrink - rate * gradient[i];
  }
}

// AdamW on scale · g. The β come from Python as they are used: 1 − β in float would lose digits. rate = lr / (1 − β₁ᵗ), correction = (1 − β₂ᵗ)^½.
template <typename W>
void adamw_update(W* parameter /* count */, const W* gradient /* count */, W* m /* count */, W* v /* count */, W scale,
                  W one_minus_beta1, W beta2, W one_minus_beta2, W eps, W shrink, W rate, W correction, Index count) {
#pragma omp parallel if (count >= FEW)
  {
    Part part(count);
#pragma omp simd
    for (Index i = part.first; i < part.last; i++) {
      W g = gradient[i] * scale;
      m[i] += (g - m[i]) * one_minus_beta1;
      v[i] = v[i] * beta2 + g * g * one_minus_beta2;
      parameter[i] = parameter[i] * shrink - rate * m[i] / (std::sqrt(v[i]) / correction + eps);
    }
  }
}

}  // namespace

extern "C" {
EXPORT_UPDATE(sum_of_squares) EXPORT_UPDATE(sgd_update) EXPORT_UPDATE(adamw_update)
}
