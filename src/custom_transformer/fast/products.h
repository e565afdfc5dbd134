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
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

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
inline float cell(bfloat16 x) {
  const std::uint32_t bits = bits_of(load(x));
  return float_of((bits & 0x7f800000u) < (127u - 55u) << 23 ? 0 : bits);
}
// Intel's processors, which have AMX, take longer for the instruction than for two multiply-adds of widened operands.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
template <> constexpr int PER<bfloat16> = 2;
template <> inline Vector<float> link<bfloat16>(Vector<float> a, Vector<float> b, Vector<float> sums) {
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));  // upper halves first
}
#endif
inline float cell(bfloat16 first, bfloat16 second) {
  return float_of(bits_of(cell(first)) | bits_of(cell(second)) >> 16);
}

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
      if constexpr (std::is_same_v<T, Wide<T>>)
        std::memcpy(to + k * WIDTH, from, WIDTH * sizeof(T));
      else
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

// Fetches a part of a matrix into the second cache, some lines at a time.
template <typename T> class Prefetch {
 public:
  // in `calls` calls of some()
  Prefetch(Matrix<T> part, Index rows, Index columns, Index calls) : at_(part.data) {
    if (part.column != 1) std::swap(rows, columns), std::swap(part.row, part.column);
    of_row_ = left_of_row_ = ceil_div(columns, LINE) + 1;  // a row may begin within a line
    to_next_row_ = part.row - of_row_ * LINE;
    left_ = columns > 0 ? rows * of_row_ : 0, each_ = ceil_div(left_, std::max<Index>(calls, 1));
  }
  void some() {
    for (Index n = std::min(each_, left_); n > 0; n--, left_--, at_ += LINE) {
      __builtin_prefetch(at_, 0, 2);
      if (--left_of_row_ == 0) left_of_row_ = of_row_, at_ += to_next_row_;
    }
  }

 private:
  static constexpr Index LINE = 64 / sizeof(T);
  const T* at_;
  Index of_row_, left_of_row_, left_, each_, to_next_row_;
};

// All `count` rows, by panels of WIDTH: to[panel][k / PER][w]
template <int WIDTH, typename T> void pack_panels(Matrix<T> rows, Index count, Index depth, Wide<T>* to) {
  const Index panel = cells<T>(depth) * WIDTH;
  // Rows that lie side by side: as many k at a time as stay in the cache until the last panel has read them.
  const Index stretch = rows.row == 1 ? 8 : depth;
  for (Index k = 0; k < depth; k += stretch) {
    if (rows.row == 1)  // the processor does not foresee lines so far apart
      for (Index next = k + 2 * stretch; next < std::min(k + 3 * stretch, depth); next++)
        for (Index i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(&rows.data[next * rows.column + i]);
    for (Index p = 0; p * WIDTH < count; p++)
      pack<WIDTH>(rows.from(p * WIDTH, k), std::min<Index>(WIDTH, count - p * WIDTH), std::min(stretch, depth - k),
                  to + p * panel + k / PER<T> * WIDTH);
  }
}

// What a tile's sums begin with, and what becomes of them.
enum class Sums {
  NEW,       // to = the chains of these steps
  ADDED,     // to = before + the chains of these steps
  CONTINUED  // to = the chains that stand in `before`, prolonged by these steps
};

// The chains of `steps` cells of k, for ROWS × WIDE vectors of sums: A's cell of row i and step s is
// a[i · ROW + s · STEP]. Panels of B stay COLUMNS wide; a tile of fewer vectors computes their first columns.
template <typename T, Sums SUMS, Index ROW = 1, Index STEP = ROWS, int WIDE = VECTORS>
__attribute__((noinline)) void tile(const Wide<T>* a, const Wide<T>* b, Index steps, const Wide<T>* before,
                                    Index ld_before, Wide<T>* to, Index ld) {
  using W = Wide<T>;
  Vector<W> sums[ROWS][WIDE] = {};
  if constexpr (SUMS != Sums::NEW)
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < WIDE; v++) {
        const W* at = before + i * ld_before + v * LANES<W>;
        if constexpr (SUMS == Sums::CONTINUED)
          sums[i][v] = load_vector(at);
        else
          __builtin_prefetch(at);
      }
  for (Index step = 0; step < steps; step++, a += STEP, b += COLUMNS<W>) {
    Vector<W> of_b[WIDE];
    for (int v = 0; v < WIDE; v++) {
      of_b[v] = load_vector(b + v * LANES<W>);
      __builtin_prefetch(b + AHEAD * COLUMNS<W> + v * LANES<W>);
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const Vector<W> of_a = in_all_lanes(a[i * ROW]);
#pragma GCC unroll 4
      for (int v = 0; v < WIDE; v++) sums[i][v] = link<T>(of_a, of_b[v], sums[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int v = 0; v < WIDE; v++) {
      Vector<W> sum = sums[i][v];
      if constexpr (SUMS == Sums::ADDED) sum = load_vector(before + i * ld_before + v * LANES<W>) + sum;
      store_vector(to + i * ld + v * LANES<W>, sum);
    }
}

// The chains over all of `depth`, chunk by chunk: a and b packed, the sums into `to`
template <typename T, Index ROW = 1, Index STEP = ROWS, int WIDE = VECTORS>
void tile_of_chunks(const Wide<T>* a, const Wide<T>* b, Index depth, Wide<T>* to, Index ld) {
  for (Index k = 0; k < depth; k += CHUNK) {
    const Index steps = cells<T>(std::min(CHUNK, depth - k)), at = k / PER<T>;
    if (k == 0)
      tile<T, Sums::NEW, ROW, STEP, WIDE>(a, b, steps, nullptr, 0, to, ld);
    else
      tile<T, Sums::ADDED, ROW, STEP, WIDE>(a + at * STEP, b + at * COLUMNS<Wide<T>>, steps, to, ld, to, ld);
  }
}

// Shares out tasks among the threads of a parallel region. Each begins with its own share of them, so that it finds in
// its caches what it had there before, and then takes over what others have not begun.
class Tasks {
 public:
  explicit Tasks(Index threads) : begun_(threads) {}
  // do_task(n) for each n in [0, count); called by all threads
  template <typename Do> void share_out(Index count, Do do_task) {
    const Index threads = omp_get_num_threads();
    for (Index t = 0; t < threads; t++) {
      const Index share = (omp_get_thread_num() + t) % threads, first = count * share / threads;
      const Index end = count * (share + 1) / threads;
      for (Index n; (n = first + begun_[share].count++) < end;) do_task(n);
    }
  }
  // By each thread, with a barrier before it and another before the next share_out
  void begin_again() { begun_[omp_get_thread_num()].count = 0; }

 private:
  struct alignas(64) Begun {
    std::atomic<Index> count{0};
  };
  std::vector<Begun> begun_;
};

// C (M, N), its rows `ld` apart, = A (M, K) · B (K, N), rounded to C's type. Called outside of parallel regions.
//
// The operand with fewer rows or columns in C is shared: it is packed once for all threads, strip by strip, some chunks
// of a strip at a time. A task is a part of the other operand, which it packs itself, and of C. So a thread seldom
// reads what another has written, which takes long where they have no cache in common.
//
// done(first, last) is called once these rows of C are complete, if possible by the thread that has them in its cache.
template <typename T, typename To, typename Done>
void product(Index M, Index N, Index K, Matrix<T> A, Matrix<T> B, To* C, Index ld, Done done) {
  using W = Wide<T>;
  constexpr Index NR = COLUMNS<W>, STRIP = 4096, PACKED = 1 << 20, TASKS_PER_THREAD = 12, WIDEST_TASK = 96;
  constexpr bool SUMS_IN_C = std::is_same_v<To, W>;
  if (M == 0 || N == 0) return;
  const Index threads = omp_get_max_threads();
  const bool by_rows = M >= N || ceil_div(N, NR) < threads;  // a task has rows of A; otherwise columns of B
  const Index shared_panel = by_rows ? NR : ROWS, shared_panels = ceil_div(by_rows ? N : M, shared_panel);
  const Index own_panel = by_rows ? ROWS : NR, own_panels = ceil_div(by_rows ? M : N, own_panel);
  // Strips of about the same size. The chunks packed at once have some PACKED numbers. Where C cannot hold the sums so
  // far, they are all chunks, and strips are narrower for it.
  const Index whole_depth = ceil_div(std::max<Index>(K, 1), CHUNK) * CHUNK;
  const Index widest = SUMS_IN_C ? STRIP : std::clamp(4 * PACKED / whole_depth, shared_panel, STRIP);
  const Index strip = ceil_div(shared_panels, ceil_div(shared_panels, widest / shared_panel)) * shared_panel;
  const Index together = SUMS_IN_C ? std::max<Index>(PACKED / (strip * CHUNK), 1) * CHUNK : whole_depth;
  // A task: small enough for its operand to stay in the cache, and for all threads to end at about the same time.
  const Index wanted = threads == 1 ? 1 : TASKS_PER_THREAD * threads;
  const Index own = std::clamp<Index>(own_panels / wanted, 1, WIDEST_TASK / own_panel) * own_panel;

  const Index shared_extent = by_rows ? N : M, own_extent = by_rows ? M : N;
  const Buffer<W> shared = buffer<W>(strip * cells<T>(std::min(K, together)));
  const bool whole_rows = by_rows && strip >= N;  // a task has all of its rows
  Tasks packing(threads), computing(threads);
#pragma omp parallel if (M * N * K >= 32768)
  {
    arithmetic_as_defined();
    const Buffer<W> own_packed = buffer<W>(own * cells<T>(std::min(K, CHUNK)));
    const Buffer<W> sums = buffer<W>(SUMS_IN_C || K <= CHUNK ? 0 : own * strip);
    alignas(64) W out[ROWS * NR];
    auto depth = [&](Index k) { return std::min(CHUNK, K - k); };
    auto steps = [&](Index k) { return cells<T>(depth(k)); };
    auto operand = [&](bool is_a, Index at, Index k) { return is_a ? A.from(at, k) : B.from(k, at).transposed(); };
    auto pack_operand = [&](bool is_a, Index at, Index count, Index k, W* to) {
      if (is_a)
        pack_panels<ROWS>(operand(is_a, at, k), count, depth(k), to);
      else
        pack_panels<NR>(operand(is_a, at, k), count, depth(k), to);
    };
    // Chunk k of the tile (i, j), of packed a and b; `place` is the tile's in sums, whose rows are ld_sums apart.
    auto add_chunk = [&](Index i, Index j, Index k, const W* a, const W* b, Index place, Index ld_sums) {
      const Index here = std::min<Index>(ROWS, M - i), wide = std::min(NR, N - j);
      W *before = nullptr, *to = out;
      if constexpr (SUMS_IN_C) {
        if (here == ROWS && wide == NR) to = before = C + i * ld + j, ld_sums = ld;
      } else if (K > CHUNK) {
        before = sums.get() + place;
        if (k + CHUNK < K) to = before;
      }
      const Index ld_to = to == out ? NR : ld_sums;
      if (k == 0 || !before)
        tile<T, Sums::NEW>(a, b, steps(k), nullptr, 0, to, ld_to);
      else
        tile<T, Sums::ADDED>(a, b, steps(k), before, ld_sums, to, ld_to);
      if (to != out) return;
      for (Index r = 0; r < here; r++) {
        To* row = C + (i + r) * ld + j;
        const bool adds = !before && k > 0;  // a tile at the edge of C
        for (Index c = 0; c < wide; c++) store(&row[c], adds ? load(row[c]) + out[r * NR + c] : out[r * NR + c]);
      }
    };

    for (Index first = 0; first < shared_extent; first += strip)
      for (Index begin = 0; begin < K || begin == 0; begin += together) {
        const Index last = std::min(first + strip, shared_extent), end = std::min(begin + together, K);
        const Index lines = by_rows ? NR : 4 * ROWS;  // neighbouring columns or rows that fill lines of the cache
        auto chunk = [&](Index k) { return shared.get() + cells<T>(k - begin) * strip; };
        packing.share_out(ceil_div(last - first, lines), [&](Index n) {
          const Index at = n * lines, count = std::min(lines, last - first - at);
          for (Index k = begin; k < end; k += CHUNK)
            pack_operand(!by_rows, first + at, count, k, chunk(k) + at * steps(k));
        });
#pragma omp barrier
        packing.begin_again();
        computing.share_out(ceil_div(own_extent, own), [&](Index n) {
          const Index at = n * own, count = std::min(own, own_extent - at);
          const Index i0 = by_rows ? at : first, i1 = by_rows ? at + count : last;
          const Index j0 = by_rows ? first : at, j1 = by_rows ? last : at + count, ld_sums = by_rows ? strip : own;
          for (Index k = begin; k < end || k == 0; k += CHUNK) {
            pack_operand(by_rows, at, count, k, own_packed.get());
            const W *a = by_rows ? own_packed.get() : chunk(k), *b = by_rows ? chunk(k) : own_packed.get();
            // What is to be packed next: the next chunk, or the next task's first.
            const bool task_goes_on = k + CHUNK < end;
            const Index next = task_goes_on ? at : at + own, next_k = task_goes_on ? k + CHUNK : begin;
            Prefetch<T> prefetch(operand(by_rows, next, next_k), std::clamp<Index>(own_extent - next, 0, own),
                                 depth(next_k), ceil_div(i1 - i0, ROWS) * ceil_div(j1 - j0, NR));
            for (Index i = i0; i < i1; i += ROWS) {
              for (Index j = j0; j < j1; j += NR) {
                prefetch.some();
                add_chunk(i, j, k, a + (i - i0) * steps(k), b + (j - j0) * steps(k), (i - i0) * ld_sums + j - j0,
                          ld_sums);
              }
              if (whole_rows && k + CHUNK >= K) done(i, std::min(i + ROWS, i1));
            }
          }
        });
#pragma omp barrier
        computing.begin_again();
      }
    const Index thread = omp_get_thread_num(), team = omp_get_num_threads();
    if (!whole_rows) done(M * thread / team, M * (thread + 1) / team);
  }
}
template <typename T, typename To>
void product(Index M, Index N, Index K, Matrix<T> A, Matrix<T> B, To* C, Index ld) {
  product<T, To>(M, N, K, A, B, C, ld, [](Index, Index) {});
}
