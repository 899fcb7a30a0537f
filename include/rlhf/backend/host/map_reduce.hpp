#pragma once

#include <cstdint>

#include "rlhf/backend/host/token_walk.hpp"

// At -O2 g++ keeps a loop over the figures of a kernel, and with it their sums in memory.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define RLHF_DETAIL_UNROLL _Pragma("GCC unroll 32")
#else
#define RLHF_DETAIL_UNROLL
#endif

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Two kernels may share the work of one call: one for no mask and flags, its twin for all masks as
/// weights. Each says so, and its code for the other's masks is not made.
template <class K>
constexpr bool takes_weights() {
  if constexpr (requires { K::takes_weights; })
    return K::takes_weights;
  else
    return true;
}
template <class K>
constexpr bool takes_flags() {
  if constexpr (requires { K::takes_flags; })
    return K::takes_flags;
  else
    return true;
}

/// What a kernel says of itself beside its sizes, see primitive/map_reduce.hpp.
template <class K>
constexpr bool is_silent(int k) {
  if constexpr (requires { K::silent(0); })
    return K::silent(k);
  else
    return false;
}
template <class K>
constexpr bool has_silent_outputs() {
  if constexpr (requires { K::silent_outputs; })
    return K::silent_outputs;
  else
    return false;
}
template <class K>
constexpr int rare_sum_of() {
  if constexpr (requires { K::rare_sum; })
    return K::rare_sum;
  else
    return -1;
}

/// Whether sum k, where there is one, weighs nothing under any mask.
template <class K>
constexpr bool weighs_nothing(int k) {
  if constexpr (requires { K::plain_sum; })
    return k < 0 || k == K::plain_sum;
  else
    return k < 0;
}

/// +0 where m is true, else x.
template <class V>
RLHF_INLINE V zero_where(const mask_of<V>& m, const V& x) {
  if constexpr (requires { x.native; }) {
    using traits = math::lane_traits<V>;
    return traits::from_bits(traits::to_bits(x) &
                             ~__builtin_bit_cast(typename traits::bits, m.native));
  } else {
    return math::select(m, math::constant<V>(0), x);
  }
}
/// A NaN where m is true, else x.
template <class V>
RLHF_INLINE V nan_where(const mask_of<V>& m, const V& x) {
  if constexpr (requires { x.native; }) {
    using traits = math::lane_traits<V>;
    return traits::from_bits(traits::to_bits(x) |
                             __builtin_bit_cast(typename traits::bits, m.native));
  } else {
    return math::select(m, math::constant<V>(__builtin_nan("")), x);
  }
}

/// True where the byte is 0.
template <class V>
RLHF_INLINE mask_of<V> load_ignored(const std::uint8_t* flags) {
  if constexpr (requires { math::lane_traits<V>::load_no_flags(flags); })
    return math::lane_traits<V>::load_no_flags(flags);
  else
    return !math::load_flags<V>(flags);
}

enum class kernel_part { all, first, second };

/// One kernel over tiles. Figures stand in `lanes`, 16 of each: sums, the count of non-finite
/// tokens, low ends, high ends.
template <class V, class K>
struct kernel_sweep {
  using T = typename K::scalar_type;
  static constexpr int width = math::width<V>;
  static constexpr int packs = static_cast<int>(virtual_lanes) / width;
  static_assert(packs * width == static_cast<int>(virtual_lanes));
  static constexpr int low_at = K::sums + 1;
  static constexpr int high_at = K::sums + 1 + K::ranges;
  static constexpr int kept = kept_lanes<K>();
  static constexpr int rare_sum = rare_sum_of<K>();
  static_assert(weighs_nothing<K>(rare_sum), "the rare sum counts tokens: it is the plain_sum");
  using kept_tile = T[at_least_one(kept)][static_cast<std::size_t>(tile_steps<T> * width)];

  /// Whether masked tokens are selected away though the kernel is silent: 0 times a factor that is
  /// not finite is not 0.
  enum class silence { trusted, doubted };
  static constexpr bool may_be_silent = [] {
    bool some = has_silent_outputs<K>();
    for (int k = 0; k < K::sums; ++k) some = some || is_silent<K>(k);
    return some && K::scales > 0;
  }();

  static constexpr bool fills(kernel_part part, int k) {
    if (k == rare_sum) return false;
    if constexpr (kept > 0)
      return part == kernel_part::all ||
             part == (K::early(k) ? kernel_part::first : kernel_part::second);
    else
      return true;
  }
  /// Observed inputs are watched by the part that reads them.
  static constexpr bool watches(kernel_part part, int k) {
    if constexpr (kept > 0)
      return k < K::observed &&
             (part == kernel_part::all ||
              part == (k < K::first_inputs ? kernel_part::first : kernel_part::second));
    else
      return k < K::observed;
  }

  /// Pointers of a tile in variables of the sweep: no store may change them.
  struct local_tile {
    const T* in[at_least_one(K::inputs)];
    T* out[at_least_one(K::outputs)];
    const std::uint8_t* flags;
    const T* weights;
    RLHF_INLINE explicit local_tile(const token_tile<T>& tile)
        : flags(tile.flags), weights(tile.weights) {
      RLHF_DETAIL_UNROLL
      for (int k = 0; k < K::inputs; ++k) in[k] = tile.in[k];
      RLHF_DETAIL_UNROLL
      for (int k = 0; k < K::outputs; ++k) out[k] = tile.out[k];
    }
  };

  static void run(const void* kernel, const token_tile<T>& tile, lanes_masked masked, index from,
                  index steps, T* lanes) {
    const K& k = *static_cast<const K*>(kernel);
    if constexpr (takes_flags<K>()) {
      if (masked == lanes_masked::no) return both<lanes_masked::no>(k, tile, from, steps, lanes);
      if (masked == lanes_masked::by_flags)
        return masking<lanes_masked::by_flags>(k, tile, from, steps, lanes);
    }
    if constexpr (takes_weights<K>())
      masking<lanes_masked::by_weights>(k, tile, from, steps, lanes);
  }

  template <lanes_masked M>
  static void masking(const K& kernel, const token_tile<T>& tile, index from, index steps,
                      T* lanes) {
    if constexpr (may_be_silent) {
      bool finite = true;
      for (int k = 0; k < K::scales; ++k) finite = finite && math::is_finite(tile.scale[k]);
      if (!finite) [[unlikely]]
        return both<M, silence::doubted>(kernel, tile, from, steps, lanes);
    }
    both<M>(kernel, tile, from, steps, lanes);
  }

  /// Each pack position sweeps the tile on its own: fewer live accumulators, and the tile is in L1
  /// for the next sweep.
  template <lanes_masked M, silence S = silence::trusted>
  RLHF_NOINLINE static void both(const K& kernel, const token_tile<T>& tile, index from,
                                 index steps, T* lanes) {
    alignas(64) kept_tile hand_over;
    bool odd = false;
    for (int p = 0; p < packs; ++p) {
      const index at = from * virtual_lanes + p * width;
      T* const to = lanes + p * width;
      if constexpr (M == lanes_masked::by_flags)
        if (steps == 1 && skip(tile, at)) continue;
      if constexpr (kept > 0 && S == silence::trusted) {
        odd |= part<M, kernel_part::first, S>(kernel, tile, at, steps, to, hand_over);
        odd |= part<M, kernel_part::second, S>(kernel, tile, at, steps, to, hand_over);
      } else {
        odd |= part<M, kernel_part::all, S>(kernel, tile, at, steps, to, hand_over);
      }
    }
    if (odd) [[unlikely]]
      recount(kernel, tile, M, from, steps, lanes);
  }

  /// Whether a pack has no token that counts. It then adds nothing, and its outputs are +0.
  RLHF_INLINE static bool skip(const token_tile<T>& tile, index at) {
    std::uint64_t flags = 0;
    __builtin_memcpy(&flags, tile.flags + at, static_cast<std::size_t>(width));
    if (flags != 0) return false;
    for (int k = 0; k < K::outputs; ++k) math::store(tile.out[k] + at, math::constant<V>(0));
    return true;
  }

  /// Loads the inputs of one lane; what is masked is 0.
  template <lanes_masked M>
  RLHF_INLINE static mask_of<V> load(token_lanes<V, K>& t, const local_tile& tile, index at,
                                     const V* scale) {
    const V zero = math::constant<V>(0);
    mask_of<V> ignored{};
    [[maybe_unused]] V weight;
    if constexpr (M == lanes_masked::by_flags) {
      ignored = load_ignored<V>(tile.flags + at);
    } else if constexpr (M == lanes_masked::by_weights) {
      weight = math::load<V>(tile.weights + at);
      ignored = !(weight > zero);
    }
    RLHF_DETAIL_UNROLL
    for (int k = 0; k < K::inputs; ++k) {
      t.in[k] = math::load<V>(tile.in[k] + at);
      if constexpr (M != lanes_masked::no) t.in[k] = zero_where(ignored, t.in[k]);
    }
    RLHF_DETAIL_UNROLL
    for (int k = 0; k < K::scales; ++k) {
      t.scale[k] = scale[k];
      if constexpr (M == lanes_masked::by_weights) t.scale[k] = scale[k] * weight;
    }
    return ignored;
  }

  /// True where the tile has something for recount.
  template <lanes_masked M, kernel_part P, silence S>
  RLHF_INLINE static bool part(const K& shared_kernel, const token_tile<T>& shared_tile,
                               index begin, index steps, T* lanes, kept_tile& hand_over) {
    const K kernel = shared_kernel;
    const local_tile tile(shared_tile);
    const V zero = math::constant<V>(0);
    V scale[at_least_one(K::scales)];
    RLHF_DETAIL_UNROLL
    for (int k = 0; k < K::scales; ++k) scale[k] = math::constant<V>(shared_tile.scale[k]);
    V sum[at_least_one(K::sums)];
    V low[at_least_one(K::ranges)];
    V high[at_least_one(K::ranges)];
    V odd = zero;  // NaN once an observed input is not finite
    RLHF_DETAIL_UNROLL
    for (int k = 0; k < K::sums; ++k)
      if (fills(P, k)) sum[k] = math::load<V>(lanes + k * virtual_lanes);
    if constexpr (P != kernel_part::second) {
      RLHF_DETAIL_UNROLL
      for (int k = 0; k < K::ranges; ++k) {
        low[k] = math::load<V>(lanes + (low_at + k) * virtual_lanes);
        high[k] = math::load<V>(lanes + (high_at + k) * virtual_lanes);
      }
    }

    for (index s = 0; s < steps; ++s) {
      const index at = begin + s * virtual_lanes;
      token_lanes<V, K> t;
      [[maybe_unused]] const mask_of<V> ignored = load<M>(t, tile, at, scale);
      RLHF_DETAIL_UNROLL
      for (int k = 0; k < K::inputs; ++k)
        if (watches(P, k)) odd = math::fma(t.in[k], zero, odd);
      if constexpr (P == kernel_part::first) {
        kernel.first(t);
        RLHF_DETAIL_UNROLL
        for (int k = 0; k < kept; ++k) math::store(hand_over[k] + s * width, t.kept[k]);
      } else if constexpr (P == kernel_part::second) {
        RLHF_DETAIL_UNROLL
        for (int k = 0; k < kept; ++k) t.kept[k] = math::load<V>(hand_over[k] + s * width);
        kernel.second(t);
      } else {
        kernel(t);
      }
      RLHF_DETAIL_UNROLL
      for (int k = 0; k < K::sums; ++k) {
        if (!fills(P, k)) continue;
        V term = t.sum[k];
        if constexpr (M == lanes_masked::by_weights)
          if (takes_weight<K>(k)) term = term * math::load<V>(tile.weights + at);
        math::detail::keep_rounding(term);  // its product is not fused, in no kind of sweep
        if constexpr (M != lanes_masked::no)
          if (S == silence::doubted || !is_silent<K>(k)) term = zero_where(ignored, term);
        sum[k] = sum[k] + term;
      }
      if constexpr (P != kernel_part::second) {
        RLHF_DETAIL_UNROLL
        for (int k = 0; k < K::ranges; ++k) {
          V x = t.range[k];
          if constexpr (M != lanes_masked::no) x = nan_where(ignored, x);
          low[k] = (math::min)(low[k], x);  // a NaN in x leaves the end as it is
          high[k] = (math::max)(high[k], x);
        }
      }
      if constexpr (P != kernel_part::first) {
        RLHF_DETAIL_UNROLL
        for (int k = 0; k < K::outputs; ++k) {
          V value = t.out[k] + zero;  // never −0, so that masked and counted zeros agree
          if constexpr (M != lanes_masked::no)
            if (S == silence::doubted || !has_silent_outputs<K>())
              value = zero_where(ignored, value);
          math::store(tile.out[k] + at, value);
        }
      }
    }

    RLHF_DETAIL_UNROLL
    for (int k = 0; k < K::sums; ++k)
      if (fills(P, k)) math::store(lanes + k * virtual_lanes, sum[k]);
    if constexpr (P != kernel_part::second) {
      RLHF_DETAIL_UNROLL
      for (int k = 0; k < K::ranges; ++k) {
        math::store(lanes + (low_at + k) * virtual_lanes, low[k]);
        math::store(lanes + (high_at + k) * virtual_lanes, high[k]);
      }
    }
    bool found = math::any(math::is_nan(odd));
    if constexpr (rare_sum >= 0 && P != kernel_part::second)
      found = found || math::any(K::is_extreme(low, high));
    return found;
  }

  /// Counts what most tiles have none of: tokens that are not finite, and the rare sum.
  RLHF_NOINLINE static void recount(const K& kernel, const token_tile<T>& tile, lanes_masked masked,
                                    index from, index steps, T* lanes) {
    const V zero = math::constant<V>(0);
    const V one = math::constant<V>(1);
    for (int p = 0; p < packs; ++p)
      for (index s = 0; s < steps; ++s) {
        const index at = (from + s) * virtual_lanes + p * width;
        mask_of<V> ignored = zero != zero;
        if (masked == lanes_masked::by_flags) ignored = load_ignored<V>(tile.flags + at);
        if (masked == lanes_masked::by_weights)
          ignored = !(math::load<V>(tile.weights + at) > zero);
        token_lanes<V, K> t;
        for (int k = 0; k < K::inputs; ++k)
          t.in[k] = zero_where(ignored, math::load<V>(tile.in[k] + at));
        const auto add = [&](int k, const V& x) {
          T* const lane = lanes + k * virtual_lanes + p * width;
          math::store(lane, math::load<V>(lane) + zero_where(ignored, x));
        };
        if constexpr (K::observed > 0) {
          // x − x is 0 for every finite x and NaN otherwise
          V probe = t.in[0] - t.in[0];
          for (int k = 1; k < K::observed; ++k) probe = probe + (t.in[k] - t.in[k]);
          add(K::sums, math::select(probe == zero, zero, one));
        }
        if constexpr (rare_sum >= 0) {
          kernel.rare(t);
          add(rare_sum, t.sum[rare_sum]);
        }
      }
  }
};

/// Reduces groups of `group_rows` rows, of each the steps [first, last). The range begins and, but
/// for the group's end, ends at a flush, so its figures are a subtree of the group's.
template <class V, class K>
void reduce_groups(const token_work<typename K::scalar_type>& work, index group, index group_end,
                   index first, index last, index group_rows, figure_tree& into) {
  using T = typename K::scalar_type;
  constexpr auto figures = static_cast<std::size_t>(sums_of<K>::size);
  const T* in[at_least_one(K::inputs)];
  T* out[at_least_one(K::outputs)];
  alignas(64) T in_buffer[at_least_one(K::inputs) * static_cast<std::size_t>(tile_tokens<T>)];
  alignas(64) T out_buffer[at_least_one(K::outputs) * static_cast<std::size_t>(tile_tokens<T>)];
  index filled[at_least_one(K::inputs)];
  T scale[at_least_one(K::scales)];
  alignas(64) T lanes[figures * static_cast<std::size_t>(virtual_lanes)];
  double level[figure_tree::levels * figures];
  const walk_memory<T> memory{in, out, in_buffer, out_buffer, filled, scale, lanes, level};
  walk_groups(work, memory, group, group_end, first, last, group_rows, into);
}

template <class V, class K>
token_work<typename K::scalar_type> work_of(const K& kernel,
                                            const token_arguments<K, host_space>& a) {
  return {&kernel,
          &reduce_groups<V, K>,
          &kernel_sweep<V, K>::run,
          K::inputs,
          K::outputs,
          K::sums,
          K::ranges,
          K::scales,
          takes_flags<K>(),
          takes_weights<K>(),
          &a.domain,
          a.in,
          a.out,
          a.scale};
}

/// Steps of a group, for cutting it into units.
template <class Space>
index group_steps(const token_domain<Space>& domain, index row, index row_end) {
  index steps = 0;
  for (index i = row; i < row_end; ++i) steps += steps_of(last_counted(domain, i));
  return steps;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail

#undef RLHF_DETAIL_UNROLL
