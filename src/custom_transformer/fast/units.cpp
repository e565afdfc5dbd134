// The feed-forward units.

#include "kernels.h"

namespace {

// gelu(x) = ½ x (1 + tanh u) = x σ(2 u) with 2 u = x (LINEAR + CUBIC x²)
template <typename W> constexpr W LINEAR = W(1.5957691216057308);          // 2 √(2/π)
template <typename W> constexpr W CUBIC = W(0.044715 * 1.5957691216057308);

template <typename W> inline W gelu_gate(W x, W& rest) {
  return sigmoid_of(x * mul_add(x * x, CUBIC<W>, LINEAR<W>), rest);
}

// y = gelu(h + bias)
template <typename T, typename W> void gelu_forward(const T* h /* rows F */, const W* bias /* F? */, Index rows,
                                                    Index F, T* y /* rows F */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    const T* hr = h + part.first * F;
    T* yr = y + part.first * F;
#pragma omp simd
    for (Index i = 0; i < F; i++) {
      const W x = load(hr[i]) + (bias ? bias[i] : W(0));
      W rest;
      store(&yr[i], x * gelu_gate(x, rest));
    }
  }
}

// h becomes y = gelu(h + bias) again, dy becomes dh = dy ∘ gelu′(h + bias); dbias its column sums. With the gate
// σ = σ(2 u): gelu′ = σ + x σ (1 − σ) (2 u)′
template <typename T, typename W>
void gelu_backward(T* dy /* rows F */, T* h /* rows F */, const W* bias /* F? */, Index rows, Index F,
                   W* dbias /* F? */) {
  ColumnSums<W> sums(rows, F);
#pragma omp parallel
  sums.rows([&](Index n, W* sum) {
    T *hr = h + n * F, *dyr = dy + n * F;
#pragma omp simd
    for (Index i = 0; i < F; i++) {
      const W x = load(hr[i]) + (bias ? bias[i] : W(0));
      W rest;
      const W gate = gelu_gate(x, rest);
      const W d = load(dyr[i]) * mul_add(x * gate * rest, mul_add(x * x, 3 * CUBIC<W>, LINEAR<W>), gate);
      sum[i] += d;
      store(&dyr[i], d);
      store(&hr[i], x * gate);
    }
  });
  sums.write(dbias, 0, F);
}

// From a gate a and b side by side, a row's y = a σ(a) ∘ b.
template <typename T, typename W> void swiglu_row(const T* gate, Index F, T* y) {
  const T* up = gate + F;
#pragma omp simd
  for (Index i = 0; i < F; i++) {
    const W a = load(gate[i]);
    W rest;
    store(&y[i], a * sigmoid_of(a, rest) * load(up[i]));
  }
}
// y = swiglu(gate_up)
template <typename T, typename W>
void swiglu_forward(const T* gate_up /* rows 2 F */, Index rows, Index F, T* y /* rows F */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++)
    swiglu_row<T, W>(gate_up + part.first * 2 * F, F, y + part.first * F);
}

// The same, of gate_up = x · weight: each row while it is in the cache
template <typename T, typename W>
void product_swiglu(const T* x /* rows D */, const T* weight /* D 2 F */, Index rows, Index D, Index F,
                    T* gate_up /* rows 2 F */, T* y /* rows F */) {
  product<T, T>(rows, 2 * F, D, {x, D, 1}, {weight, 2 * F, 1}, gate_up, 2 * F, [&](Index first, Index last) {
    for (Index n = first; n < last; n++) swiglu_row<T, W>(gate_up + n * 2 * F, F, y + n * F);
  });
}

// A row's dy becomes y = a σ(a) ∘ b again, a and b become their gradients: da = dy ∘ b ∘ σ (1 + a (1 − σ)) and
// db = dy ∘ a σ.
template <typename T, typename W> void swiglu_backward_row(T* dy, T* gate, Index F) {
  T* up = gate + F;
#pragma omp simd
  for (Index i = 0; i < F; i++) {
    const W a = load(gate[i]), b = load(up[i]), d = load(dy[i]);
    W rest;
    const W sigmoid = sigmoid_of(a, rest);
    store(&dy[i], a * sigmoid * b);
    store(&gate[i], d * b * sigmoid * mul_add(a, rest, W(1)));
    store(&up[i], d * (a * sigmoid));
  }
}
// dy becomes swiglu(gate_up) again, gate_up its gradient.
template <typename T, typename W>
void swiglu_backward(T* dy /* rows F */, T* gate_up /* rows 2 F */, Index rows, Index F) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++)
    swiglu_backward_row<T, W>(dy + part.first * F, gate_up + part.first * 2 * F, F);
}
// The same, of dy = dh · weightᵀ, which y holds before it is y
template <typename T, typename W>
void product_swiglu_backward(const T* dh /* rows D */, const T* weight /* F D */, Index rows, Index D, Index F,
                             T* gate_up /* rows 2 F */, T* y /* rows F */) {
  product<T, T>(rows, F, D, {dh, D, 1}, {weight, 1, D}, y, F, [&](Index first, Index last) {
    for (Index n = first; n < last; n++) swiglu_backward_row<T, W>(y + n * F, gate_up + n * 2 * F, F);
  });
}

// y = max(x, 0)²
template <typename T, typename W>
void relu_squared_forward(const T* x /* count */, Index count, T* y /* count */) {
#pragma omp parallel
  {
    Part part(count);
#pragma omp simd
    for (Index i = part.first; i < part.last; i++) {
      const W above = std::max(load(x[i]), W(0));
      store(&y[i], above * above);
    }
  }
}

// x becomes y = max(x, 0)² again, dy becomes dx = dy ∘ 2 max(x, 0).
template <typename T, typename W> void relu_squared_backward(T* dy /* count */, T* x /* count */, Index count) {
#pragma omp parallel
  {
    Part part(count);
#pragma omp simd
    for (Index i = part.first; i < part.last; i++) {
      const W above = std::max(load(x[i]), W(0));
      store(&dy[i], load(dy[i]) * 2 * above);
      store(&x[i], above * above);
    }
  }
}

}  // namespace

extern "C" {
EXPORT(relu_squared_forward) EXPORT(relu_squared_backward)
EXPORT(gelu_forward) EXPORT(gelu_backward) EXPORT(swiglu_forward) EXPORT(swiglu_backward)
EXPORT(product_swiglu) EXPORT(product_swiglu_backward)
}
