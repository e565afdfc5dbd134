// Attention, around its products. R = H / G query heads share a head of keys and values; its queries of one time stand
// next to each other, so that they are rows of one product.

#include "kernels.h"

namespace {

// qkv (B, time, H + 2 G = heads, K) + bias -> q (B, G, time, R, K), k and v (B, G, time, K); with turns (time, K),
// queries and keys are turned.
template <typename T, typename W>
void split_heads(const T* qkv /* B time heads K */, const W* bias /* heads K? */, const W* turns /* time K? */,
                 Index B, Index time, Index H, Index G, Index heads, Index K, T* q /* B H time K */,
                 T* k /* B G time K */, T* v /* B G time K */) {
  const Index R = H / G;
#pragma omp parallel
  for (Part part(B * time); part.first < part.last; part.first++) {
    Index b = part.first / time, t = part.first % time;
    for (Index c = 0; c < heads; c++) {
      const T* from = qkv + (part.first * heads + c) * K;
      T* to;
      if (c < H) {
        to = q + (((b * G + c / R) * time + t) * R + c % R) * K;
      } else {
        Index pair = b * G + (c - H) % G;
        to = (c < H + G ? k : v) + (pair * time + t) * K;
      }
      if (!bias) {
        std::memcpy(to, from, K * sizeof(T));
      } else {
        for (Index i = 0; i < K; i++) store(&to[i], load(from[i]) + bias[c * K + i]);
      }
      if (turns && c < H + G) turn(to, turns + t * K, W(1), K);
    }
  }
}

// heads (B, G, count, R, K), the times from `first` on -> the G R columns from `start` on of rows (B, time, width, K);
// with turns, turned back. Where bias is given, the columns' sums are added to it.
template <typename T, typename W>
void merge_heads(const T* heads /* B G count R K */, const W* turns /* time K? */, Index B, Index G, Index count,
                 Index R, Index K, Index first, Index time, Index width, Index start, T* rows /* B time width K */,
                 W* bias /* G R K? */) {
  ColumnSums<W> sums(G * R * K);
#pragma omp parallel
  {
    W* sum = sums.mine();
    for (Part part(B * count); part.first < part.last; part.first++) {
      Index b = part.first / count, t = part.first % count;
      T* row = rows + ((b * time + first + t) * width + start) * K;
      for (Index head = 0; head < G * R; head++) {
        T* to = row + head * K;
        std::memcpy(to, heads + (((b * G + head / R) * count + t) * R + head % R) * K, K * sizeof(T));
        if (turns) turn(to, turns + (first + t) * K, W(-1), K);
        if (bias)
          for (Index i = 0; i < K; i++) sum[head * K + i] += load(to[i]);
      }
    }
  }
  if (bias) {
    std::vector<W> total(G * R * K);
    sums.write(total.data(), 0, G * R * K);
    for (Index i = 0; i < G * R * K; i++) bias[i] += total[i];
  }
}

// scores (BG, queries, R, keys), query q standing at first + q, become probabilities: softmax of scale · scores over
// the keys up to the query's own place, 0 beyond. With keep (BG, R, time, time): dropped = probabilities ∘ keep ·
// keep_scale.
template <typename T, typename W>
void softmax_forward(T* scores /* BG queries R keys */, W scale, const std::uint8_t* keep /* BG R time time? */,
                     W keep_scale, Index BG, Index queries, Index R, Index keys, Index first, Index time,
                     T* dropped /* BG queries R keys */) {
#pragma omp parallel
  {
    std::vector<W> exponentials(keys);
    W* e = exponentials.data();
    for (Part part(BG * queries * R); part.first < part.last; part.first++) {
      Index r = part.first % R, q = first + part.first / R % queries, bg = part.first / (R * queries), visible = q + 1;
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
        const std::uint8_t* kept = keep + ((bg * R + r) * time + q) * time;
        T* d = dropped + part.first * keys;
        for (Index k = 0; k < keys; k++) store(&d[k], kept[k] ? load(s[k]) * keep_scale : W(0));
      }
    }
  }
}

// d_probabilities (of the dropped ones) become d_scores = scale · P ∘ (dP − Σ_keys dP ∘ P).
template <typename T, typename W>
void softmax_backward(T* d_probabilities /* BG queries R keys */, const T* probabilities /* BG queries R keys */,
                      W scale, const std::uint8_t* keep /* BG R time time? */, W keep_scale, Index BG, Index queries,
                      Index R, Index keys, Index first, Index time) {
#pragma omp parallel
  for (Part part(BG * queries * R); part.first < part.last; part.first++) {
    Index r = part.first % R, q = first + part.first / R % queries, bg = part.first / (R * queries), visible = q + 1;
    T* d = d_probabilities + part.first * keys;
    const T* p = probabilities + part.first * keys;
    if (keep) {
      const std::uint8_t* kept = keep + ((bg * R + r) * time + q) * time;
      for (Index k = 0; k < visible; k++) store(&d[k], kept[k] ? load(d[k]) * keep_scale : W(0));
    }
    W inner = 0;
#pragma omp simd reduction(+ : inner)
    for (Index k = 0; k < visible; k++) inner += load(d[k]) * load(p[k]);
    for (Index k = 0; k < visible; k++) store(&d[k], scale * load(p[k]) * (load(d[k]) - inner));
    for (Index k = visible; k < keys; k++) store(&d[k], W(0));
  }
}

}  // namespace

extern "C" {
EXPORT(split_heads) EXPORT(merge_heads) EXPORT(softmax_forward) EXPORT(softmax_backward)
}
