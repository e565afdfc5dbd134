// Sums over rows.

#include "kernels.h"

namespace {

// y (width) = the column sums of x (rows, width)
template <typename T, typename W>
void column_sums(const T* x /* rows width */, Index rows, Index width, W* y /* width */) {
  ColumnSums<W> sums(rows, width);
#pragma omp parallel
  sums.rows([&](Index n, W* sum) {
    for (Index i = 0; i < width; i++) sum[i] += load(x[n * width + i]);
  });
  sums.write(y, 0, width);
}

// table[index[n]] += scale[n] · x[n], in the order of n; without scale, x[n]
template <typename T, typename W>
void add_rows(const T* x /* rows D */, const Index* index /* rows */, const W* scale /* rows? */, Index rows,
              [[maybe_unused]] Index V, Index D, W* table /* V D */) {
#pragma omp parallel if (rows * D >= FEW)
  for (Part part(ceil_div(D, 16)); part.first < part.last; part.first++) {  // a cache line of every row
    const Index first = part.first * 16, last = std::min(first + 16, D);
    for (Index n = 0; n < rows; n++) {
      W* to = table + index[n] * D;
      const T* from = x + n * D;
      const W factor = scale ? scale[n] : W(1);
      for (Index i = first; i < last; i++) to[i] = mul_add(load(from[i]), factor, to[i]);
    }
  }
}

}  // namespace

extern "C" {
EXPORT(column_sums) EXPORT(add_rows)
}
