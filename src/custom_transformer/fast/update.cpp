// The optimisers.

#include "kernels.h"

namespace {

// Σ g², in double, of each BLOCK numbers: their sums lose less than one long sum would.
template <typename W>
void sums_of_squares(const W* g /* count */, Index count, double* sums /* blocks */, Index blocks) {
  constexpr Index BLOCK = 4096;  // as in optim.py
#pragma omp parallel if (count >= FEW)
  for (Part part(blocks); part.first < part.last; part.first++) {
    const W* block = g + part.first * BLOCK;
    sums[part.first] = row_sum<double>(std::min(BLOCK, count - part.first * BLOCK), [&](Index i, double& sum) {
      sum = mul_add(static_cast<double>(block[i]), static_cast<double>(block[i]), sum);
    });
  }
}

// θ ← (1 − lr λ) θ − lr · scale · g
template <typename W> void sgd_update(W* parameter /* count */, const W* gradient /* count */, W shrink, W rate,
                                      Index count) {
#pragma omp parallel if (count >= FEW)
  {
    Part part(count);
#pragma omp simd
    for (Index i = part.first; i < part.last; i++) 
      parameter[i] = mul_add(-rate, gradient[i], parameter[i] * shrink);
  }
}

// AdamW on scale · g. The β come from Python as they are used: 1 − β in float would lose digits. rate = lr / (1 − β₁ᵗ),
// correction = (1 − β₂ᵗ)^½.
template <typename W>
void adamw_update(W* parameter /* count */, const W* gradient /* count */, W* m /* count */, W* v /* count */, W scale,
                  W one_minus_beta1, W beta2, W one_minus_beta2, W eps, W shrink, W rate, W correction, Index count) {
#pragma omp parallel if (count >= FEW)
  {
    Part part(count);
#pragma omp simd
    for (Index i = part.first; i < part.last; i++) {
      const W g = gradient[i] * scale;
      m[i] = mul_add(g - m[i], one_minus_beta1, m[i]);
      v[i] = mul_add(g * g, one_minus_beta2, v[i] * beta2);
      parameter[i] = mul_add(parameter[i], shrink, -(rate * m[i] / (std::sqrt(v[i]) / correction + eps)));
    }
  }
}

}  // namespace

extern "C" {
EXPORT_UPDATE(sums_of_squares) EXPORT_UPDATE(sgd_update) EXPORT_UPDATE(adamw_update)
}
