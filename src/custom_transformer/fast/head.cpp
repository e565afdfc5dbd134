// The head and the loss, around their products.

#include "kernels.h"

namespace {

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
    const Index n = part.first, label = labels[n] - first;
    T* z = logits + n * width;
    if (label >= 0 && label < width) label_logit[n] = load(z[label]);
    const W highest = row_max<W>(width, [&](Index v) { return load(z[v]); });
    const W reference = highest > top[n] ? highest : top[n];
    const W tile_sum = row_sum_of<W>(width, [&](Index v) {
      const W e = exp_of(load(z[v]) - reference);
      store(&z[v], e);
      return e;
    });
    rescale[n] = exp_of(top[n] - reference);
    sum[n] = mul_add(sum[n], rescale[n], tile_sum);
    top[n] = tile_top[n] = reference;
  }
}

// sum (rows, D) = sum ∘ rescale + add
template <typename T, typename W>
void rescale_add(W* sum /* rows D */, const W* rescale /* rows */, const T* add /* rows D */, Index rows, Index D) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    const Index n = part.first;
    for (Index i = 0; i < D; i++) sum[n * D + i] = mul_add(sum[n * D + i], rescale[n], load(add[n * D + i]));
  }
}

// y (rows, D) = x ∘ what makes a tile's exponentials gradients of the logits: exp(tile_top − top) / sum · share,
// row by row
template <typename T, typename W>
void scale_rows(const T* x /* rows D */, const W* tile_top /* rows */, const W* top /* rows */, const W* sum /* rows */,
                const W* share /* rows */, Index rows, Index D, T* y /* rows D */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    const Index n = part.first;
    const W factor = exp_of(tile_top[n] - top[n]) / sum[n] * share[n];
    for (Index i = 0; i < D; i++) store(&y[n * D + i], load(x[n * D + i]) * factor);
  }
}

// The rows' losses top + ln sum − label_logit and dx = share (dx / sum − weight[label]); both 0 for a label below 0
template <typename T, typename W>
void finish_rows(const W* top /* rows */, const W* sum /* rows */, const W* label_logit /* rows */,
                 const W* share /* rows */, const Index* labels /* rows */, const T* weight /* V D */, Index rows,
                 [[maybe_unused]] Index V, Index D, W* losses /* rows */, W* dx /* rows D */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    const Index n = part.first;
    W* row = dx + n * D;
    if (labels[n] < 0) {
      losses[n] = 0;
      std::fill_n(row, D, W(0));
      continue;
    }
    losses[n] = top[n] + log_of(sum[n]) - label_logit[n];
    const W factor = share[n] / sum[n];
    const T* of_label = weight + labels[n] * D;
    for (Index i = 0; i < D; i++) row[i] = mul_add(row[i], factor, -(share[n] * load(of_label[i])));
  }
}

// Of each row of logits the label's loss ln Σ exp z − z[label], and the first of the largest logits.
template <typename T, typename W>
void score_rows(const T* logits /* rows V */, const Index* labels /* rows */, Index rows, Index V, W* losses /* rows */,
                Index* predicted /* rows */) {
#pragma omp parallel
  for (Part part(rows); part.first < part.last; part.first++) {
    const T* z = logits + part.first * V;
    const W top = row_max<W>(V, [&](Index v) { return load(z[v]); });
    const W sum = row_sum_of<W>(V, [&](Index v) { return exp_of(load(z[v]) - top); });
    losses[part.first] = top + log_of(sum) - load(z[labels[part.first]]);
    predicted[part.first] = std::find_if(z, z + V, [&](T x) { return load(x) == top; }) - z;
  }
}

}  // namespace

extern "C" {
EXPORT(loss_tile) EXPORT(rescale_add) EXPORT(scale_rows) EXPORT(finish_rows) EXPORT(score_rows)
}
