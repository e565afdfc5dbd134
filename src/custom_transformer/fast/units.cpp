// The feed-forward units.

#include "kernels.h"

namespace {

// y = gelu(h + bias)
template <typename T, typename W> void gelu_forward(const T* h /* rows F */, const W* bias /* F? */, Index rows,
                                                    Index F, T* y /* rows F */) {
  const W scale = std::sqrt(W(2) / W(M_PI)), cubic = W(0.044715);
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    const T* hr = h + part.first * F;
    T* yr = y + part.first * F;
#pragma omp simd
    for (Index i = 0; i < F; i++) {
      W x = load(hr[i]) + (bias ? bias[i] : W(0));
      store(&yr[i], W(0.5) * x * (1 + tanh_of(scale * (x + cubic * x * x * x))));
    }
  }
}

// h becomes y = gelu(h + bias) again, dy becomes dh = dy ∘ gelu′(h + bias); dbias its column sums.
template <typename T, typename W>
void gelu_backward(T* dy /* rows F */, T* h /* rows F */, const W* bias /* F? */, Index rows, Index F,
                   W* dbias /* F? */) {
  const W scale = std::sqrt(W(2) / W(M_PI)), cubic = W(0.044715);
  ColumnSums<W> sums(F);
#pragma omp parallel
  {
    W* sum = sums.mine();
    for (Part part(rows); part.first < part.last; part.first++) {
      T *hr = h + part.first * F, *dyr = dy + part.first * F;
#pragma omp simd
      for (Index i = 0; i < F; i++) {
        W x = load(hr[i]) + (bias ? bias[i] : W(0));
        W tau = tanh_of(scale * (x + cubic * x * x * x));
        W du = scale * (1 + 3 * cubic * x * x);
        W d = load(dyr[i]) * (W(0.5) * (1 + tau) + W(0.5) * x * (1 - tau * tau) * du);
        sum[i] += d;
        store(&dyr[i], d);
        store(&hr[i], W(0.5) * x * (1 + tau));
      }
    }
  }
  sums.write(dbias, 0, F);
}

// From a gate a and b side by side, y = a σ(a) ∘ b.
template <typename T, typename W>
void swiglu_forward(const T* gate_up /* rows 2 F */, Index rows, Index F, T* y /* rows F */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    const T *ar = gate_up + part.first * 2 * F, *br = ar + F;
    T* yr = y + part.first * F;
#pragma omp simd
    for (Index i = 0; i < F; i++) {
      W a = load(ar[i]);
      store(&yr[i], a * sigmoid_of(a) * load(br[i]));
    }
  }
}

// dy becomes y = a σ(a) ∘ b again, a and b become their gradients: da = dy ∘ b ∘ σ (1 + a (1 − σ)), db = dy ∘ a σ.
template <typename T, typename W> void swiglu_backward(T* dy /* rows F */, T* gate_up /* rows 2 F */, Index rows,
                                                       Index F) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    T *dyr = dy + part.first * F, *ar = gate_up + part.first * 2 * F, *br = ar + F;
#pragma omp simd
    for (Index i = 0; i < F; i++) {
      W a = load(ar[i]), b = load(br[i]), d = load(dyr[i]), s = sigmoid_of(a);
      store(&dyr[i], a * s * b);
      store(&ar[i], d * b * s * (1 + a * (1 - s)));
      store(&br[i], d * a * s);
    }
  }
}

}  // namespace

extern "C" {
EXPORT(gelu_forward) EXPORT(gelu_backward) EXPORT(swiglu_forward) EXPORT(swiglu_backward)
}
