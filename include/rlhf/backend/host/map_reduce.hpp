#pragma once

#include <cstdint>

#include "rlhf/math/pack.hpp"
#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// The figures of some tokens; they merge.
template <class K>
struct totals {
  double sum[K::sums + 1];
  double low[at_least_one(K::ranges)];
  double high[at_least_one(K::ranges)];

  static totals none() {
    totals t;
    for (double& s : t.sum) s = 0;
    for (double& x : t.low) x = __builtin_inf();
    for (double& x : t.high) x = -__builtin_inf();
    return t;
  }
  static totals merge(const totals& a, const totals& b) {
    totals t;
    for (int k = 0; k <= K::sums; ++k) t.sum[k] = a.sum[k] + b.sum[k];
    for (int k = 0; k < K::ranges; ++k) {
      t.low[k] = a.low[k] < b.low[k] ? a.low[k] : b.low[k];
      t.high[k] = a.high[k] > b.high[k] ? a.high[k] : b.high[k];
    }
    return t;
  }
  void write(double* to) const {
    for (int k = 0; k <= K::sums; ++k) to[k] = sum[k];
    for (int k = 0; k < K::ranges; ++k) {
      to[sums_of<K>::low + k] = low[k];
      to[sums_of<K>::high + k] = high[k];
    }
  }
};

/// A binary tree over values that come one by one; the split is at the largest power of two, so
/// aligned subtrees may be formed anywhere and pushed as one.
template <class X>
class binary_tree {
  X level_[40];
  std::uint64_t count_ = 0;

 public:
  void push(X carry) {
    int at = 0;
    for (std::uint64_t n = count_; (n & 1) != 0; n >>= 1, ++at) carry = X::merge(level_[at], carry);
    level_[at] = carry;
    ++count_;
  }
  X finish() const {
    X r = X::none();
    bool first = true;
    int at = 0;
    for (std::uint64_t n = count_; n != 0; n >>= 1, ++at)
      if ((n & 1) != 0) {
        r = first ? level_[at] : X::merge(level_[at], r);
        first = false;
      }
    return r;
  }
};

enum class lanes_masked { no, by_flags, by_weights };

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

/// The 16 virtual lanes of one group, and what has left them for double precision.
template <class V, class K>
class lane_sums {
  using T = typename K::scalar_type;
  static constexpr int packs = static_cast<int>(virtual_lanes) / math::width<V>;
  static_assert(packs * math::width<V> == static_cast<int>(virtual_lanes));

  V sum_[static_cast<std::size_t>(packs)][K::sums + 1];
  V low_[static_cast<std::size_t>(packs)][at_least_one(K::ranges)];
  V high_[static_cast<std::size_t>(packs)][at_least_one(K::ranges)];
  index filled_ = 0;
  binary_tree<totals<K>> flushed_;

  void clear() {
    for (int p = 0; p < packs; ++p) {
      for (int k = 0; k <= K::sums; ++k) sum_[p][k] = math::constant<V>(0);
      for (int k = 0; k < K::ranges; ++k) {
        low_[p][k] = math::constant<V>(__builtin_inf());
        high_[p][k] = math::constant<V>(-__builtin_inf());
      }
    }
    filled_ = 0;
  }

  void flush() {
    totals<K> t = totals<K>::none();
    T lane[virtual_lanes];
    double wide[virtual_lanes];
    for (int k = 0; k <= K::sums; ++k) {
      for (int p = 0; p < packs; ++p) math::store(lane + p * math::width<V>, sum_[p][k]);
      for (index l = 0; l < virtual_lanes; ++l) wide[l] = static_cast<double>(lane[l]);
      for (index half = virtual_lanes / 2; half > 0; half /= 2)
        for (index l = 0; l < half; ++l) wide[l] += wide[l + half];
      t.sum[k] = wide[0];
    }
    for (int k = 0; k < K::ranges; ++k) {
      t.low[k] = __builtin_inf();
      t.high[k] = -__builtin_inf();
      for (int p = 0; p < packs; ++p) math::store(lane + p * math::width<V>, low_[p][k]);
      for (const T x : lane)
        if (static_cast<double>(x) < t.low[k]) t.low[k] = static_cast<double>(x);
      for (int p = 0; p < packs; ++p) math::store(lane + p * math::width<V>, high_[p][k]);
      for (const T x : lane)
        if (static_cast<double>(x) > t.high[k]) t.high[k] = static_cast<double>(x);
    }
    flushed_.push(t);
    clear();
  }

 public:
  lane_sums() { clear(); }

  index room() const { return steps_per_flush - filled_; }
  void advance(index steps) {
    filled_ += steps;
    if (filled_ == steps_per_flush) flush();
  }
  totals<K> finish() {
    if (filled_ > 0) flush();
    return flushed_.finish();
  }

  /// `steps` steps of 16 tokens each. Each pack position sweeps the tile on its own: fewer live
  /// accumulators, and the tile is in L1 for the second sweep.
  template <lanes_masked M>
  RLHF_INLINE void run(const K& kernel, const T* const* in, T* const* out, const std::uint8_t* flags,
                       const T* weights, const V* scale, index steps) {
    for (int p = 0; p < packs; ++p) {
      V sum[K::sums + 1];
      V low[at_least_one(K::ranges)];
      V high[at_least_one(K::ranges)];
      for (int k = 0; k <= K::sums; ++k) sum[k] = sum_[p][k];
      for (int k = 0; k < K::ranges; ++k) low[k] = low_[p][k], high[k] = high_[p][k];

      for (index s = 0; s < steps; ++s) {
        const index at = s * virtual_lanes + p * math::width<V>;
        const V zero = math::constant<V>(0);
        token_lanes<V, K> t;
        [[maybe_unused]] mask_of<V> counted;
        [[maybe_unused]] V weight;
        if constexpr (M == lanes_masked::by_flags) {
          counted = math::load_flags<V>(flags + at);
        } else if constexpr (M == lanes_masked::by_weights) {
          weight = math::load<V>(weights + at);
          counted = weight > zero;
        }
        for (int k = 0; k < K::inputs; ++k) {
          t.in[k] = math::load<V>(in[k] + at);
          if constexpr (M != lanes_masked::no) t.in[k] = math::select(counted, t.in[k], zero);
        }
        for (int k = 0; k < K::scales; ++k) {
          t.scale[k] = scale[k];
          if constexpr (M == lanes_masked::by_weights) t.scale[k] = scale[k] * weight;
        }
        if constexpr (K::observed > 0) {
          // x − x is 0 for every finite x and NaN otherwise
          V probe = t.in[0] - t.in[0];
          for (int k = 1; k < K::observed; ++k) probe = probe + (t.in[k] - t.in[k]);
          sum[K::sums] = sum[K::sums] + math::select(probe == zero, zero, math::constant<V>(1));
        }
        kernel(t);
        for (int k = 0; k < K::sums; ++k) {
          if constexpr (M == lanes_masked::no) {
            math::detail::keep_rounding(t.sum[k]);  // as under a mask: its product is not fused
            sum[k] = sum[k] + t.sum[k];
          } else if constexpr (M == lanes_masked::by_flags) {
            sum[k] = sum[k] + math::select(counted, t.sum[k], zero);
          } else {
            const V weighted = takes_weight<K>(k) ? t.sum[k] * weight : t.sum[k];
            sum[k] = sum[k] + math::select(counted, weighted, zero);
          }
        }
        for (int k = 0; k < K::ranges; ++k) {
          if constexpr (M == lanes_masked::no) {
            low[k] = math::select(t.range[k] < low[k], t.range[k], low[k]);
            high[k] = math::select(t.range[k] > high[k], t.range[k], high[k]);
          } else {
            low[k] = math::select(counted & (t.range[k] < low[k]), t.range[k], low[k]);
            high[k] = math::select(counted & (t.range[k] > high[k]), t.range[k], high[k]);
          }
        }
        for (int k = 0; k < K::outputs; ++k) {
          const V value = t.out[k] + zero;  // never −0, so that masked and counted zeros agree
          if constexpr (M == lanes_masked::no)
            math::store(out[k] + at, value);
          else
            math::store(out[k] + at, math::select(counted, value, zero));
        }
      }
      for (int k = 0; k <= K::sums; ++k) sum_[p][k] = sum[k];
      for (int k = 0; k < K::ranges; ++k) low_[p][k] = low[k], high_[p][k] = high[k];
    }
  }
};

inline index steps_of(index length) {
  return length > 0 ? (length + virtual_lanes - 1) / virtual_lanes : 1;
}

/// One tile of a row, with every input contiguous: pointers into the caller's tensors where they
/// are, into these buffers where they are not.
template <class K>
class token_tile {
  using T = typename K::scalar_type;
  static constexpr index tokens = 32 * virtual_lanes;

  alignas(64) T in_[at_least_one(K::inputs)][tokens];
  alignas(64) T out_[at_least_one(K::outputs)][tokens];
  alignas(64) T weight_[tokens];
  alignas(64) std::uint8_t flag_[tokens];

 public:
  static constexpr index steps = 32;

  const T* in[at_least_one(K::inputs)];
  T* out[at_least_one(K::outputs)];
  const std::uint8_t* flags = nullptr;
  const T* weights = nullptr;
  lanes_masked masked = lanes_masked::no;

  /// Tokens [from, from + n) of row i, which has `length` of them. A last step that is not full is
  /// padded with masked slots.
  template <class Space>
  void load(const token_arguments<K, Space>& a, index i, index length, index from, index n,
            bool fresh_row) {
    const index begin = a.domain.begin(i);
    const index whole = (n + virtual_lanes - 1) / virtual_lanes * virtual_lanes;
    const index fill = length < tokens ? steps_of(length) * virtual_lanes : tokens;
    for (int k = 0; k < K::inputs; ++k) {
      const token_input<T>& x = a.in[k];
      if (x.data == nullptr || x.stride == 0) {
        // One value per row: the buffer holds it until the row changes.
        if (fresh_row) {
          const T value =
              x.data == nullptr ? x.absent : x.data[i * x.per_row + begin * x.per_begin];
          for (index j = 0; j < fill; ++j) in_[k][j] = value;
        }
        in[k] = in_[k];
        continue;
      }
      const T* const at = x.data + i * x.per_row + begin * x.per_begin + from * x.stride;
      if (x.stride == 1 && n == whole) {
        in[k] = at;
        continue;
      }
      for (index j = 0; j < n; ++j) in_[k][j] = at[j * x.stride];
      for (index j = n; j < whole; ++j) in_[k][j] = T(0);
      in[k] = in_[k];
    }
    for (int k = 0; k < K::outputs; ++k) {
      const token_output<T>& y = a.out[k];
      const bool direct = y.data != nullptr && y.stride == 1 && !y.accumulate && n == whole;
      out[k] = direct ? y.data + i * y.per_row + begin * y.per_begin + from : out_[k];
    }
    load_mask(a, i, from, n, whole);
  }

 private:
  /// n flags, a multiple of 16, as weights of 0 and 1.
  void weigh_flags(const std::uint8_t* from, index n) {
    using V = math::native_lane<T>;
    for (index j = 0; j < n; j += math::width<V>)
      math::store(weight_ + j, math::select(math::load_flags<V>(from + j), math::constant<V>(1),
                                            math::constant<V>(0)));
  }

  template <class Space>
  void load_mask(const token_arguments<K, Space>& a, index i, index from, index n, index whole) {
    const mask_view<Space>& mask = a.domain.mask;
    const index step = a.domain.mask_stride();
    const index at = a.domain.mask_offset(i) + from * step;
    if (!takes_flags<K>() || mask.kind() == mask_kind::weight32 ||
        mask.kind() == mask_kind::weight64) {
      masked = lanes_masked::by_weights;
      if (mask.kind() == mask_kind::none)
        for (index j = 0; j < n; ++j) weight_[j] = T(1);
      else if (mask.kind() == mask_kind::flag && step == 1 && n == whole)
        weigh_flags(static_cast<const std::uint8_t*>(mask.data()) + at, n);
      else
        for (index j = 0; j < n; ++j) weight_[j] = static_cast<T>(mask.at(at + j * step));
      for (index j = n; j < whole; ++j) weight_[j] = T(0);
      weights = weight_;
    } else if (mask.kind() == mask_kind::flag && step == 1 && n == whole) {
      masked = lanes_masked::by_flags;
      flags = static_cast<const std::uint8_t*>(mask.data()) + at;
    } else if (mask.kind() == mask_kind::flag || n < whole) {
      masked = lanes_masked::by_flags;
      const bool given = mask.kind() == mask_kind::flag;
      for (index j = 0; j < n; ++j)
        flag_[j] = given ? static_cast<const std::uint8_t*>(mask.data())[at + j * step] : 1;
      for (index j = n; j < whole; ++j) flag_[j] = 0;
      flags = flag_;
    } else {
      masked = lanes_masked::no;
    }
  }

 public:
  /// Brings buffered outputs home.
  template <class Space>
  void store(const token_arguments<K, Space>& a, index i, index from, index n) {
    const index begin = a.domain.begin(i);
    for (int k = 0; k < K::outputs; ++k) {
      const token_output<T>& y = a.out[k];
      if (y.data == nullptr || out[k] != out_[k]) continue;
      T* const at = y.data + i * y.per_row + begin * y.per_begin + from * y.stride;
      if (!y.accumulate) {
        for (index j = 0; j < n; ++j) at[j * y.stride] = out_[k][j];
        continue;
      }
      for (index j = 0; j < n; ++j) {
        const bool counted = masked == lanes_masked::no ||
                             (masked == lanes_masked::by_flags ? flags[j] != 0 : weights[j] > T(0));
        if (counted) at[j * y.stride] += out_[k][j];
      }
    }
  }

  /// +0 in the padding of a row, where an output is overwritten.
  template <class Space>
  static void pad(const token_arguments<K, Space>& a, index i, index from) {
    const index begin = a.domain.begin(i);
    const index slots = a.domain.slots(i);
    for (int k = 0; k < K::outputs; ++k) {
      const token_output<T>& y = a.out[k];
      if (y.data == nullptr || y.accumulate) continue;
      T* const at = y.data + i * y.per_row + begin * y.per_begin;
      for (index j = from; j < slots; ++j) at[j * y.stride] = T(0);
    }
  }
};

/// Whether row i + 1 goes on in memory where a full row i ends, in every tensor, with nothing that
/// changes from row to row: such rows run as one, and since they fill their steps, in the same order.
template <class K, class Space>
bool rows_join(const token_arguments<K, Space>& a) {
  const token_domain<Space>& d = a.domain;
  if (d.kind == arrangement::packed || d.columns == 0 || d.columns % virtual_lanes != 0) return false;
  if (d.mask.kind() != mask_kind::none &&
      (d.mask.stride(1) != 1 || d.mask.stride(0) != d.columns))
    return false;
  for (int k = 0; k < K::inputs; ++k)
    if (a.in[k].data != nullptr && (a.in[k].stride != 1 || a.in[k].per_row != d.columns)) return false;
  for (int k = 0; k < K::outputs; ++k)
    if (a.out[k].data != nullptr && (a.out[k].stride != 1 || a.out[k].per_row != d.columns))
      return false;
  for (int k = 0; k < K::scales; ++k)
    if (a.scale[k].per_row != nullptr) return false;
  return true;
}

/// Steps [first, last) of the rows [row, row_end), which form one group. The range begins and, but
/// for the group's end, ends at a flush, so its total is a subtree of the group's.
template <class V, class K, class Space>
totals<K> run_group(const K& kernel, const token_arguments<K, Space>& a, index row, index row_end,
                    index first, index last) {
  lane_sums<V, K> lanes;
  token_tile<K> tile;
  V scale[at_least_one(K::scales)];
  const bool join = row_end - row > 1 && rows_join(a);
  index passed = 0;  // steps of earlier rows
  index next = row;
  while (next < row_end && passed < last) {
    const index i = next++;
    index length = a.domain.valid_length(i);
    if (join && length == a.domain.columns)
      for (; next < row_end && a.domain.valid_length(next) == a.domain.columns; ++next)
        length += a.domain.columns;
    const index steps = steps_of(length);
    const index from = first > passed ? first - passed : 0;
    const index to = last - passed < steps ? last - passed : steps;
    passed += steps;
    if (from >= to) continue;
    if (to == steps && next == i + 1) token_tile<K>::pad(a, i, length);
    if (length == 0) {
      lanes.advance(1);
      continue;
    }
    for (int k = 0; k < K::scales; ++k)
      scale[k] = math::constant<V>(a.scale[k].at(i));
    bool fresh = true;
    for (index s = from; s < to;) {
      index n = lanes.room() < token_tile<K>::steps ? lanes.room() : token_tile<K>::steps;
      if (to - s < n) n = to - s;
      // A step that is not full goes alone, so that the full ones need no copy.
      const bool ragged = (s + n) * virtual_lanes > length;
      if (ragged && n > 1) --n;
      const index at = s * virtual_lanes;
      const index tokens = length - at < n * virtual_lanes ? length - at : n * virtual_lanes;
      tile.load(a, i, length, at, tokens, fresh);
      fresh = false;
      switch (tile.masked) {
        case lanes_masked::no:
          if constexpr (takes_flags<K>())
            lanes.template run<lanes_masked::no>(kernel, tile.in, tile.out, nullptr, nullptr, scale,
                                                 n);
          break;
        case lanes_masked::by_flags:
          if constexpr (takes_flags<K>())
            lanes.template run<lanes_masked::by_flags>(kernel, tile.in, tile.out, tile.flags,
                                                       nullptr, scale, n);
          break;
        case lanes_masked::by_weights:
          if constexpr (takes_weights<K>())
            lanes.template run<lanes_masked::by_weights>(kernel, tile.in, tile.out, nullptr,
                                                         tile.weights, scale, n);
          break;
      }
      tile.store(a, i, at, tokens);
      lanes.advance(n);
      s += n;
    }
  }
  return lanes.finish();
}

/// Steps of a group, for cutting it into units.
template <class Space>
index group_steps(const token_domain<Space>& domain, index row, index row_end) {
  index steps = 0;
  for (index i = row; i < row_end; ++i) steps += steps_of(domain.valid_length(i));
  return steps;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
