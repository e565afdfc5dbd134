// Functions of one number, and sums over a row, as arithmetic of which every rounding is written down.

#pragma once

#include "vectors.h"

// eˣ to 1 unit in the last place: x = n ln 2 + r with |r| ≤ ½ ln 2, eʳ by its Taylor polynomial, 2ⁿ by the exponent's
// bits. Below −87 (−708 in double) it stays e⁻⁸⁷ ≈ 10⁻³⁸; to be called with x ≤ 88 (709). NaN stays NaN.
inline float exp_of(float x) {
  constexpr float ROUNDER = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
  x = x < -87.0f ? -87.0f : x;
  const float shifted = mul_add(x, 1.44269504f, ROUNDER), n = shifted - ROUNDER;
  const float r = mul_add(n, 2.12194440e-4f, mul_add(n, -0.693359375f, x));  // ln 2 in two parts
  float p = 1.0f / 5040.0f;
  p = mul_add(p, r, 1.0f / 720.0f);
  p = mul_add(p, r, 1.0f / 120.0f);
  p = mul_add(p, r, 1.0f / 24.0f);
  p = mul_add(p, r, 1.0f / 6.0f);
  p = mul_add(p, r, 0.5f);
  p = mul_add(p, r * r, r) + 1.0f;
  return p * float_of((bits_of(shifted) + 127) << 23);  // the low bits of `shifted` are n
}
inline double exp_of(double x) {
  constexpr double ROUNDER = 6755399441055744.0;  // 1.5 · 2⁵²
  x = x < -708.0 ? -708.0 : x;
  const double shifted = mul_add(x, 1.4426950408889634, ROUNDER), n = shifted - ROUNDER;
  const double r = mul_add(n, -1.90821492927058770002e-10, mul_add(n, -6.93147180369123816490e-01, x));
  double p = 1.0 / 6227020800.0;
  for (double inverse_factorial : {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0,
                                   1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5})
    p = mul_add(p, r, inverse_factorial);
  p = mul_add(p, r * r, r) + 1.0;
  std::uint64_t bits;
  std::memcpy(&bits, &shifted, 8);
  bits = (bits + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, 8);
  return p * power;
}

// ln x to 2 units in the last place for a normal x > 0, NaN for what is not above 0 or not a number: x = 2ⁿ m with
// √½ ≤ m < √2, and ln m = 2 artanh s = 2 (s + s³/3 + s⁵/5 + …) with s = (m − 1) / (m + 1), |s| < 0.172.
inline double log_of(double x) {
  if (!(x > 0 && x < HUGE_VAL)) return x > 0 ? x : std::nan("");
  std::int64_t bits;
  std::memcpy(&bits, &x, 8);
  const std::int64_t n = (bits - 0x3fe6a09e667f3bcdll) >> 52, of_m = bits - (n << 52);  // √½ has the bits subtracted
  double m;
  std::memcpy(&m, &of_m, 8);
  const double s = (m - 1) / (m + 1), z = s * s;
  double p = 1.0 / 21;
  for (int k = 19; k > 0; k -= 2) p = mul_add(p, z, 1.0 / k);
  const double e = static_cast<double>(n);
  return mul_add(e, 6.93147180369123816490e-01, mul_add(e, 1.90821492927058770002e-10, 2 * s * p));
}
inline float log_of(float x) { return static_cast<float>(log_of(static_cast<double>(x))); }

// σ(x) = 1 / (1 + e⁻ˣ), and 1 − σ(x) without the digits that a subtraction would lose.
template <typename W> inline W sigmoid_of(W x, W& rest) {
  const W e = exp_of(x < W(-80) ? W(80) : -x), sigmoid = W(1) / (W(1) + e);
  rest = e * sigmoid;
  return sigmoid;
}

// Sums over a row: 16 lanes, each of which takes every sixteenth term in order; then the lanes are folded, the upper
// half onto the lower, until one is left. add(i, sum): sum += term i.
constexpr int WAYS = 16;

template <typename W> inline W folded(W* lanes) {
  for (int half = WAYS / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
  return lanes[0];
}
template <typename W, typename Add> inline W row_sum(Index count, Add add) {
  W lanes[WAYS] = {};
  Index i = 0;
  for (; i + WAYS <= count; i += WAYS)
#pragma omp simd
    for (int lane = 0; lane < WAYS; lane++) add(i + lane, lanes[lane]);
  for (int lane = 0; i < count; i++, lane++) add(i, lanes[lane]);
  return folded(lanes);
}
// The same bits, of terms that take long to compute: many at a time, so that the compiler may choose longer vectors
// than the lanes. term(i)
template <typename W, typename Term> inline W row_sum_of(Index count, Term term) {
  constexpr Index MANY = 4 * WAYS;
  W lanes[WAYS] = {}, terms[MANY];
  Index i = 0;
  for (; i + MANY <= count; i += MANY) {
#pragma omp simd
    for (Index j = 0; j < MANY; j++) terms[j] = term(i + j);
    for (Index j = 0; j < MANY; j += WAYS)
#pragma omp simd
      for (int lane = 0; lane < WAYS; lane++) lanes[lane] += terms[j + lane];
  }
  for (; i < count; i++) lanes[i % WAYS] += term(i);
  return folded(lanes);
}
// Two sums in one pass: add(i, first, second)
template <typename W, typename Add> inline void row_sums(Index count, W& first, W& second, Add add) {
  W firsts[WAYS] = {}, seconds[WAYS] = {};
  Index i = 0;
  for (; i + WAYS <= count; i += WAYS)
#pragma omp simd
    for (int lane = 0; lane < WAYS; lane++) add(i + lane, firsts[lane], seconds[lane]);
  for (int lane = 0; i < count; i++, lane++) add(i, firsts[lane], seconds[lane]);
  first = folded(firsts), second = folded(seconds);
}
// The largest of count ≥ 1 terms, which is the same in any order; a NaN is passed over, or is the result.
template <typename W, typename Term> inline W row_max(Index count, Term term) {
  constexpr int MANY = 64;
  W lanes[MANY], top = term(0);
  for (int lane = 0; lane < MANY; lane++) lanes[lane] = top;
  Index i = 0;
  for (; i + MANY <= count; i += MANY)
#pragma omp simd
    for (int lane = 0; lane < MANY; lane++) lanes[lane] = term(i + lane) > lanes[lane] ? term(i + lane) : lanes[lane];
  for (; i < count; i++) lanes[0] = term(i) > lanes[0] ? term(i) : lanes[0];
  for (int lane = 1; lane < MANY; lane++) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
  return lanes[0];
}
