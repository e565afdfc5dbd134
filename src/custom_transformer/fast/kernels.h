// What the kernels of all subjects share. Each subject is a file, as norm.cpp, and its Python stands beside it; what a
// kernel fuses is computed in one pass over memory.
//
// The formulas stand in ops.py and optim.py, whose functions these equal; here only what is fused is said.
//
// A kernel's results have the same bits on every processor and for every number of threads. That rests on these rules:
// - of IEEE 754 only +, −, ·, /, √, comparisons and mul_add are used; the compiler may neither fuse nor reorder them
//   (-ffp-contract=off, no -ffast-math);
// - functions are the polynomials of functions.h, and products of many rows are those of products.h. Where it says so,
//   decoding.cpp and attention.cpp have other orders of a sum: one chain, or key after key;
// - sums have one order: along a row that of row_sum, over rows that of ColumnSums, over whole tensors blocks of a
//   fixed size one after the other;
// - threads share out results, never the terms of a sum.
// This holds for finite numbers. Which results an infinity or a NaN reaches may differ, as do a NaN's bits.
//
// T is the type of the matrix products (float, bfloat16 or double), W the type of parameters, residual stream and
// arithmetic (float, or double for double). Matrices are contiguous, one row after the other. The comment behind a
// pointer gives its sizes by the names of the other arguments; ? says that it may be null. kernels.py reads these
// comments and refuses a tensor of any other size.
//
// Shapes: N rows, D d_model, F d_ffn, B batch, H heads, G heads of keys and values, K head size, V vocabulary.

#pragma once

#include <vector>

#include "functions.h"
#include "products.h"

// y = x with each pair (x_i, x_{i + K/2}) turned by its angle, whose cosine is turns[i] and whose sine is
// turns[i + K/2]; direction −1 turns back. −0 is read as 0, since the sign of a chain's zero depends on the
// tiles' sizes (attention.cpp). y may be x.
template <typename From, typename W, typename To>
inline void turn(const From* x, const W* turns, W direction, Index K, To* y) {
  const Index half = K / 2;
#pragma omp simd
  for (Index i = 0; i < half; i++) {
    const W a = load(x[i]) + W(0), b = load(x[i + half]) + W(0), cosine = turns[i], sine = direction * turns[i + half];
    store(&y[i], mul_add(a, cosine, -(b * sine)));
    store(&y[i + half], mul_add(a, sine, b * cosine));
  }
}

// The rows of [0, n) that are a thread's; made in each thread of a parallel region.
struct Part {
  Index first, last;
  explicit Part(Index n) {
    arithmetic_as_defined();
    const Index thread = omp_get_thread_num(), threads = omp_get_num_threads();
    first = n * thread / threads, last = n * (thread + 1) / threads;
  }
};

// Fewer numbers than this are done by one thread before another would have woken up.
constexpr Index FEW = 8192;

// Sums over rows, of `width` columns: the rows of a group of GROUP in order, then the groups in order.
template <typename W> class ColumnSums {
 public:
  static constexpr Index GROUP = 64;

  ColumnSums(Index rows, Index width)
      : rows_(rows), groups_(ceil_div(rows, GROUP)), width_(width), sums_(groups_ * width, W(0)) {}

  // each(row, its group's sums) of every row; called in a parallel region
  template <typename Each> void rows(Each each) {
    for (Part part(groups_); part.first < part.last; part.first++)
      for (Index n = part.first * GROUP; n < std::min((part.first + 1) * GROUP, rows_); n++)
        each(n, &sums_[part.first * width_]);
  }
  void write(W* to, Index first, Index count) const {
    if (!to) return;
    std::fill(to, to + count, W(0));
    for (Index group = 0; group < groups_; group++)
      for (Index i = 0; i < count; i++) to[i] += sums_[group * width_ + first + i];
  }

 private:
  Index rows_, groups_, width_;
  std::vector<W> sums_;
};

// Names for Python, at the end of each file.
#define EXPORT_UPDATE(function)                                         \
  void* function##_float32 = reinterpret_cast<void*>(&function<float>); \
  void* function##_float64 = reinterpret_cast<void*>(&function<double>);
#define EXPORT(function)                                                           \
  void* function##_float32 = reinterpret_cast<void*>(&function<float, float>);     \
  void* function##_bfloat16 = reinterpret_cast<void*>(&function<bfloat16, float>); \
  void* function##_float64 = reinterpret_cast<void*>(&function<double, double>);
