// Everything of a training step that is not a matrix product, in one pass over memory each.
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
// Shapes: N rows, D d_model, F d_ffn, B batch, H heads, K head size, V vocabulary.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

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

// ------------------------------------------------------------------------------------------- residual and norm

// x_sum = x + dropout(h + h_bias);  y = layer norm of x_sum. Without h: x_sum is x and is not written.
template <typename T, typename W>
void add_norm_forward(const W* x /* rows D */, const T* h /* rows D? */, const W* h_bias /* D? */,
                      const std::uint8_t* keep /* rows D? */, W keep_scale, const W* weight /* D */,
                      const W* bias /* D? */, W eps, Index rows, Index D, W* x_sum /* rows D */, T* y /* rows D */,
                      W* mean /* rows */, W* rstd /* rows */) {
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
      W sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
      for (Index i = 0; i < D; i++) sum += v[i];
      W m = sum / D;
#pragma omp simd reduction(+ : squares)
      for (Index i = 0; i < D; i++) squares += (v[i] - m) * (v[i] - m);
      W r = W(1) / std::sqrt(squares / D + eps);
      for (Index i = 0; i < D; i++) store(&y[n * D + i], (v[i] - m) * r * weight[i] + (bias ? bias[i] : W(0)));
      mean[n] = m;
      rstd[n] = r;
    }
  }
}

// y = layer norm of x_sum, from its saved mean and rstd
template <typename T, typename W>
void norm_again(const W* x_sum /* rows D */, const W* weight /* D */, const W* bias /* D? */, const W* mean /* rows */,
                const W* rstd /* rows */, Index rows, Index D, T* y /* rows D */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    Index n = part.first;
    W m = mean[n], r = rstd[n];
    for (Index i = 0; i < D; i++) {
      store(&y[n * D + i], (x_sum[n * D + i] - m) * r * weight[i] + (bias ? bias[i] : W(0)));
    }
  }
}

// dx = d_residual + the norm's gradient: the gradient of x and, through dropout, of h, whose column sums are h_bias's.
// dh: null where there was no h, or where it equals dx (no dropout, T = W).
template <typename T, typename W>
void add_norm_backward(const T* dy /* rows D */, const W* d_residual /* rows D? */, const W* x_sum /* rows D */,
                       const W* weight /* D */, const W* mean /* rows */, const W* rstd /* rows */,
                       const std::uint8_t* keep /* rows D? */, W keep_scale, Index rows, Index D, W* dx /* rows D */,
                       T* dh /* rows D? */, W* dweight /* D */, W* dbias /* D? */, W* dh_bias /* D? */) {
  ColumnSums<W> sums(3 * D);
#pragma omp parallel
  {
    W *sum_weight = sums.mine(), *sum_bias = sum_weight + D, *sum_h = sum_weight + 2 * D;
    for (Part part(rows); part.first < part.last; part.first++) {
      Index n = part.first, at = n * D;
      W m = mean[n], r = rstd[n], mean_dx_hat = 0, mean_product = 0;
#pragma omp simd reduction(+ : mean_dx_hat, mean_product)
      for (Index i = 0; i < D; i++) {
        W dyi = load(dy[at + i]), x_hat = (x_sum[at + i] - m) * r;
        sum_weight[i] += dyi * x_hat;
        sum_bias[i] += dyi;
        mean_dx_hat += dyi * weight[i];
        mean_product += dyi * weight[i] * x_hat;
      }
      mean_dx_hat /= D;
      mean_product /= D;
      for (Index i = 0; i < D; i++) {
        W x_hat = (x_sum[at + i] - m) * r;
        W d = r * (load(dy[at + i]) * weight[i] - mean_dx_hat - x_hat * mean_product);
        dx[at + i] = (d_residual ? d_residual[at + i] : W(0)) + d;
      }
      if (keep) {
        for (Index i = 0; i < D; i++) {
          W d = keep[at + i] ? dx[at + i] * keep_scale : W(0);
          sum_h[i] += d;
          store(&dh[at + i], d);
        }
      } else {
        for (Index i = 0; i < D; i++) sum_h[i] += dx[at + i];
        if (dh)
          for (Index i = 0; i < D; i++) store(&dh[at + i], dx[at + i]);
      }
    }
  }
  sums.write(dweight, 0, D);
  sums.write(dbias, D, D);
  sums.write(dh_bias, 2 * D, D);
}

// ------------------------------------------------------------------------------------------------------- gelu

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

// -------------------------------------------------------------------------------------------------- attention

// qkv (B, time, 3, H, K) + bias (3, H, K) -> heads (3, B, H, time, K)
template <typename T, typename W>
void split_heads(const T* qkv /* B time 3 H K */, const W* bias /* 3 H K? */, Index B, Index time, Index H, Index K,
                 T* heads /* 3 B H time K */) {
#pragma omp parallel
  for (Part part(B * time); part.first < part.last; part.first++) {
    Index b = part.first / time, t = part.first % time;
    for (Index c = 0; c < 3 * H; c++) {
      Index kind = c / H, head = c % H;
      const T* from = qkv + (part.first * 3 * H + c) * K;
      T* to = heads + (((kind * B + b) * H + head) * time + t) * K;
      if (!bias) {
        std::memcpy(to, from, K * sizeof(T));
      } else {
        for (Index i = 0; i < K; i++) store(&to[i], load(from[i]) + bias[c * K + i]);
      }
    }
  }
}

// heads (B, H, count, K), the times from `first` on -> columns `part` of parts of rows (B, time, parts, H, K); where
// bias is given, the columns' sums are added to it.
template <typename T, typename W>
void merge_heads(const T* heads /* B H count K */, Index B, Index H, Index count, Index K, Index first, Index time,
                 Index parts, Index part_index, T* rows /* B time parts H K */, W* bias /* H K? */) {
  ColumnSums<W> sums(H * K);
#pragma omp parallel
  {
    W* sum = sums.mine();
    for (Part part(B * count); part.first < part.last; part.first++) {
      Index b = part.first / count, t = part.first % count;
      T* to = rows + ((b * time + first + t) * parts + part_index) * H * K;
      for (Index head = 0; head < H; head++) {
        const T* from = heads + ((b * H + head) * count + t) * K;
        std::memcpy(to + head * K, from, K * sizeof(T));
        if (bias)
          for (Index i = 0; i < K; i++) sum[head * K + i] += load(from[i]);
      }
    }
  }
  if (bias) {
    std::vector<W> total(H * K);
    sums.write(total.data(), 0, H * K);
    for (Index i = 0; i < H * K; i++) bias[i] += total[i];
  }
}

// scores (BH, queries, keys), query q standing at first + q, become probabilities: softmax of scale · scores over the
// keys up to the query's own place, 0 beyond. With keep (BH, time, time): dropped = probabilities ∘ keep · keep_scale.
template <typename T, typename W>
void softmax_forward(T* scores /* BH queries keys */, W scale, const std::uint8_t* keep /* BH time time? */,
                     W keep_scale, Index BH, Index queries, Index keys, Index first, Index time,
                     T* dropped /* BH queries keys */) {
#pragma omp parallel
  {
    std::vector<W> exponentials(keys);
    W* e = exponentials.data();
    for (Part part(BH * queries); part.first < part.last; part.first++) {
      Index bh = part.first / queries, q = first + part.first % queries, visible = q + 1;
      T* s = scores + part.first * keys;
      W top = load(s[0]), sum = 0;
#pragma omp simd reduction(max : top)
      for (Index k = 0; k < visible; k++) top = load(s[k]) > top ? load(s[k]) : top;
#pragma omp simd reduction(+ : sum)
      for (Index k = 0; k < visible; k++) {
        e[k] = exp_of((load(s[k]) - top) * scale);
        sum += e[k];
      }
      W inverse = W(1) / sum;
      for (Index k = 0; k < visible; k++) store(&s[k], e[k] * inverse);
      for (Index k = visible; k < keys; k++) store(&s[k], W(0));
      if (keep) {
        const std::uint8_t* kept = keep + (bh * time + q) * time;
        T* d = dropped + part.first * keys;
        for (Index k = 0; k < keys; k++) store(&d[k], kept[k] ? load(s[k]) * keep_scale : W(0));
      }
    }
  }
}

// d_probabilities (of the dropped ones) become d_scores = scale · P ∘ (dP − Σ_keys dP ∘ P).
template <typename T, typename W>
void softmax_backward(T* d_probabilities /* BH queries keys */, const T* probabilities /* BH queries keys */, W scale,
                      const std::uint8_t* keep /* BH time time? */, W keep_scale, Index BH, Index queries, Index keys,
                      Index first, Index time) {
#pragma omp parallel
  for (Part part(BH * queries); part.first < part.last; part.first++) {
    Index bh = part.first / queries, q = first + part.first % queries, visible = q + 1;
    T* d = d_probabilities + part.first * keys;
    const T* p = probabilities + part.first * keys;
    if (keep) {
      const std::uint8_t* kept = keep + (bh * time + q) * time;
      for (Index k = 0; k < visible; k++) store(&d[k], kept[k] ? load(d[k]) * keep_scale : W(0));
    }
    W inner = 0;
#pragma omp simd reduction(+ : inner)
    for (Index k = 0; k < visible; k++) inner += load(d[k]) * load(p[k]);
    for (Index k = 0; k < visible; k++) store(&d[k], scale * load(p[k]) * (load(d[k]) - inner));
    for (Index k = visible; k < keys; k++) store(&d[k], W(0));
  }
}

// ----------------------------------------------------------------------------------------------- head and loss

// One tile of the logits (rows, width), of the vocabulary from `first` on, becomes exp(logits − top), where top (rows)
// is the running maximum of the row, this tile included. sum (rows) = Σ exp(logits − top) over the tiles so far;
// rescale (rows) is what earlier tiles' exponentials are to be multiplied by for the new top; tile_top (rows) = top;
// label_logit (rows) is written where the row's label lies in the tile.
template <typename T, typename W>
void loss_tile(T* logits /* rows width */, const Index* labels /* rows */, Index rows, Index width, Index first,
               W* top /* rows */, W* sum /* rows */, W* rescale /* rows */, W* tile_top /* rows */,
               W* label_logit /* rows */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    Index n = part.first;
    T* z = logits + n * width;
    Index label = labels[n] - first;
    if (label >= 0 && label < width) label_logit[n] = load(z[label]);
    W highest = load(z[0]), tile_sum = 0;
#pragma omp simd reduction(max : highest)
    for (Index v = 0; v < width; v++) highest = load(z[v]) > highest ? load(z[v]) : highest;
    W reference = highest > top[n] ? highest : top[n];
#pragma omp simd reduction(+ : tile_sum)
    for (Index v = 0; v < width; v++) {
      W e = exp_of(load(z[v]) - reference);
      tile_sum += e;
      store(&z[v], e);
    }
    rescale[n] = exp_of(top[n] - reference);
    sum[n] = sum[n] * rescale[n] + tile_sum;
    top[n] = tile_top[n] = reference;
  }
}

// sum (rows, D) = sum ∘ rescale + add
template <typename T, typename W>
void rescale_add(W* sum /* rows D */, const W* rescale /* rows */, const T* add /* rows D */, Index rows, Index D) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    Index n = part.first;
    for (Index i = 0; i < D; i++) sum[n * D + i] = sum[n * D + i] * rescale[n] + load(add[n * D + i]);
  }
}

// y (rows, D) = x ∘ factor, row by row
template <typename T, typename W> void scale_rows(const T* x /* rows D */, const W* factor /* rows */, Index rows,
                                                  Index D, T* y /* rows D */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    Index n = part.first;
    for (Index i = 0; i < D; i++) store(&y[n * D + i], load(x[n * D + i]) * factor[n]);
  }
}

// ----------------------------------------------------------------------------- one new token a row, for generation
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

// The new token's keys and values, of qkv (B, 3, H, K) + bias (3, H, K), join the `length` before them in keys and
// values (B, H, capacity, K); its queries attend to all of them: y (B, H, K).
template <typename T, typename W>
void attend_cached(const T* qkv /* B 3 H K */, const W* bias /* 3 H K? */, T* keys /* B H capacity K */,
                   T* values /* B H capacity K */, Index B, Index H, Index K, Index capacity, Index length, W scale,
                   T* y /* B H K */) {
#pragma omp parallel
  {
    std::vector<W> room(length + 1 + 2 * K);
    W *p = room.data(), *q = p + length + 1, *sum = q + K;
    for (Part part(B * H); part.first < part.last; part.first++) {
      Index b = part.first / H, head = part.first % H;
      T *k = keys + part.first * capacity * K, *v = values + part.first * capacity * K;
      for (Index i = 0; i < K; i++) {
        Index at = head * K + i;
        q[i] = load(qkv[(b * 3) * H * K + at]) + (bias ? bias[at] : W(0));
        store(&k[length * K + i], load(qkv[(b * 3 + 1) * H * K + at]) + (bias ? bias[H * K + at] : W(0)));
        store(&v[length * K + i], load(qkv[(b * 3 + 2) * H * K + at]) + (bias ? bias[2 * H * K + at] : W(0)));
      }
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

// -------------------------------------------------------------------------------------------------- the update

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

// --------------------------------------------------------------------------------------------- names for Python

#define EXPORT_UPDATE(function)                                                      \
  void* function##_float32 = reinterpret_cast<void*>(&function<float>); \
  void* function##_float64 = reinterpret_cast<void*>(&function<double>);
#define EXPORT(function)                                                                 \
  void* function##_float32 = reinterpret_cast<void*>(&function<float, float>);     \
  void* function##_bfloat16 = reinterpret_cast<void*>(&function<bfloat16, float>); \
  void* function##_float64 = reinterpret_cast<void*>(&function<double, double>);

extern "C" {
EXPORT(add_norm_forward) EXPORT(norm_again) EXPORT(add_norm_backward) EXPORT(gelu_forward) EXPORT(gelu_backward)
EXPORT(split_heads) EXPORT(merge_heads) EXPORT(softmax_forward) EXPORT(softmax_backward) EXPORT(loss_tile)
EXPORT(rescale_add) EXPORT(scale_rows) EXPORT(few_rows_product) EXPORT(few_rows_logits) EXPORT(attend_cached)
EXPORT_UPDATE(sum_of_squares) EXPORT_UPDATE(sgd_update) EXPORT_UPDATE(adamw_update)
}
