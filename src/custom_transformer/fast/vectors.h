// Numbers, and vectors of them as wide as the processor's registers.
//
// IEEE 754 fixes the bits of +, −, ·, / and √ on every processor, in a vector as alone. So portable arithmetic needs
// one more operation only, which has no spelling of its own in C++: the fused multiply-add a·b + c, rounded once.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool HAS_FMA = true;
#else
constexpr bool HAS_FMA = false;
#endif

template <typename W> struct Register {
  typedef W type __attribute__((vector_size(REGISTER_BYTES)));
};
template <typename W> using Vector = typename Register<W>::type;
template <typename W> constexpr int LANES = REGISTER_BYTES / sizeof(W);

// For a processor without the instruction: the product is exact in double. The sum is rounded to odd there, that is,
// its last bit is set if it is inexact; rounding that to float gives what rounding the exact sum would (Boldo &
// Melquiond 2008, theorem 1).
inline float mul_add_in_software(float a, float b, float c) {
  double product = static_cast<double>(a) * b, sum = product + c;
  double of_product = sum - c, error = (product - of_product) + (c - (sum - of_product));  // Knuth's two-sum
  std::int64_t bits;
  std::memcpy(&bits, &sum, 8);
  if ((error > 0 || error < 0) && !(bits & 1)) bits += (error > 0) == (sum > 0) ? 1 : -1;
  std::memcpy(&sum, &bits, 8);
  return static_cast<float>(sum);
}

inline float mul_add(float a, float b, float c) {
  if constexpr (HAS_FMA) return __builtin_fmaf(a, b, c);
  return mul_add_in_software(a, b, c);
}
inline double mul_add(double a, double b, double c) { return HAS_FMA ? __builtin_fma(a, b, c) : std::fma(a, b, c); }

#if defined(__AVX512F__)
inline Vector<float> mul_add(Vector<float> a, Vector<float> b, Vector<float> c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector<double> mul_add(Vector<double> a, Vector<double> b, Vector<double> c) { return _mm512_fmadd_pd(a, b, c); }
inline Vector<float> in_all_lanes(float x) { return _mm512_set1_ps(x); }
inline Vector<double> in_all_lanes(double x) { return _mm512_set1_pd(x); }
#elif defined(__AVX2__) && defined(__FMA__)
inline Vector<float> mul_add(Vector<float> a, Vector<float> b, Vector<float> c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector<double> mul_add(Vector<double> a, Vector<double> b, Vector<double> c) { return _mm256_fmadd_pd(a, b, c); }
inline Vector<float> in_all_lanes(float x) { return _mm256_set1_ps(x); }
inline Vector<double> in_all_lanes(double x) { return _mm256_set1_pd(x); }
#elif defined(__aarch64__)
inline Vector<float> mul_add(Vector<float> a, Vector<float> b, Vector<float> c) { return vfmaq_f32(c, a, b); }
inline Vector<double> mul_add(Vector<double> a, Vector<double> b, Vector<double> c) { return vfmaq_f64(c, a, b); }
inline Vector<float> in_all_lanes(float x) { return vdupq_n_f32(x); }
inline Vector<double> in_all_lanes(double x) { return vdupq_n_f64(x); }
#else
inline Vector<float> mul_add(Vector<float> a, Vector<float> b, Vector<float> c) {
  for (int lane = 0; lane < LANES<float>; lane++) c[lane] = mul_add(a[lane], b[lane], c[lane]);
  return c;
}
inline Vector<double> mul_add(Vector<double> a, Vector<double> b, Vector<double> c) {
  for (int lane = 0; lane < LANES<double>; lane++) c[lane] = mul_add(a[lane], b[lane], c[lane]);
  return c;
}
inline Vector<float> in_all_lanes(float x) { return Vector<float>{x, x, x, x}; }
inline Vector<double> in_all_lanes(double x) { return Vector<double>{x, x}; }
#endif

template <typename W> inline Vector<W> load_vector(const W* from) {
  Vector<W> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}
template <typename W> inline void store_vector(W* to, Vector<W> vector) { std::memcpy(to, &vector, sizeof vector); }

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

struct bfloat16 {
  std::uint16_t bits;
};

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(bfloat16 x) { return float_of(static_cast<std::uint32_t>(x.bits) << 16); }

inline void store(float* to, float x) { *to = x; }
inline void store(double* to, double x) { *to = x; }
inline void store(bfloat16* to, float x) {
  // To the nearest, ties to even
  const std::uint32_t bits = bits_of(x), nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->bits = static_cast<std::uint16_t>(x == x ? nearest : 0x7fc0);
}

// x as it is after a store
template <typename T> inline auto rounded(decltype(load(T{})) x) {
  T stored;
  store(&stored, x);
  return load(stored);
}

// Subnormal numbers are part of the arithmetic. A library in the same process may have switched them off, thread by
// thread (flush to zero), and may have changed the rounding. The thread keeps what is set here.
inline void arithmetic_as_defined() {
#if defined(__x86_64__)
  constexpr unsigned FLUSH_RESULTS = 0x8000, FLUSH_OPERANDS = 0x0040, ROUNDING = 0x6000;
  const unsigned now = _mm_getcsr(), wanted = now & ~(FLUSH_RESULTS | FLUSH_OPERANDS | ROUNDING);
  if (now != wanted) _mm_setcsr(wanted);
#elif defined(__aarch64__)
  constexpr std::uint64_t FLUSH = 1ull << 24, FLUSH_HALF = 1ull << 19, ROUNDING = 3ull << 22;
  std::uint64_t now;
  __asm__ volatile("mrs %0, fpcr" : "=r"(now));
  const std::uint64_t wanted = now & ~(FLUSH | FLUSH_HALF | ROUNDING);
  if (now != wanted) __asm__ volatile("msr fpcr, %0" : : "r"(wanted));
#endif
}
