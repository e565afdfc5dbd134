// Causal attention in one pass, forwards and backwards: a pair of (row of the batch, head of keys and values) is a
// thread's task, and its scores never leave the cache. The R = H / G query heads that share keys and values are
// neighbouring rows of one product: row n is query head n mod R at the time n / R.
//
// A tile of QUERIES rows stands transposed, the scores of a key next to each other. So softmax and its gradient go over
// keys in order, in vectors of queries, and a tile is an operand of the next product as it lies, or once its numbers
// share cells. Products are those of products.h. Exception: the gradients of keys and values are one chain over all
// queries. Scores of the future are not computed, or are zeros at the beginning or the end of a chain. How many zeros
// there are depends on the tiles' sizes. Of a chain of finite numbers they change nothing but −0 to 0, so 0 is added to
// each result, which does so everywhere.

#include "kernels.h"

namespace {

constexpr Index QUERIES = 8 * ROWS;
static_assert(QUERIES % COLUMNS<float> == 0 && QUERIES % COLUMNS<double> == 0);

// Where heads stand in qkv and its gradient, (B, time, heads, K).
struct Sizes {
  Index time, H, G, K;
  Index shared() const { return H / G; }
  Index rows() const { return time * shared(); }
  Index heads() const { return H + 2 * G; }
  // of g: query head r; its keys' head (r = R); its values' (r = R + 1)
  Index head(Index g, Index r) const { return r < shared() ? g * shared() + r : H + g + (r - shared()) * G; }
};

// A tile of queries: the rows from `first` on, `count` of them, which see the first `keys` keys.
struct Tile {
  Index first, count, keys, shared;
  Tile(Index start, Sizes s)
      : first(start), count(std::min(QUERIES, s.rows() - start)), keys((start + count - 1) / s.shared() + 1),
        shared(s.shared()) {}
  Index time(Index c) const { return (first + c) / shared; }  // of row c of the tile
  Index place(Index c, Index bg, Index times) const {  // of row c, of the pair bg, in (B, H, times)
    return (bg * shared + (first + c) % shared) * times + time(c);
  }
  Index seen(Index end) const { return time(std::min(end, count) - 1) + 1; }  // keys that the rows before `end` see
  Index key_rows() const { return ceil_div(keys, ROWS) * ROWS; }  // keys by whole tiles of products
};

// Fetches numbers of a head at a later time, to be read or written. The processor does not foresee them: those of one
// head lie far apart.
constexpr Index TIMES_AHEAD = 8;
template <int IS_WRITTEN, typename T> inline void fetch(const T* from, Index count) {
  for (Index i = 0; i < count; i += 64 / static_cast<Index>(sizeof(T))) __builtin_prefetch(from + i, IS_WRITTEN);
}

// A pair's queries (rows, K), keys and values (time, K), of qkv + bias, turned.
template <typename T, typename W> struct Pair {
  const Sizes s;
  Buffer<T> q, k, v;

  explicit Pair(Sizes sizes)
      : s(sizes), q(buffer<T>(s.rows() * s.K)), k(buffer<T>(s.time * s.K)), v(buffer<T>(s.time * s.K)) {}

  void read(const T* qkv, const W* bias, const W* turns, Index b, Index g) {
    const Index R = s.shared(), K = s.K;
    for (Index t = 0; t < s.time; t++)
      for (Index r = 0; r < R + 2; r++) {
        const Index head = s.head(g, r);
        const T* from = qkv + ((b * s.time + t) * s.heads() + head) * K;
        fetch<0>(from + TIMES_AHEAD * s.heads() * K, K);
        T* to = r < R ? &q[(t * R + r) * K] : r == R ? &k[t * K] : &v[t * K];
        if (bias) {
          for (Index i = 0; i < K; i++) store(&to[i], load(from[i]) + bias[head * K + i]);
          from = to;
        }
        if (turns && r <= R)
          turn(from, turns + t * K, W(1), K, to);
        else if (!bias)
          std::memcpy(to, from, K * sizeof(T));
      }
  }
};

// The rows of `from` (count, K), packed by WIDTH; or its columns, of which a panel takes the room of `depth` rows.
template <int WIDTH, typename T> void pack_rows(const T* from, Index count, Index K, Wide<T>* to) {
  for (Index i = 0; i < count; i += WIDTH)
    pack<WIDTH>(Matrix<T>{from + i * K, K, 1}, std::min<Index>(WIDTH, count - i), K, to + i * cells<T>(K));
}
template <typename T> void pack_columns(const T* from, Index count, Index K, Index depth, Wide<T>* to) {
  constexpr Index NR = COLUMNS<Wide<T>>;
  for (Index i = 0; i < K; i += NR)
    pack<NR>(Matrix<T>{from + i, 1, K}, std::min(NR, K - i), count, to + i * cells<T>(depth));
}

// What a thread computes tiles with: scores (keys, QUERIES) and their like, and rows of results.
template <typename T> struct Room {
  using W = Wide<T>;
  static constexpr Index NR = COLUMNS<W>;
  const Index K, time, ld;  // ld: K by whole panels
  Buffer<W> out;

  explicit Room(Sizes s) : K(s.K), time(s.time), ld(ceil_div(K, NR) * NR), out(buffer<W>(ROWS * ld)) {}
  Index tile_size() const { return (time + ROWS) * QUERIES; }
  Buffer<W> row_panels() const { return buffer<W>((time + ROWS) * cells<T>(K)); }
  Buffer<W> column_panels(Index depth) const { return buffer<W>(ld * cells<T>(depth)); }

  // to (keys, QUERIES) = left · queriesᵀ, both packed rows of K; of the panel of queries at c the keys that it sees
  void scores(const W* left, const W* queries, Index c, Index seen, W* to) const {
    const Index deep = cells<T>(K);
    for (Index t = 0; t < seen; t += ROWS)
      tile_of_chunks<T>(left + t * deep, queries + c * deep, K, to + t * QUERIES + c, QUERIES);
  }

  // put(c, sums): row c of sᵀ · right, with s (keys, QUERIES) by keys and right's columns packed, (time, K)
  template <typename Put> void times_keys(const W* s, const W* right, Tile tile, Put put) const {
    for (Index c = 0; c < tile.count; c += ROWS) {
      const Index end = std::min<Index>(c + ROWS, tile.count), seen = tile.seen(end);
      for (Index i = 0; i < K; i += NR) {
        const W* columns = right + i * cells<T>(time);
        W* sums = out.get() + i;
        if (K - i > LANES<W>)
          tile_of_chunks<T, 1, QUERIES>(s + c, columns, seen, sums, ld);
        else
          tile_of_chunks<T, 1, QUERIES, 1>(s + c, columns, seen, sums, ld);
      }
      for (Index n = c; n < end; n++) put(n, out.get() + (n - c) * ld);
    }
  }

  // The chains in to (keys, ld) go on with s · right, s (keys, QUERIES) by queries and right (QUERIES, K) by packed
  // columns; each key meets only the queries that see it.
  void add_times_queries(const W* s, const W* right, Tile tile, W* to) const {
    constexpr Index ROW = cells<T>(QUERIES);
    for (Index t = 0; t < tile.keys; t += ROWS) {
      const Index first = std::max<Index>(0, t * tile.shared - tile.first) / PER<T>;
      const Index steps = cells<T>(tile.count) - first;
      for (Index i = 0; i < K; i += NR) {
        const W *rows = s + t * ROW + first, *columns = right + i * ROW + first * NR;
        W* sums = to + t * ld + i;
        if (K - i > LANES<W>)
          ::tile<T, Sums::CONTINUED, ROW, 1>(rows, columns, steps, sums, ld, sums, ld);
        else
          ::tile<T, Sums::CONTINUED, ROW, 1, 1>(rows, columns, steps, sums, ld, sums, ld);
      }
    }
  }
};

// COLUMNS queries side by side, of a tile at column c, and the keys that any of them sees.
template <typename W> struct Panel {
  static constexpr Index NR = COLUMNS<W>;
  Index at, seen;
  std::int32_t own[NR];  // each query's time; what lies beyond the rows sees nothing
  Panel(Tile tile, Index c) : at(c), seen(tile.seen(c + NR)) {
    for (Index i = 0; i < NR; i++) own[i] = c + i < tile.count ? static_cast<std::int32_t>(tile.time(c + i)) : -1;
  }

  // each(place in the tile, i, whether query i sees the key t) of one key. What a query does not see is computed, too,
  // and then left out: a condition around it would keep the compiler from vectors.
  template <typename Each> void key(Index t, Each each) const {
#pragma omp simd
    for (Index i = 0; i < NR; i++) each(t * QUERIES + at + i, i, static_cast<std::int32_t>(t) <= own[i]);
  }
  template <typename Each> void keys(Each each) const {
    for (Index t = 0; t < seen; t++) key(t, each);
  }
};

// A tile's numbers, rounded to T, as operands of products: by keys or by queries, of which as many as share a cell are
// neighbours. If a cell holds one number, both are the tile itself.
template <typename T> class Operand {
  using W = Wide<T>;
  static constexpr Index NR = COLUMNS<W>, P = PER<T>;

 public:
  Operand(const Room<T>& room, W* tile, bool by_keys, bool by_queries)
      : tile_(tile), keys_(buffer<W>(P > 1 && by_keys ? room.tile_size() : 0)),
        queries_(buffer<W>(P > 1 && by_queries ? room.tile_size() : 0)), by_keys_(by_keys), by_queries_(by_queries) {}
  const W* by_keys() const { return P == 1 ? tile_ : keys_.get(); }
  const W* by_queries() const { return P == 1 ? tile_ : queries_.get(); }

  // Of the first `keys` keys, each number of the operand: of(place, i), or 0 in the future. With one number to a cell,
  // it overwrites the tile's.
  template <typename Of> void set(const Panel<W>& panel, Index keys, Of of) {
    for (Index t = 0; t < keys; t += P) {
      W numbers[P][NR] = {};
      for (Index u = 0; u < P; u++)
        if (t + u < panel.seen)
          panel.key(t + u, [&](Index place, Index i, bool sees) {
            const W x = as_cell<T>(of(place, i));
            numbers[u][i] = sees ? x : W(0);
          });
      if constexpr (P == 1) {
        std::memcpy(tile_ + t * QUERIES + panel.at, numbers[0], sizeof numbers[0]);
      } else {
        auto pair = [](W first, W second) { return float_of(bits_of(first) | bits_of(second) >> 16); };
        if (by_keys_)
          for (Index i = 0; i < NR; i++) keys_[t / P * QUERIES + panel.at + i] = pair(numbers[0][i], numbers[1][i]);
        if (by_queries_)
          for (Index u = 0; u < P; u++)
            for (Index i = 0; i < NR / P; i++)
              queries_[((t + u) * QUERIES + panel.at) / P + i] = pair(numbers[u][P * i], numbers[u][P * i + 1]);
      }
    }
  }

 private:
  W* tile_;
  Buffer<W> keys_, queries_;
  bool by_keys_, by_queries_;
};

// Of a panel of the tile s: top, each query's largest score, and inverse, 1 / Σ exp(scale (s − top)); s becomes what
// is added up, and 0 in the future.
template <typename W> void softmax_of(const Panel<W>& panel, W* s, W scale, W* top, W* inverse) {
  constexpr Index NR = Panel<W>::NR;
  for (Index i = 0; i < NR; i++) top[i] = s[panel.at + i], inverse[i] = W(0);
  panel.keys([&](Index at, Index i, bool sees) { top[i] = sees && s[at] > top[i] ? s[at] : top[i]; });
  panel.keys([&](Index at, Index i, bool sees) {
    const W e = exp_of((s[at] - top[i]) * scale);
    s[at] = sees ? e : W(0);
    inverse[i] += s[at];
  });
  for (Index i = 0; i < NR; i++) inverse[i] = panel.own[i] < 0 ? W(0) : W(1) / inverse[i];
}

// y (B, time, H K) of qkv (B, time, H + 2 G = heads, K) + bias, queries and keys turned by turns. tops and inverses are
// each query's largest score and 1 / Σ exp(scale (scores − top)), for the backward. With keep, probabilities are
// dropped; where probabilities is given, they are written there before that.
template <typename T, typename W>
void attention_forward(const T* qkv /* B time heads K */, const W* bias /* heads K? */, const W* turns /* time K? */,
                       const std::uint8_t* keep /* B H time time? */, W keep_scale, Index B, Index time, Index H,
                       Index G, [[maybe_unused]] Index heads, Index K, T* y /* B time H K */, W* tops /* B H time */,
                       W* inverses /* B H time */, W* probabilities /* B H time time? */) {
  constexpr Index NR = COLUMNS<W>;
  const Sizes sizes{time, H, G, K};
  const Index R = sizes.shared(), rows = sizes.rows();
  const W scale = W(1) / std::sqrt(static_cast<W>(K));
  Tasks pairs(omp_get_max_threads());
#pragma omp parallel
  {
    arithmetic_as_defined();
    Pair<T, W> pair(sizes);
    Room<T> room(sizes);
    const Buffer<W> k_rows = room.row_panels(), v_columns = room.column_panels(time),
                    scores = buffer<W>(room.tile_size()), queries = buffer<W>(QUERIES * cells<T>(K));
    W* s = scores.get();
    Operand<T> operand(room, s, true, false);
    pairs.share_out(B * G, [&](Index bg) {
      const Index b = bg / G, g = bg % G;
      pair.read(qkv, bias, turns, b, g);
      pack_rows<ROWS>(pair.k.get(), time, K, k_rows.get());
      pack_columns(pair.v.get(), time, K, time, v_columns.get());
      for (Index first = 0; first < rows; first += QUERIES) {
        const Tile tile(first, sizes);
        pack_rows<NR>(&pair.q[first * K], tile.count, K, queries.get());
        auto place = [&](Index c) { return tile.place(c, bg, time); };
        for (Index c = 0; c < tile.count; c += NR) {
          const Panel<W> panel(tile, c);
          W top[NR], inverse[NR];
          room.scores(k_rows.get(), queries.get(), c, panel.seen, s);
          softmax_of(panel, s, scale, top, inverse);
          const Index here = std::min(NR, tile.count - c);
          for (Index i = 0; i < here; i++) tops[place(c + i)] = top[i], inverses[place(c + i)] = inverse[i];
          if (probabilities || keep) {
            panel.keys([&](Index at, Index i, bool) { s[at] *= inverse[i]; });
            std::fill_n(inverse, NR, W(1));
          }
          if (probabilities)
            for (Index i = 0; i < here; i++)
              for (Index t = 0; t < time; t++)
                probabilities[place(c + i) * time + t] = t < panel.seen ? s[t * QUERIES + c + i] : W(0);
          if (keep)
            for (Index i = 0; i < here; i++)
              for (Index t = 0; t < panel.seen; t++) {
                W& p = s[t * QUERIES + c + i];
                p = keep[place(c + i) * time + t] ? p * keep_scale : W(0);
              }
          operand.set(panel, tile.keys, [&](Index at, Index i) { return s[at] * inverse[i]; });
        }
        room.times_keys(operand.by_keys(), v_columns.get(), tile, [&](Index c, const W* sums) {
          const Index n = first + c;
          T* to = y + ((b * time + n / R) * H + g * R + n % R) * K;
          for (Index i = 0; i < K; i++) store(&to[i], sums[i] + W(0));
        });
      }
    });
  }
}

// dqkv (B, time, heads, K), and dbias (heads, K), its column sums, of dy (B, time, H K): see
// ops.causal_attention_backward. The probabilities are computed again.
template <typename T, typename W>
void attention_backward(const T* dy /* B time H K */, const T* qkv /* B time heads K */, const W* bias /* heads K? */,
                        const W* turns /* time K? */, const std::uint8_t* keep /* B H time time? */, W keep_scale,
                        const W* tops /* B H time */, const W* inverses /* B H time */, Index B, Index time, Index H,
                        Index G, Index heads, Index K, T* dqkv /* B time heads K */, W* dbias /* heads K? */) {
  constexpr Index NR = COLUMNS<W>;
  const Sizes sizes{time, H, G, K};
  const Index R = sizes.shared(), rows = sizes.rows();
  const W scale = W(1) / std::sqrt(static_cast<W>(K));
  std::vector<W> sums(dbias ? B * heads * K : 0);  // dbias, of each row of the batch
  Tasks pairs(omp_get_max_threads());
#pragma omp parallel
  {
    arithmetic_as_defined();
    Pair<T, W> pair(sizes);
    Room<T> room(sizes);
    const Index sums_of_keys = (time + ROWS) * room.ld;
    const Buffer<W> k_rows = room.row_panels(), v_rows = room.row_panels(), k_columns = room.column_panels(time),
                    columns = room.column_panels(QUERIES), probabilities = buffer<W>(room.tile_size()),
                    d_scores = buffer<W>(room.tile_size()), queries = buffer<W>(QUERIES * cells<T>(K)),
                    dy_queries = buffer<W>(QUERIES * cells<T>(K)), dk = buffer<W>(sums_of_keys),
                    dv = buffer<W>(sums_of_keys);
    const Buffer<T> dy_rows = buffer<T>(rows * K);
    W *p = probabilities.get(), *ds = d_scores.get();
    Operand<T> of_p(room, p, false, true), of_ds(room, ds, true, true);
    // one head's gradient at one time to its place, turned back
    auto write = [&](Index b, Index t, Index head, bool turned, const W* from) {
      T* to = dqkv + ((b * time + t) * heads + head) * K;
      fetch<1>(to + TIMES_AHEAD * heads * K, K);
      if (turns && turned)
        turn(from, turns + t * K, W(-1), K, to);
      else
        for (Index i = 0; i < K; i++) store(&to[i], from[i] + W(0));
      if (dbias)
        for (Index i = 0; i < K; i++) sums[(b * heads + head) * K + i] += load(to[i]);
    };
    pairs.share_out(B * G, [&](Index bg) {
      const Index b = bg / G, g = bg % G;
      pair.read(qkv, bias, turns, b, g);
      for (Index t = 0; t < time; t++) {
        const T* from = dy + ((b * time + t) * H + g * R) * K;
        fetch<0>(from + TIMES_AHEAD * H * K, R * K);
        std::memcpy(&dy_rows[t * R * K], from, R * K * sizeof(T));
      }
      pack_rows<ROWS>(pair.k.get(), time, K, k_rows.get());
      pack_rows<ROWS>(pair.v.get(), time, K, v_rows.get());
      pack_columns(pair.k.get(), time, K, time, k_columns.get());
      std::fill_n(dk.get(), sums_of_keys, W(0));
      std::fill_n(dv.get(), sums_of_keys, W(0));
      for (Index first = 0; first < rows; first += QUERIES) {
        const Tile tile(first, sizes);
        pack_rows<NR>(&pair.q[first * K], tile.count, K, queries.get());
        pack_rows<NR>(&dy_rows[first * K], tile.count, K, dy_queries.get());
        auto place = [&](Index c) { return tile.place(c, bg, time); };
        for (Index c = 0; c < tile.count; c += NR) {
          const Panel<W> panel(tile, c);
          const Index here = std::min(NR, tile.count - c);
          W top[NR] = {}, inverse[NR] = {}, inner[NR] = {};
          for (Index i = 0; i < here; i++) top[i] = tops[place(c + i)], inverse[i] = inverses[place(c + i)];
          room.scores(k_rows.get(), queries.get(), c, panel.seen, p);
          room.scores(v_rows.get(), dy_queries.get(), c, panel.seen, ds);
          auto drop = [&](W* values) {
            for (Index i = 0; i < here; i++)
              for (Index t = 0; t < panel.seen; t++) {
                W& x = values[t * QUERIES + c + i];
                x = keep[place(c + i) * time + t] ? x * keep_scale : W(0);
              }
          };
          if (keep) drop(ds);
          panel.keys([&](Index at, Index i, bool sees) {
            const W e = exp_of((p[at] - top[i]) * scale) * inverse[i];
            p[at] = sees ? e : W(0);
            inner[i] = mul_add(ds[at], p[at], inner[i]);
          });
          of_ds.set(panel, tile.key_rows(), [&](Index at, Index i) { return scale * p[at] * (ds[at] - inner[i]); });
          if (keep) drop(p);
          of_p.set(panel, tile.key_rows(), [&](Index at, Index) { return p[at]; });
        }
        room.times_keys(of_ds.by_keys(), k_columns.get(), tile, [&](Index c, const W* dq) {
          write(b, tile.time(c), sizes.head(g, (first + c) % R), true, dq);
        });
        pack_columns(&pair.q[first * K], tile.count, K, QUERIES, columns.get());
        room.add_times_queries(of_ds.by_queries(), columns.get(), tile, dk.get());
        pack_columns(&dy_rows[first * K], tile.count, K, QUERIES, columns.get());
        room.add_times_queries(of_p.by_queries(), columns.get(), tile, dv.get());
      }
      for (Index t = 0; t < time; t++) {
        write(b, t, H + g, true, &dk[t * room.ld]);
        write(b, t, H + G + g, false, &dv[t * room.ld]);
      }
    });
  }
  if (dbias) {
    std::fill_n(dbias, heads * K, W(0));
    for (Index b = 0; b < B; b++)
      for (Index i = 0; i < heads * K; i++) dbias[i] += sums[b * heads * K + i];
  }
}

}  // namespace

extern "C" {
EXPORT(attention_forward) EXPORT(attention_backward)
}
