// Matrix products with the same bits on every processor and for every number of threads:
//
//     C[i, j] = ((p₀ + p₁) + p₂) + …      p_c = a chain of fused multiply-adds, A[i, k] B[k, j] onto the sum so far,
//                                         over the k of chunk c in order, begun at +0
//
// in the arithmetic's type, with chunks of CHUNK values of k. Only the order over k is part of the definition: tiles,
// vectors, cache blocks and threads share out i and j, and each processor may do that in its own way.
//
// bfloat16 operands are widened, which is exact; those smaller than 2⁻⁵⁵ are taken as 0. Each product and sum is then a
// multiple of 2⁻¹²⁴ and never subnormal, so that the instruction vdpbf16ps, which knows no subnormals, computes two
// links of the chain.
//
// Operands are packed into panels, in which a tile finds what it reads next to each other: the rows of A by ROWS, the
// columns of B by COLUMNS. (Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".)

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "vectors.h"

constexpr Index CHUNK = 512;

// The type of a product's arithmetic
template <typename T> using Wide = decltype(load(T{}));

// A tile's sums fill the registers: ROWS rows of VECTORS vectors.
#if defined(__AVX512F__)
constexpr int ROWS = 12, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int ROWS = 6, VECTORS = 4;
#else
constexpr int ROWS = 6, VECTORS = 2;
#endif
template <typename W> constexpr int COLUMNS = VECTORS * LANES<W>;
constexpr int AHEAD = 16;  // steps along k, for which B is fetched from the cache behind the nearest

// PER neighbours along k share a cell of packed memory; `link` takes a cell's products into the sums, in order.
template <typename T> constexpr int PER = 1;
template <typename T> inline Vector<Wide<T>> link(Vector<Wide<T>> a, Vector<Wide<T>> b, Vector<Wide<T>> sums) {
  return mul_add(a, b, sums);
}
template <typename T> inline Wide<T> cell(T x) { return x; }
inline float cell(bfloat16 x) { return (x.bits & 0x7f80) < (127 - 55) << 7 ? 0.0f : load(x); }
// Intel's processors, which have AMX, take longer for the instruction than for two multiply-adds of widened operands.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
template <> constexpr int PER<bfloat16> = 2;
template <> inline Vector<float> link<bfloat16>(Vector<float> a, Vector<float> b, Vector<float> sums) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));  // upper halves first
}
#endif
inline float cell(bfloat16 first, bfloat16 second) { return float_of(bits_of(cell(first)) | bits_of(cell(second)) >> 16); }

// x as a cell holds it once it is rounded to T
template <typename T> inline Wide<T> as_cell(Wide<T> x) {
  T stored;
  store(&stored, x);
  return cell(stored);
}

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
template <typename T> constexpr Index cells(Index depth) { return ceil_div(depth, PER<T>); }

// Element (i, j) is data[i · row + j · column].
template <typename T> struct Matrix {
  const T* data;
  Index row, column;
  Matrix from(Index i, Index j) const { return {data + i * row + j * column, row, column}; }
  Matrix transposed() const { return {data, column, row}; }
  T operator()(Index i, Index j) const { return data[i * row + j * column]; }
};

// Uninitialised memory, on a cache line's boundary.
template <typename W> using Buffer = std::unique_ptr<W[], decltype(&std::free)>;
template <typename W> Buffer<W> buffer(Index count) {
  const std::size_t bytes = ceil_div(std::max<Index>(count, 1) * sizeof(W), 64) * 64;
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) {  // in a thread that nobody could catch an exception of
    std::fprintf(stderr, "error: no memory for the %zu bytes of a matrix product\n", bytes);
    std::abort();
  }
  return Buffer<W>(static_cast<W*>(memory), std::free);
}

// Four cells that lie along k in memory, from four elements or four pairs.
typedef std::uint32_t Four __attribute__((vector_size(16)));
// The elements of these indices, of x and y one behind the other
template <int... INDICES> inline Four shuffled(Four x, Four y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, INDICES...);
#else
  return __builtin_shuffle(x, y, Four{INDICES...});
#endif
}
// Of four rows of four the columns
inline void transpose(Four* rows) {
  const Four low_01 = shuffled<0, 4, 1, 5>(rows[0], rows[1]), high_01 = shuffled<2, 6, 3, 7>(rows[0], rows[1]);
  const Four low_23 = shuffled<0, 4, 1, 5>(rows[2], rows[3]), high_23 = shuffled<2, 6, 3, 7>(rows[2], rows[3]);
  rows[0] = shuffled<0, 1, 4, 5>(low_01, low_23), rows[1] = shuffled<2, 3, 6, 7>(low_01, low_23);
  rows[2] = shuffled<0, 1, 4, 5>(high_01, high_23), rows[3] = shuffled<2, 3, 6, 7>(high_01, high_23);
}
inline Four four_cells(const float* from) {
  Four x;
  std::memcpy(&x, from, 16);
  return x;
}
inline Four four_cells(const bfloat16* from) {
  const Four least = Four{} + (127 - 55);
  Four x;
  if constexpr (PER<bfloat16> == 1) {
    x = Four{from[0].bits, from[1].bits, from[2].bits, from[3].bits} << 16;
    return (x >> 23 & 0xff) < least ? Four{} : x;
  }
  std::memcpy(&x, from, 16);
  const Four first = x << 16, second = x & 0xffff0000u;
  return ((first >> 23 & 0xff) < least ? Four{} : first) | ((second >> 23 & 0xff) < least ? Four{} : second) >> 16;
}

// COUNT ≤ 4 rows, a cache line of each, into COUNT neighbours of each row of `to`: transposed within registers
template <int WIDTH, int COUNT, typename T> inline void pack_line(const T* line, Index row, float* to) {
  for (Index at = 0; at < static_cast<Index>(64 / sizeof(T)); at += 4 * PER<T>, to += 4 * WIDTH) {
    Four rows[4] = {};
    for (int r = 0; r < COUNT; r++) rows[r] = four_cells(line + r * row + at);
    transpose(rows);
    for (int c = 0; c < 4; c++) std::memcpy(to + c * WIDTH, &rows[c], COUNT * 4);
  }
}

// to[k / PER][w] = rows(w, k) for w < count ≤ WIDTH and k < depth; zeros in the other rows
template <int WIDTH, typename T> void pack(Matrix<T> rows, Index count, Index depth, Wide<T>* to) {
  constexpr int P = PER<T>;
  auto cell_at = [&](Index w, Index k) {
    if constexpr (P == 1)
      return cell(rows(w, k));
    else
      return cell(rows(w, k), k + 1 < depth ? rows(w, k + 1) : T{});
  };
  Index k = 0;
  if (count == WIDTH && rows.row == 1) {
    for (; k + P <= depth; k += P) {
      const T* from = rows.data + k * rows.column;
      for (int w = 0; w < WIDTH; w++) {
        if constexpr (P == 1)
          to[k * WIDTH + w] = cell(from[w]);
        else
          to[k / P * WIDTH + w] = cell(from[w], from[rows.column + w]);
      }
    }
  } else if (count == WIDTH && rows.column == 1) {
    if constexpr (sizeof(Wide<T>) == 4) {
      constexpr Index LINE = 64 / sizeof(T);
      for (; k + LINE <= depth; k += LINE) {
        int w = 0;
        for (; w + 4 <= WIDTH; w += 4)
          pack_line<WIDTH, 4>(rows.data + w * rows.row + k, rows.row, to + k / P * WIDTH + w);
        if constexpr (WIDTH % 4 != 0)
          pack_line<WIDTH, WIDTH % 4>(rows.data + w * rows.row + k, rows.row, to + k / P * WIDTH + w);
      }
    }
  }
  for (; k < depth; k += P)
    for (int w = 0; w < WIDTH; w++) to[k / P * WIDTH + w] = w < count ? cell_at(w, k) : Wide<T>(0);
}

// All `count` rows, by panels of WIDTH: to[panel][k / PER][w]; of the k from `first` to `end`
template <int WIDTH, typename T>
void pack_panels(Matrix<T> rows, Index count, Index depth, Wide<T>* to, Index first, Index end) {
  const Index panel = cells<T>(depth) * WIDTH;
  // Rows that lie side by side: as many k at a time as have their lines in the cache until the last panel has read them.
  const Index stretch = rows.row == 1 ? 8 : end - first;
  for (Index k = first; k < end; k += stretch)
    for (Index p = 0; p * WIDTH < count; p++)
      pack<WIDTH>(rows.from(p * WIDTH, k), std::min<Index>(WIDTH, count - p * WIDTH), std::min(stretch, end - k),
                  to + p * panel + k / PER<T> * WIDTH);
}
template <int WIDTH, typename T> void pack_panels(Matrix<T> rows, Index count, Index depth, Wide<T>* to) {
  pack_panels<WIDTH>(rows, count, depth, to, 0, depth);
}

// The same by all threads of a parallel region, each of which reads what lies together. Does not wait for them.
template <int WIDTH, typename T> void pack_together(Matrix<T> rows, Index count, Index depth, Wide<T>* to) {
  if (rows.row == 1) {
#pragma omp for schedule(dynamic) nowait
    for (Index k = 0; k < depth; k += 32) pack_panels<WIDTH>(rows, count, depth, to, k, std::min(k + 32, depth));
  } else {
#pragma omp for schedule(dynamic) nowait
    for (Index i = 0; i < count; i += WIDTH)
      pack<WIDTH>(rows.from(i, 0), std::min<Index>(WIDTH, count - i), depth, to + i * cells<T>(depth));
  }
}

// What a tile's sums begin with, and what becomes of them.
enum class Sums {
  NEW,       // to = the chains of these steps
  ADDED,     // to = before + the chains of these steps
  CONTINUED  // to = the chains that stand in `before`, prolonged by these steps
};

// The chains of `steps` cells of k, for ROWS × COLUMNS sums: A's cell of row i and step s is a[i · ROW + s · STEP].
template <typename T, Sums SUMS, Index ROW = 1, Index STEP = ROWS>
__attribute__((noinline)) void tile(const Wide<T>* a, const Wide<T>* b, Index steps, const Wide<T>* before, Index ld_before, Wide<T>* to,
          Index ld) {
  using W = Wide<T>;
  Vector<W> sums[ROWS][VECTORS] = {};
  if constexpr (SUMS != Sums::NEW)
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECTORS; v++) {
        const W* at = before + i * ld_before + v * LANES<W>;
        if constexpr (SUMS == Sums::CONTINUED)
          sums[i][v] = load_vector(at);
        else
          __builtin_prefetch(at);
      }
  for (Index step = 0; step < steps; step++, a += STEP, b += COLUMNS<W>) {
    Vector<W> of_b[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
      of_b[v] = load_vector(b + v * LANES<W>);
      __builtin_prefetch(b + AHEAD * COLUMNS<W> + v * LANES<W>);
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const Vector<W> of_a = in_all_lanes(a[i * ROW]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sums[i][v] = link<T>(of_a, of_b[v], sums[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      Vector<W> sum = sums[i][v];
      if constexpr (SUMS == Sums::ADDED) sum = load_vector(before + i * ld_before + v * LANES<W>) + sum;
      store_vector(to + i * ld + v * LANES<W>, sum);
    }
}

// The chains over all of `depth`, chunk by chunk: a and b packed, the sums into `to`
template <typename T, Index ROW = 1, Index STEP = ROWS>
void tile_of_chunks(const Wide<T>* a, const Wide<T>* b, Index depth, Wide<T>* to, Index ld) {
  for (Index k = 0; k < depth; k += CHUNK) {
    const Index steps = cells<T>(std::min(CHUNK, depth - k)), at = k / PER<T>;
    if (k == 0)
      tile<T, Sums::NEW, ROW, STEP>(a, b, steps, nullptr, 0, to, ld);
    else
      tile<T, Sums::ADDED, ROW, STEP>(a + at * STEP, b + at * COLUMNS<Wide<T>>, steps, to, ld, to, ld);
  }
}

// C (M, N), its rows `ld` apart, = A (M, K) · B (K, N), rounded to C's type. Called outside of parallel regions.
//
// C is computed in strips of STRIP columns. B's part of some chunks is packed once for all threads, which then share out
// the blocks of C. A block packs its part of A; but where A has few rows, it is packed once for all, too.
template <typename T, typename To>
void product(Index M, Index N, Index K, Matrix<T> A, Matrix<T> B, To* C, Index ld) {
  using W = Wide<T>;
  constexpr Index NR = COLUMNS<W>, STRIP = 4096 / NR * NR, FEW_ROWS = 1536, BLOCKS_PER_THREAD = 12, PACKED = 1 << 20;
  constexpr bool SUMS_IN_C = std::is_same_v<To, W>;
  if (M == 0 || N == 0) return;
  const Index enough = BLOCKS_PER_THREAD * omp_get_max_threads(), width = ceil_div(std::min(N, STRIP), NR) * NR;
  // A block of C: small enough for its part of A to stay in the cache, and for all threads to end at about the same time.
  Index rows = 96, columns = 1024;
  auto blocks = [&] { return ceil_div(M, rows) * ceil_div(width, columns); };
  while (blocks() < enough && columns > 2 * NR) columns = ceil_div(columns / 2, NR) * NR;
  while (blocks() < enough && rows > 2 * ROWS) rows = ceil_div(rows / 2, ROWS) * ROWS;
  const Index shared_rows = M <= FEW_ROWS ? ceil_div(M, ROWS) * ROWS : 0;
  // The chunks that are packed together have about PACKED numbers, which a cache of all threads holds.
  const Index together = std::max<Index>(PACKED / ((width + shared_rows) * CHUNK), 1) * CHUNK;
  const Index deepest = cells<T>(std::min(K, together));
  const Buffer<W> packed_b = buffer<W>(width * deepest), shared_a = buffer<W>(shared_rows * deepest);
  const Buffer<W> sums = buffer<W>(!SUMS_IN_C && K > CHUNK ? ceil_div(M, ROWS) * ROWS * width : 0);

  // Chunk k of the tile at (i, j) of the strip: its chains, of packed a and b, are added to those before.
  auto add_chunk = [&](Index strip, Index i, Index j, Index k, const W* a, const W* b) {
    alignas(64) W out[ROWS * NR];
    const Index steps = cells<T>(std::min(CHUNK, K - k)), here = std::min<Index>(ROWS, M - i), wide = std::min(NR, N - j);
    W *before = nullptr, *to = out;
    Index ld_before = width, ld_to = NR;
    if constexpr (SUMS_IN_C) {
      if (here == ROWS && wide == NR) to = before = C + i * ld + j, ld_to = ld_before = ld;
    } else {
      before = sums.get() + i * width + j - strip;
      if (k + CHUNK < K) to = before, ld_to = width;
    }
    if (k == 0 || !before)
      tile<T, Sums::NEW>(a, b, steps, nullptr, 0, to, ld_to);
    else
      tile<T, Sums::ADDED>(a, b, steps, before, ld_before, to, ld_to);
    if (to == out)
      for (Index r = 0; r < here; r++) {
        To* row = C + (i + r) * ld + j;
        const bool adds = !before && k > 0;  // a tile at the edge of C
        for (Index c = 0; c < wide; c++) store(&row[c], adds ? load(row[c]) + out[r * NR + c] : out[r * NR + c]);
      }
  };

#pragma omp parallel if (M * N * K >= 32768)
  {
    arithmetic_as_defined();
    const Buffer<W> own_a = buffer<W>(shared_rows ? 0 : rows * cells<T>(std::min(K, CHUNK)));
    for (Index strip = 0; strip < N; strip += STRIP)
      for (Index begin = 0; begin < K || begin == 0; begin += together) {
        const Index strip_end = std::min(strip + STRIP, N), end = std::min(begin + together, K);
        auto depth = [&](Index k) { return std::min(CHUNK, K - k); };
        auto chunk_of_b = [&](Index k) { return packed_b.get() + cells<T>(k - begin) * width; };
        auto chunk_of_a = [&](Index k) { return shared_a.get() + cells<T>(k - begin) * shared_rows; };
        for (Index k = begin; k < end; k += CHUNK) {
          pack_together<NR>(B.from(k, strip).transposed(), strip_end - strip, depth(k), chunk_of_b(k));
          if (shared_rows) pack_together<ROWS>(A.from(0, k), M, depth(k), chunk_of_a(k));
        }
#pragma omp barrier
#pragma omp for schedule(dynamic) collapse(2)
        for (Index j0 = strip; j0 < strip_end; j0 += columns)
          for (Index i0 = 0; i0 < M; i0 += rows)
            for (Index k = begin; k < end || k == 0; k += CHUNK) {
              const Index steps = cells<T>(depth(k));
              const W *b = chunk_of_b(k), *a = shared_rows ? chunk_of_a(k) + i0 * steps : own_a.get();
              if (!shared_rows) pack_panels<ROWS>(A.from(i0, k), std::min(rows, M - i0), depth(k), own_a.get());
              for (Index i = i0; i < std::min(i0 + rows, M); i += ROWS)
                for (Index j = j0; j < std::min(j0 + columns, strip_end); j += NR)
                  add_chunk(strip, i, j, k, a + (i - i0) * steps, b + (j - strip) * steps);
            }
      }
  }
}
