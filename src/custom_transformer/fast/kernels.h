// What the kernels of all subjects share. The kernels compute everything of a training step that is not a matrix
// product, in one pass over memory each; each subject is a file, as norm.cpp, and its Python stands beside it.
//
// The formulas stand in ops.py and optim.py, whose functions these equal; here only what is fused is said. Loops are
// plain, for the compiler to vectorise on whatever processor it runs on. Rows are shared out to threads in fixed
// parts and sums over rows are added up in the threads' order, so that equal runs on equally many threads give equal
// bits.
//
// T is the type of the matrix products (float, bfloat16 or double), W the type of parameters, residual stream and
// arithmetic (float, or double for double). Matrices are contiguous, one row after the other. The comment behind a
// pointer gives its sizes by the names of the other arguments; ? says that it may be null. kernels.py reads these
// comments and refuses a tensor of any other size.
//
// Shapes: N rows, D d_model, F d_ffn, B batch, H heads, G heads of keys and values, K head size, V vocabulary.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using Index = std::int64_t;

struct bfloat16 {
  std::uint16_t bits;
};

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(bfloat16 x) {
  std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void store(float* to, float x) { *to = x; }
inline void store(double* to, double x) { *to = x; }
inline void store(bfloat16* to, float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  // To the nearest, ties to even. (NaN stays NaN: those that arithmetic makes have no low bits that could carry.)
  to->bits = static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// eˣ, to 2 units in the last place, as arithmetic that vectorises: x = n ln 2 + r, eʳ by its Taylor polynomial
// (|r| ≤ 0.35), 2ⁿ by the exponent's bits. Below −87 it stays e⁻⁸⁷ ≈ 10⁻³⁸; no caller asks for more than 80.
inline float exp_of(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  float shifted = clamped * 1.44269504f + 12582912.0f;          // 1.5 · 2²³: adding it rounds to an integer,
  float n = shifted - 12582912.0f;                              // whose low bits are then those of `shifted`
  float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;  // whatever it is for a NaN, which no integer stands for: p is NaN then
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}
inline double exp_of(double x) { return std::exp(x); }

// tanh x = 1 − 2 / (1 + e²ˣ)
template <typename W> inline W tanh_of(W x) {
  W bounded = x > W(20) ? W(20) : x;
  return W(1) - W(2) / (W(1) + exp_of(W(2) * bounded));
}

// σ(x) = 1 / (1 + e⁻ˣ)
template <typename W> inline W sigmoid_of(W x) {
  W bounded = x < W(-80) ? W(-80) : x;
  return W(1) / (W(1) + exp_of(-bounded));
}

// Turns each pair (x_i, x_{i + K/2}) by its angle, whose cosine is turns[i] and whose sine is turns[i + K/2];
// direction −1 turns back.
template <typename T, typename W> inline void turn(T* x, const W* turns, W direction, Index K) {
  const Index half = K / 2;
#pragma omp simd
  for (Index i = 0; i < half; i++) {
    W a = load(x[i]), b = load(x[i + half]), cosine = turns[i], sine = direction * turns[i + half];
    store(&x[i], a * cosine - b * sine);
    store(&x[i + half], a * sine + b * cosine);
  }
}

// The rows of [0, n) that are a thread's.
struct Part {
  Index first, last;
  explicit Part(Index n) : Part(n, omp_get_thread_num(), omp_get_num_threads()) {}
  Part(Index n, Index thread, Index threads) : first(n * thread / threads), last(n * (thread + 1) / threads) {}
};

// Fewer numbers than this are done by one thread before another would have woken up.
constexpr Index FEW = 8192;

// Sums over rows, of `width` columns: each thread adds up its own rows, then the threads' sums are added in order.
template <typename W> class ColumnSums {
 public:
  explicit ColumnSums(Index width) : width_(width), sums_(omp_get_max_threads() * width, W(0)) {}
  W* mine() { return &sums_[omp_get_thread_num() * width_]; }
  void write(W* to, Index first, Index count) const {
    if (!to) return;
    for (Index i = 0; i < count; i++) {
      W sum = 0;
      for (Index t = 0; t < omp_get_max_threads(); t++) sum += sums_[t * width_ + first + i];
      to[i] = sum;
    }
  }

 private:
  Index width_;
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
