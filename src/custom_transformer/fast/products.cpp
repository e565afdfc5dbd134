// Matrix products, for Python.

#include "kernels.h"

namespace {

// c = a · b, each operand as it lies or transposed: a's element (m, k) is a[m · a_row + k · a_column], and so b's.
template <typename T, typename W>
void matrix_product(const T* a /* M K */, Index a_row, Index a_column, const T* b /* K N */, Index b_row,
                    Index b_column, Index M, Index N, Index K, T* c /* M N */) {
  product<T, T>(M, N, K, {a, a_row, a_column}, {b, b_row, b_column}, c, N);
}

// The same, not rounded to the operands' type
template <typename T, typename W>
void matrix_product_wide(const T* a /* M K */, Index a_row, Index a_column, const T* b /* K N */, Index b_row,
                         Index b_column, Index M, Index N, Index K, W* c /* M N */) {
  product<T, W>(M, N, K, {a, a_row, a_column}, {b, b_row, b_column}, c, N);
}

}  // namespace

extern "C" {
int has_fma = HAS_FMA;
EXPORT(matrix_product) EXPORT(matrix_product_wide)
}
