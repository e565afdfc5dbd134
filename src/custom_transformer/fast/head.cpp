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

}  // namespace

extern "C" {
EXPORT(loss_tile) EXPORT(rescale_add) EXPORT(scale_rows)
}
