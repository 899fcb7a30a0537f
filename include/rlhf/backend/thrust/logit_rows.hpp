#pragma once

#include "rlhf/backend/host/row_reduce.hpp"
#include "rlhf/backend/thrust/block_lanes.hpp"
#include "rlhf/backend/thrust/sixteen_bytes.hpp"
#include "rlhf/backend/thrust/token_pass.hpp"

// row_reduce on a device: a block of threads takes a row of logits, or several short ones, into
// shared memory and keeps it there between the statistics and the gradient, with the arithmetic of
// the host's pass in the same order. 8 threads take a tile of the row, each two of its 16 lanes.
// Exponentials are computed again for the gradient: that costs less than the memory that would hold
// them.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Where the tokens of each row begin among all counted ones. One block.
struct rank_of_rows {
  const double* counts;  // as count_lanes leaves them
  index rows;
  index* first;  // rows + 1

  static constexpr block_shape shape{most_block_threads, most_block_threads * sizeof(index)};

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index) const {
    auto* const sum = block.template shared<index>(0);
    const index each = (rows + block.threads() - 1) / block.threads();
    block.each([&](int t) {
      index n = 0;
      for (index i = t * each; i < (t + 1) * each && i < rows; ++i) n += count(i);
      sum[t] = n;
    });
    block.each([&](int t) {
      index n = 0;
      for (int k = 0; k < t; ++k) n += sum[k];
      for (index i = t * each; i < (t + 1) * each && i < rows; ++i) {
        first[i] = n;
        n += count(i);
      }
      if (t + 1 == block.threads()) first[rows] = n;
    });
  }

 private:
  RLHF_HOST_DEVICE index count(index i) const { return static_cast<index>(counts[3 * i + 1]); }
};

/// The rank of each counted token, in memory order. A block for each row.
template <class Space>
struct rank_of_tokens {
  token_domain<Space> domain;
  const index* first;
  index slots;
  index* rank;

  static constexpr block_shape shape{128, 128 * sizeof(index)};

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index i) const {
    auto* const sum = block.template shared<index>(0);
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    const index slot = domain.kind == arrangement::packed ? domain.begin(i) : i * domain.columns;
    const index length = domain.length(i);
    const index each = (length + block.threads() - 1) / block.threads();
    block.each([&](int t) {
      index n = 0;
      for (index j = t * each; j < (t + 1) * each && j < length; ++j)
        n += domain.mask.at(at + j * step) > 0 ? 1 : 0;
      sum[t] = n;
    });
    block.each([&](int t) {
      index n = first[i];
      for (int k = 0; k < t; ++k) n += sum[k];
      for (index j = t * each; j < (t + 1) * each && j < length; ++j)
        if (domain.mask.at(at + j * step) > 0) {
          rank[slot + j] = n < slots ? n : slots - 1;  // offsets that overlap are refused later
          ++n;
        }
    });
  }
};

/// How rows of logits are laid out in the shared memory of a block: from sizes alone. A window of
/// tiles is there at a time; where it holds a whole row, the row is read from memory once. What the
/// gradient needs of each tile is there too, unless a row has so many that it goes to the workspace:
/// so any number of classes fits any GPU.
struct logit_plan {
  static constexpr int team = 8;  // threads of a tile
  static constexpr int seekers = static_cast<int>(row_tile / virtual_lanes);
  static constexpr std::size_t most_slope_bytes = std::size_t{16} << 10;

  int rows = 1;       // a block takes at a time
  int window = 1;     // tiles of each
  int pitch = 0;      // elements from tile to tile: no two teams of a warp meet in one bank
  index tiles = 1;    // of a row
  int lane_sets = 2;  // kinds of lane sums
  int slopes = 0;     // tiles of a row whose slopes are in shared memory
  std::size_t state = 0, slope = 0, data = 0, most = 0, lane = 0, sum = 0, best = 0, seek = 0,
              apart = 0;
  block_shape shape = {};

  struct sizes {
    std::size_t element, compute, state, slope, sum;
  };

  /// Whether the slopes of a row's tiles go to the workspace.
  static bool slopes_apart(index classes, bool gradient, const sizes& bytes) {
    return gradient &&
           static_cast<std::size_t>(row_tiles(classes)) > most_slope_bytes / bytes.slope;
  }

  static logit_plan over(index classes, index slots, bool gradient, bool squares, bool mean,
                         const sizes& bytes, std::size_t available) {
    logit_plan p;
    const index one = classes < row_tile ? classes : row_tile;
    p.tiles = row_tiles(classes) > 0 ? row_tiles(classes) : 1;
    p.pitch =
        static_cast<int>((one + virtual_lanes - 1) / virtual_lanes * virtual_lanes + virtual_lanes);
    p.lane_sets = 2 + (squares ? 1 : 0) + (mean ? 2 : 0);
    if (gradient && !slopes_apart(classes, gradient, bytes)) p.slopes = static_cast<int>(p.tiles);
    // Several blocks share a multiprocessor, so that one reads while another computes.
    constexpr std::size_t modest = std::size_t{40} << 10;
    const std::size_t tile = static_cast<std::size_t>(p.pitch) * bytes.element;
    const auto fits = static_cast<index>(modest / tile);
    if (p.tiles <= fits) {
      const index by_size = fits / p.tiles, by_threads = 32 / p.tiles,
                  by_rows = (slots + 263) / 264;
      p.rows = static_cast<int>(smallest(by_size, by_threads, by_rows));
      p.window = static_cast<int>(p.tiles);
    } else if (gradient) {
      p.window = static_cast<int>(p.tiles);
      for (p.place(bytes); p.shape.shared_bytes > available && p.window > 1; p.place(bytes)) {
        const std::size_t over = p.shape.shared_bytes - available;
        const auto less = static_cast<int>(over / (tile + bytes.sum + 64)) + 1;
        p.window = p.window > less ? p.window - less : 1;
      }
    } else {
      const index rounds = (p.tiles + fits - 1) / fits;
      p.window = static_cast<int>((p.tiles + rounds - 1) / rounds);
    }
    p.place(bytes);
    const int wanted = (p.rows * p.window * team + 31) / 32 * 32;
    p.shape.threads = wanted < 64 ? 64 : wanted < most_block_threads ? wanted : most_block_threads;
    return p;
  }

 private:
  static index smallest(index a, index b, index c) {
    const index x = a < b ? a : b, y = x < c ? x : c;
    return y < 1 ? 1 : y;
  }
  void place(const sizes& bytes) {
    shared_plan plan;
    const index slots = index{rows} * window;
    state = plan.take(rows, bytes.state);
    slope = plan.take(index{rows} * slopes, bytes.slope);
    data = plan.take(slots * pitch, bytes.element);
    most = plan.take(slots * team, bytes.compute);
    lane = plan.take(slots * lane_sets * virtual_lanes, bytes.compute);
    sum = plan.take(slots, bytes.sum);
    best = plan.take(rows * virtual_lanes, bytes.compute);
    seek = plan.take(rows * seekers, sizeof(int));
    apart = plan.take(rows * seekers, bytes.compute);
    shape.shared_bytes = plan.used;
  }
};

/// A tile's part of its row's statistics.
struct logit_tile_sums {
  double top, sum, weighted, squares, away, number;
  double shift, factor;  // between its maximum and that of the tiles before it
};

/// exp(d) for d in (−87, 0] by 2^x. What d·log2(e) loses by rounding comes back as a factor, so the
/// error is that of 2^x and one unit of the last place, whatever d is.
template <class Exp2>
RLHF_HOST_DEVICE float exp_by_exp2(float d, const Exp2& exp2) {
  constexpr float log2_e = 0x1.715476p+0f, log2_e_rest = 0x1.4ae0cp-26f, log_2 = 0x1.62e43p-1f;
  const float x = d * log2_e;
  const float lost = __builtin_fmaf(d, log2_e_rest, __builtin_fmaf(d, log2_e, -x));
  const float y = exp2(x);
  return __builtin_fmaf(y, lost * log_2, y);
}

#if defined(__CUDACC__)
/// Within 2 units of the last place.
struct hardware_exp2 {
  __device__ float operator()(float x) const {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
};
#endif

template <class K, storage L, class Space>
struct logit_pass {
  using T = compute_of<L>;
  static constexpr int most_threads = most_block_threads;
  static constexpr unsigned least_blocks = sizeof(T) == sizeof(float) ? 3 : 2;

  K kernel;
  row_arguments<L, Space> a;
  const index* rank;  // null: the slot itself
  index slots;
  double* partial;  // by rank, in the order of figure_row
  logit_plan plan;
  double inverse;  // of the temperature
  struct tile_slope;
  tile_slope* slopes = nullptr;  // of each tile, where they do not fit shared memory

  /// A row between two phases. Sums are relative to the maximum so far; the tile that holds it
  /// keeps its lanes, see the host's row_pass.
  struct row_state {
    row_token<K> token;
    const L* logits;
    L* gradient;
    index label;
    double top, others, weighted_sum, squares, offsets, counted, best_sum, rest, mean_d;
    index best, largest;
    bool counts, broken, few, seeks, fills;
    bool full;
    T log_slope, uniform, at_label, filler;
  };
  struct tile_slope {  // to a tile's gradient
    T top, scale, p_slope;
  };
  static constexpr logit_plan::sizes bytes{sizeof(L), sizeof(T), sizeof(row_state),
                                           sizeof(tile_slope), sizeof(logit_tile_sums)};

  RLHF_HOST_DEVICE index jobs() const { return (slots + plan.rows - 1) / plan.rows; }

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index job) const {
    pass_of<Block>{*this, block, job * plan.rows}.run();
  }

 private:
  static constexpr int lanes = static_cast<int>(virtual_lanes);
  static constexpr int team = logit_plan::team;
  static constexpr int lanes_each = lanes / team;
  static constexpr int seekers = logit_plan::seekers;
  static constexpr int tile_size = static_cast<int>(row_tile);

  RLHF_HOST_DEVICE row_place place(index k) const {
    const token_domain<Space>& domain = a.domain;
    if (domain.kind != arrangement::packed) return {k / domain.columns, 0, k % domain.columns};
    index low = 0, high = domain.rows;  // the last sequence that begins at or before k
    while (high - low > 1) {
      const index middle = low + (high - low) / 2;
      (domain.begin(middle) <= k ? low : high) = middle;
    }
    return {low, domain.begin(low), k - domain.begin(low)};
  }
  RLHF_HOST_DEVICE static T distance(T x, T tile_top, T scale) {
    const T lowest = sizeof(T) == sizeof(float) ? T(-87) : T(-708);
    return (math::max)(math::detail::rounded_product(x - tile_top, scale), lowest);  // NaN passes
  }
  /// Of the hardware on a GPU, unless strict: a logit has no more than a dozen instructions before
  /// they take longer than its two bytes.
  RLHF_HOST_DEVICE static T exponential(T d) {
    const T lowest = sizeof(T) == sizeof(float) ? T(-87) : T(-708);
    if (d <= lowest) return T(0);
#if defined(__CUDA_ARCH__) && !defined(RLHF_STRICT)
    if constexpr (sizeof(T) == sizeof(float)) return exp_by_exp2(d, hardware_exp2());
#endif
    return math::first(math::exp_bounded(math::constant<math::scalar_lane<T>>(d)));
  }
  RLHF_HOST_DEVICE static double add_lanes(const T* lane) {
    double wide[lanes];
    for (int l = 0; l < lanes; ++l) wide[l] = static_cast<double>(lane[l]);
    for (int half = lanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) wide[l] += wide[l + half];
    return wide[0];
  }

  template <class Block>
  struct pass_of {
    const logit_pass& pass;
    const Block& block;
    index first_slot;

    const logit_plan& plan = pass.plan;
    const index classes = pass.a.classes;
    const double inverse = pass.inverse;
    const T inverse_narrow = static_cast<T>(pass.inverse);
    row_state* const state = block.template shared<row_state>(plan.state);
    tile_slope* const slope = pass.slopes != nullptr
                                  ? pass.slopes + first_slot * plan.tiles
                                  : block.template shared<tile_slope>(plan.slope);
    L* const data = block.template shared<L>(plan.data);
    T* const most = block.template shared<T>(plan.most);
    T* const lane = block.template shared<T>(plan.lane);
    logit_tile_sums* const sum = block.template shared<logit_tile_sums>(plan.sum);
    T* const best = block.template shared<T>(plan.best);
    int* const seek = block.template shared<int>(plan.seek);
    T* const apart = block.template shared<T>(plan.apart);
    const int threads = block.threads();

    // The tiles that are in shared memory.
    index from_tile = 0;
    int tiles = 0;

    RLHF_HOST_DEVICE void run() {
      block.each([&](int t) {
        for (int r = t; r < plan.rows; r += threads) open(r);
      });
      // The first window is the short one: the last stays for the gradient.
      const index whole = (plan.tiles - 1) / plan.window * plan.window;
      for (index end = plan.tiles - whole; end <= plan.tiles; end += plan.window) {
        from_tile = end > plan.window ? end - plan.window : 0;
        tiles = static_cast<int>(end - from_tile);
        fetch();
        add_up();
        block.each([&](int t) {
          for (int r = t; r < plan.rows; r += threads)
            if (state[r].counts) merge(r);
        });
      }
      finish();
      if (pass.a.gradient.data != nullptr) write();
    }

   private:
    RLHF_HOST_DEVICE T* lanes_of(int set, int slot) const {
      return lane + (set * plan.rows * plan.window + slot) * lanes;
    }
    RLHF_HOST_DEVICE L* tile_at(int r, int k) const {
      return data + (r * plan.window + k) * plan.pitch;
    }
    RLHF_HOST_DEVICE int size_of(index tile) const {
      const index n = classes - tile * row_tile;
      return static_cast<int>(n < row_tile ? n : row_tile);
    }
    /// Element v of row r, which a thread reads for itself.
    RLHF_HOST_DEVICE T logit(int r, index v) const {
      const index tile = v / row_tile;
      if (tile >= from_tile && tile < from_tile + tiles)
        return math::widen(tile_at(r, static_cast<int>(tile - from_tile)) + v % row_tile);
      return math::widen(state[r].logits + v * pass.a.logits.step);
    }

    RLHF_HOST_DEVICE void open(int r) const {
      row_state s = {};
      const index k = first_slot + r;
      if (k < pass.slots) {
        s.token.place = pass.place(k);
        const row_place& at = s.token.place;
        s.token.weight = 0;
        if (at.position >= 0 && at.position < pass.a.domain.length(at.sequence))
          s.token.weight = pass.a.domain.mask.at(pass.a.domain.mask_offset(at.sequence) +
                                                 at.position * pass.a.domain.mask_stride());
        s.counts = s.token.weight > 0;
        s.logits = pass.a.logits.at(at.sequence, at.begin, at.position);
        if (pass.a.gradient.data != nullptr)
          s.gradient = pass.a.gradient.at(at.sequence, at.begin, at.position);
        s.label = s.counts && pass.a.label ? pass.a.label_of(at) : -1;
        s.fills = !s.counts;
        if (!s.counts) pass.kernel.masked(at);
      }
      s.top = -__builtin_inf();
      s.best = -1;
      state[r] = s;
    }

    /// The window's logits into shared memory, with -inf behind a row's end.
    RLHF_HOST_DEVICE void fetch() const {
      constexpr int part = sixteen_bytes<L>::count;
      const index from = from_tile * row_tile;
      const auto n = static_cast<int>(
          (from_tile + tiles < plan.tiles ? (from_tile + tiles) * row_tile : classes) - from);
      const int whole = (n + lanes - 1) / lanes * lanes;
      const index step = pass.a.logits.step;
      block.each([&](int t) {
        for (int r = 0; r < plan.rows; ++r) {
          if (!state[r].counts) continue;
          const L* const row = state[r].logits + from * step;
          int done = 0;
          if (step == 1 && on_16_bytes(row)) {
            done = n / part * part;
            for (int v = t * part; v < done; v += threads * part)
              block.copy(tile_at(r, v / tile_size) + v % tile_size, row + v);
          }
          constexpr int ahead = 8;
          for (int v = done + t; v < whole; v += threads * ahead) {
            L x[ahead];
            for (int k = 0; k < ahead; ++k) {
              const int at = v + k * threads;
              if (at < n)
                x[k] = row[at * step];
              else
                math::narrow(&x[k], static_cast<T>(-__builtin_inf()));
            }
            for (int k = 0; k < ahead; ++k) {
              const int at = v + k * threads;
              if (at < whole) tile_at(r, at / tile_size)[at % tile_size] = x[k];
            }
          }
        }
      });
      block.fetched();
    }

    /// Maximum and lane sums of each tile of the window.
    RLHF_HOST_DEVICE void add_up() const {
      const bool squares_wanted = pass.a.squares_wanted, mean_wanted = pass.a.mean_wanted;
      const int work = plan.rows * tiles * team;
      block.each([&](int t) {
        for (int job = t; job < work; job += threads) {
          const int r = job / (tiles * team), k = job / team % tiles, member = job % team;
          if (!state[r].counts) continue;
          const L* const x = tile_at(r, k);
          const int n = steps_in_tile(k);
          T top[lanes_each];
          for (T& m : top) m = static_cast<T>(-__builtin_inf());
          for (int v = member * lanes_each; v < n; v += lanes)
            for (int l = 0; l < lanes_each; ++l) {
              const T y = math::widen(x + v + l);
              top[l] = y > top[l] ? y : top[l];
            }
          T all = top[0];
          for (int l = 1; l < lanes_each; ++l) all = top[l] > all ? top[l] : all;
          most[(r * plan.window + k) * team + member] = all;
        }
      });
      block.each([&](int t) {
        for (int job = t; job < work; job += threads) {
          const int r = job / (tiles * team), k = job / team % tiles, member = job % team;
          if (!state[r].counts) continue;
          const int slot = r * plan.window + k;
          const L* const x = tile_at(r, k);
          const int n = steps_in_tile(k);
          const T top = top_of(slot);
          T s[lanes_each] = {}, w[lanes_each] = {}, q[lanes_each] = {};
          for (int v = member * lanes_each; v < n; v += lanes)
            for (int l = 0; l < lanes_each; ++l) {
              const T d = distance(math::widen(x + v + l), top, inverse_narrow);
              const T e = exponential(d);
              s[l] = s[l] + e;
              w[l] = math::fma(e, d, w[l]);
              if (squares_wanted) q[l] = math::fma(e, e, q[l]);
            }
          for (int l = 0; l < lanes_each; ++l) {
            const int at = member * lanes_each + l;
            lanes_of(0, slot)[at] = s[l];
            lanes_of(1, slot)[at] = w[l];
            if (squares_wanted) lanes_of(2, slot)[at] = q[l];
          }
          if (!mean_wanted) continue;
          T away[lanes_each] = {}, number[lanes_each] = {};
          for (int v = member * lanes_each; v < n; v += lanes)
            for (int l = 0; l < lanes_each; ++l) {
              const T y = math::widen(x + v + l);
              const bool absent = y == static_cast<T>(-__builtin_inf());
              away[l] = away[l] + (absent ? T(0) : y - top);
              number[l] = number[l] + (absent ? T(0) : T(1));
            }
          for (int l = 0; l < lanes_each; ++l) {
            const int at = member * lanes_each + l;
            lanes_of(plan.lane_sets - 2, slot)[at] = away[l];
            lanes_of(plan.lane_sets - 1, slot)[at] = number[l];
          }
        }
      });
      block.each([&](int t) {
        for (int job = t; job < plan.rows * tiles; job += threads) {
          const int r = job / tiles, k = job % tiles;
          if (!state[r].counts) continue;
          const int slot = r * plan.window + k;
          logit_tile_sums z = {};
          z.top = static_cast<double>(top_of(slot));
          if (pass.a.gradient.data != nullptr)
            slope[r * plan.tiles + from_tile + k].top = static_cast<T>(z.top);
          // The maximum before this tile, and how far apart they are.
          double before = state[r].top;
          for (int j = 0; j < k; ++j) {
            const auto other = static_cast<double>(top_of(r * plan.window + j));
            before = other > before ? other : before;
          }
          if (z.top > -__builtin_inf()) {
            z.sum = pass.add_lanes(lanes_of(0, slot));
            z.weighted = pass.add_lanes(lanes_of(1, slot));
            if (squares_wanted) z.squares = pass.add_lanes(lanes_of(2, slot));
            if (mean_wanted) {
              z.away = pass.add_lanes(lanes_of(plan.lane_sets - 2, slot));
              z.number = pass.add_lanes(lanes_of(plan.lane_sets - 1, slot));
            }
            z.shift = product(z.top > before ? before - z.top : z.top - before, inverse);
            z.factor = exp_of(z.shift);
          } else {  // nothing, or a NaN beside nothing
            const L* const x = tile_at(r, k);
            for (int v = 0; v < steps_in_tile(k); ++v)
              z.sum += math::widen(x + v) != math::widen(x + v) ? 1 : 0;
          }
          sum[slot] = z;
        }
      });
    }
    RLHF_HOST_DEVICE int steps_in_tile(int k) const {
      return (size_of(from_tile + k) + lanes - 1) / lanes * lanes;
    }
    RLHF_HOST_DEVICE T top_of(int slot) const {
      T top = most[slot * team];
      for (int k = 1; k < team; ++k)
        top = most[slot * team + k] > top ? most[slot * team + k] : top;
      return top;
    }

    /// The window's tiles into the row, one after the other.
    RLHF_HOST_DEVICE void merge(int r) const {
      row_state& s = state[r];
      double top = s.top, others = s.others, weighted_sum = s.weighted_sum, squares = s.squares;
      double offsets = s.offsets, counted = s.counted, best_sum = s.best_sum;
      index best_tile = s.best;
      int best_slot = -1;
      for (int k = 0; k < tiles; ++k) {
        const logit_tile_sums z = sum[r * plan.window + k];
        if (!(z.top > -__builtin_inf())) {
          s.broken = s.broken || z.sum > 0;
          continue;
        }
        if (z.top > top || best_tile < 0) {
          if (best_tile >= 0) {
            weighted_sum = product(z.factor, weighted_sum + product(others + best_sum, z.shift));
            others = product(z.factor, others + best_sum);
            squares = product(squares, z.factor * z.factor);
            offsets += product(counted, z.shift);
          }
          top = z.top;
          best_tile = from_tile + k;
          best_slot = r * plan.window + k;
          best_sum = z.sum;
          weighted_sum += z.weighted;
          squares += z.squares;
          offsets += product(z.away, inverse);
        } else {
          others += product(z.factor, z.sum);
          weighted_sum += product(z.factor, z.weighted + product(z.sum, z.shift));
          squares += product(z.factor * z.factor, z.squares);
          offsets += product(z.away, inverse) + product(z.number, z.shift);
        }
        counted += z.number;
      }
      if (best_slot >= 0)
        for (int l = 0; l < lanes; ++l) best[r * lanes + l] = lanes_of(0, best_slot)[l];
      s.top = top, s.others = others, s.weighted_sum = weighted_sum, s.squares = squares;
      s.offsets = offsets, s.counted = counted, s.best_sum = best_sum, s.best = best_tile;
    }

    RLHF_HOST_DEVICE void finish() const {
      block.each([&](int t) {
        for (int r = t; r < plan.rows; r += threads) {
          row_state& s = state[r];
          if (!s.counts) continue;
          row_statistics& of = s.token.of;
          of.finite = !s.broken && s.best >= 0 && math::is_finite(s.others + s.best_sum);
          s.rest = s.others + (s.best_sum - 1);
          const bool tied = s.label >= 0 && static_cast<double>(logit(r, s.label)) == s.top;
          // A lane that holds the 1 of the maximum has lost digits of what else it holds.
          s.few = of.finite && s.rest < 16;
          s.seeks = of.finite && (tied || s.few);
        }
      });
      // The first of the largest logits, and the exponentials of its lane without its own.
      block.each([&](int t) {
        for (int job = t; job < plan.rows * seekers; job += threads) {
          const int r = job / seekers, from = job % seekers * lanes;
          const row_state& s = state[r];
          if (!s.counts || !s.seeks) continue;
          const int n = size_of(s.best);
          const auto narrow_top = static_cast<T>(s.top);
          int found = tile_size;
          for (int v = from + lanes; v-- > from;)
            if (v < n && logit(r, s.best * row_tile + v) == narrow_top) found = v;
          seek[job] = found;
        }
      });
      block.each([&](int t) {
        for (int job = t; job < plan.rows * seekers; job += threads) {
          const int r = job / seekers, step = job % seekers;
          row_state& s = state[r];
          if (!s.counts || !s.seeks) continue;
          int largest = tile_size;
          for (int k = 0; k < seekers && largest == tile_size; ++k) largest = seek[r * seekers + k];
          if (step == 0) s.largest = largest;
          if (!s.few) continue;
          const int v = step * lanes + largest % lanes;
          T e = T(0);
          if (v != largest && v < size_of(s.best))
            e = exponential(
                distance(logit(r, s.best * row_tile + v), static_cast<T>(s.top), inverse_narrow));
          apart[job] = e;
        }
      });
      block.each([&](int t) {
        for (int r = t; r < plan.rows; r += threads)
          if (state[r].counts) call(r);
      });
    }

    /// The maximum's own lane, summed again without it.
    RLHF_HOST_DEVICE double best_rest(int r) const {
      const auto own = static_cast<int>(state[r].largest % lanes);
      const auto itself = static_cast<int>(state[r].largest / lanes);
      double other_lanes = 0, own_lane = 0;
      for (int l = 0; l < lanes; ++l)
        if (l != own) other_lanes += static_cast<double>(best[r * lanes + l]);
      for (int k = 0; k < seekers; ++k)
        if (k != itself) own_lane += static_cast<double>(apart[r * seekers + k]);
      return other_lanes + own_lane;
    }

    /// The row's statistics, the kernel, and what the gradient needs of both.
    RLHF_HOST_DEVICE void call(int r) const {
      row_state& s = state[r];
      row_token<K>& token = s.token;
      row_statistics& of = token.of;
      if (!of.finite) {
        of.log_prob = of.entropy = of.log_sum_exp = of.mean_log_prob = of.sum_p_squared =
            __builtin_nan("");
      } else {
        double label_logit = 0;
        if (s.label >= 0) label_logit = static_cast<double>(logit(r, s.label));
        if (s.seeks) of.label_is_largest = s.label >= 0 && s.best * row_tile + s.largest == s.label;
        if (s.few) s.rest = s.others + best_rest(r);
        const double log_sum = log1p_of(s.rest);
        s.mean_d = s.weighted_sum / (1 + s.rest);
        of.log_prob = s.label >= 0 ? product(label_logit - s.top, inverse) - log_sum : 0;
        of.entropy = log_sum - s.mean_d;
        of.log_sum_exp = product(s.top, inverse) + log_sum;
        of.sum_p_squared = s.squares / ((1 + s.rest) * (1 + s.rest));
        if (pass.a.mean_wanted) {
          of.classes = s.counted;
          of.mean_log_prob = s.offsets / s.counted - log_sum;
        }
      }
      pass.kernel(token);
      const figure_row figures{K::sums + 1, K::ranges};
      const index k = first_slot + r;
      double* const to = pass.partial + (pass.rank == nullptr ? k : pass.rank[k]) * figures.size();
      for (int f = 0; f < K::sums; ++f) to[f] = token.sum[f];
      to[K::sums] = token.nonfinite;
      for (int f = 0; f < K::ranges; ++f)
        to[K::sums + 1 + f] = to[K::sums + 1 + K::ranges + f] = token.range[f];
      if (s.gradient == nullptr) return;

      const row_slopes& slope_of = token.slope;
      const bool silent =
          slope_of.label == 0 && slope_of.p == 0 && slope_of.p_log_p == 0 && slope_of.uniform == 0;
      s.fills = !of.finite || silent;
      s.filler = of.finite ? T(0) : static_cast<T>(__builtin_nan(""));
      if (s.fills) return;
      double at_label = 0;
      if (s.label >= 0 && of.log_prob > -__builtin_inf()) {
        // 1 − p from the log-probability: no digits are lost where p is near 1.
        const double p = exp_of(of.log_prob);
        const double label_part = product(slope_of.label, -expm1_of(of.log_prob));
        const double p_part = product(slope_of.label + slope_of.p, p);
        const double spread = product(slope_of.p_log_p * p, of.log_prob + of.entropy);
        at_label = product(label_part + p_part + spread + slope_of.uniform, inverse) + 0.0;
      }
      s.at_label = static_cast<T>(at_label);
      s.full = slope_of.p_log_p != 0 || slope_of.uniform != 0;
      s.log_slope = static_cast<T>(slope_of.p_log_p * inverse);
      s.uniform = static_cast<T>(product(slope_of.uniform, inverse) + 0.0);  // never −0
    }

    /// The gradients; they may go where the rows are: a thread reads a class before it writes it,
    /// and no other thread reads it.
    RLHF_HOST_DEVICE void write() const {
      const index tiles_of_all = plan.rows * plan.tiles;
      block.each([&](int t) {
        for (index job = t; job < tiles_of_all; job += threads) {
          const auto r = static_cast<int>(job / plan.tiles);
          const row_state& s = state[r];
          if (s.fills || !s.counts) continue;
          tile_slope& of = slope[job];
          if (!(of.top > static_cast<T>(-__builtin_inf()))) {
            of.scale = of.p_slope = T(0);
            continue;
          }
          const double shift = product(static_cast<double>(of.top) - s.top, inverse);
          of.scale = static_cast<T>(exp_of(shift) / (1 + s.rest));
          // log p + H = d − mean d: the logarithm of the sum drops out.
          of.p_slope = static_cast<T>(
              (s.token.slope.p + product(s.token.slope.p_log_p, shift - s.mean_d)) * inverse);
        }
      });
      constexpr int part = sixteen_bytes<L>::count;
      const index parts = (classes + part - 1) / part;
      block.each([&](int t) {
        for (index job = t; job < parts * plan.rows; job += threads) {
          const int r = plan.rows == 1 ? 0 : static_cast<int>(job / parts);
          const row_state& s = state[r];
          if (s.gradient == nullptr) continue;
          const index from = (plan.rows == 1 ? job : job % parts) * part;
          const int n = classes - from < part ? static_cast<int>(classes - from) : part;
          if (s.fills) {
            if (!pass.a.accumulate || !(s.filler == T(0))) {
              T value[16 / sizeof(L)];
              for (T& x : value) x = s.filler;
              put(s.gradient, from, n, value);
            }
            continue;
          }
          const tile_slope of = slope[r * plan.tiles + from / row_tile];
          const bool nothing = !(of.top > static_cast<T>(-__builtin_inf()));
          T x[16 / sizeof(L)], g[16 / sizeof(L)];
          get(r, from, n, x);
          for (int k = 0; k < part; ++k) {
            const T d = distance(x[k], of.top, inverse_narrow);
            const T p = exponential(d) * of.scale;
            if (s.full) {
              const T beside = x[k] == static_cast<T>(-__builtin_inf()) ? T(0) : s.uniform;
              g[k] = math::fma(p, math::fma(s.log_slope, d, of.p_slope), beside);
            } else {
              g[k] = math::fma(p, of.p_slope, s.uniform);
            }
            if (nothing) g[k] = T(0);
            if (from + k == s.label) g[k] = s.at_label;
          }
          put(s.gradient, from, n, g);
        }
      });
    }

    RLHF_HOST_DEVICE void get(int r, index from, int n, T* x) const {
      constexpr int part = sixteen_bytes<L>::count;
      const index tile = from / row_tile;
      const L* at = state[r].logits + from * pass.a.logits.step;
      const bool kept = tile >= from_tile;
      if (kept) at = tile_at(r, static_cast<int>(tile - from_tile)) + from % row_tile;
      if (kept || (n == part && pass.a.logits.step == 1 && on_16_bytes(at))) {
        const sixteen_bytes<L> all = load_16_bytes(at);
        for (int k = 0; k < part; ++k) x[k] = math::widen(&all.part[k]);
        return;
      }
      for (int k = 0; k < part; ++k) x[k] = k < n ? math::widen(at + k * pass.a.logits.step) : T(0);
    }
    RLHF_HOST_DEVICE void put(L* row, index from, int n, const T* value) const {
      constexpr int part = sixteen_bytes<L>::count;
      const index step = pass.a.gradient.step;
      const bool accumulate = pass.a.accumulate;
      L* const to = row + from * step;
      if (n == part && step == 1 && on_16_bytes(to)) {
        sixteen_bytes<L> all;
        if (accumulate) all = load_16_bytes(to);
        for (int k = 0; k < part; ++k)
          math::narrow(&all.part[k], accumulate ? math::widen(&all.part[k]) + value[k] : value[k]);
        store_16_bytes(to, all);
        return;
      }
      for (int k = 0; k < n; ++k)
        math::narrow(to + k * step, accumulate ? math::widen(to + k * step) + value[k] : value[k]);
    }
  };
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
