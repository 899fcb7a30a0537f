#pragma once

#include "rlhf/backend/host/map_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Writes that go past the caches: for outputs that would not stay there, and whose lines would be
/// read for nothing. `to` is aligned to a pack.
template <class V>
RLHF_INLINE void store_streaming(scalar_of<V>* to, const V& x) {
#if RLHF_PACK_BYTES == 32 && defined(__AVX__)
  if constexpr (math::width < V >> 1) {
#if defined(__clang__)
    __builtin_nontemporal_store(x.native, reinterpret_cast<decltype(x.native)*>(to));
#else
    if constexpr (sizeof(scalar_of<V>) == sizeof(float))
      __builtin_ia32_movntps256(to, x.native);
    else
      __builtin_ia32_movntpd256(to, x.native);
#endif
    return;
  }
#endif
  math::store(to, x);
}

/// After the last of them: what is written is seen by other threads.
RLHF_INLINE void end_streaming() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}

/// A kernel ready for a loop over lanes V: with its constants in registers, where it can do that.
template <class V, class K>
auto in_lanes(const K& kernel) {
  if constexpr (requires { kernel.template in_lanes<V>(); })
    return kernel.template in_lanes<V>();
  else
    return kernel;
}

/// Tokens [from, from + n) of row i, or of the rows from i on where rows join, for a kernel that
/// only writes: no sums, ranges or factors of rows.
template <class V, class K, class Space>
void map_range(const K& kernel, const token_arguments<K, Space>& a, index i, index from, index n,
               bool streaming) {
  using T = typename K::scalar_type;
  static_assert(K::sums == 0 && K::ranges == 0 && K::scales == 0 && K::observed == 0);
  constexpr index width = math::width<V>, tokens = 32 * virtual_lanes;
  const token_domain<Space>& domain = a.domain;
  const mask_view<Space>& mask = domain.mask;
  const index begin = domain.begin(i);
  const index mask_step = domain.mask_stride();
  alignas(64) T in_tile[at_least_one(K::inputs)][tokens];
  alignas(64) T out_tile[at_least_one(K::outputs)][tokens];
  alignas(64) std::uint8_t flag_tile[tokens];
  const V zero = math::constant<V>(0);
  for (index done = 0; done < n;) {
    index m = n - done < tokens ? n - done : tokens;
    const T* in[at_least_one(K::inputs)];
    T* out[at_least_one(K::outputs)];
    const std::uint8_t* flags = nullptr;
    bool direct = true;  // whole packs, where they are
    for (int k = 0; k < K::inputs; ++k) {
      in[k] = a.in[k].data + i * a.in[k].per_row + begin * a.in[k].per_begin +
              (from + done) * a.in[k].stride;
      direct = direct && a.in[k].stride == 1;
    }
    for (int k = 0; k < K::outputs; ++k) {
      out[k] = a.out[k].data == nullptr
                   ? nullptr
                   : a.out[k].data + i * a.out[k].per_row + begin * a.out[k].per_begin +
                         (from + done) * a.out[k].stride;
      direct = direct && out[k] != nullptr && a.out[k].stride == 1 && !a.out[k].accumulate;
    }
    const index at = domain.mask_offset(i) + (from + done) * mask_step;
    const bool given = mask.kind() == mask_kind::flag;
    if (given) flags = static_cast<const std::uint8_t*>(mask.data()) + at;
    direct = direct && (mask.kind() == mask_kind::none || (given && mask_step == 1));
    bool aligned = false;
    if (direct) {
      if (streaming) {
        const auto place = reinterpret_cast<std::uintptr_t>(out[0]) / sizeof(T);
        const index skew = static_cast<index>(place % static_cast<std::uintptr_t>(width));
        if (skew == 0)
          aligned = true;
        else if (width - skew < m)
          m = width - skew;  // up to the boundary through the tile
      }
      if (m >= width) m -= m % width;
      if (m < width) direct = false;
    }
    if (!direct) {
      const index whole = (m + width - 1) / width * width;
      for (int k = 0; k < K::inputs; ++k) {
        for (index j = 0; j < m; ++j) in_tile[k][j] = in[k][j * a.in[k].stride];
        for (index j = m; j < whole; ++j) in_tile[k][j] = T(0);
      }
      if (mask.kind() != mask_kind::none) {
        for (index j = 0; j < m; ++j)
          flag_tile[j] = given ? flags[j * mask_step] : mask.at(at + j * mask_step) > 0 ? 1 : 0;
        for (index j = m; j < whole; ++j) flag_tile[j] = 0;
        flags = flag_tile;
      }
    }
    const auto apply = in_lanes<V>(kernel);
    const auto run = [&]<bool Masked, bool Direct, bool Aligned>() {
      for (index j = 0; j < m; j += width) {
        token_lanes<V, K> t;
        [[maybe_unused]] mask_of<V> counted;
        if constexpr (Masked) counted = math::load_flags<V>(flags + j);
        for (int k = 0; k < K::inputs; ++k) {
          t.in[k] = math::load<V>((Direct ? in[k] : in_tile[k]) + j);
          if constexpr (Masked) t.in[k] = math::select(counted, t.in[k], zero);
        }
        apply(t);
        for (int k = 0; k < K::outputs; ++k) {
          V value = t.out[k] + zero;  // never −0, so that masked and counted zeros agree
          if constexpr (Masked) value = math::select(counted, value, zero);
          T* const to = (Direct ? out[k] : out_tile[k]) + j;
          if constexpr (Aligned)
            store_streaming<V>(to, value);
          else
            math::store(to, value);
        }
      }
    };
    if (!direct)
      flags != nullptr ? run.template operator()<true, false, false>()
                       : run.template operator()<false, false, false>();
    else if (aligned && K::outputs == 1)
      flags != nullptr ? run.template operator()<true, true, true>()
                       : run.template operator()<false, true, true>();
    else
      flags != nullptr ? run.template operator()<true, true, false>()
                       : run.template operator()<false, true, false>();
    if (!direct)
      for (int k = 0; k < K::outputs; ++k) {
        if (out[k] == nullptr) continue;
        const index step = a.out[k].stride;
        for (index j = 0; j < m; ++j) {
          if (!a.out[k].accumulate)
            out[k][j * step] = out_tile[k][j];
          else if (flags == nullptr || flags[j] != 0)
            out[k][j * step] += out_tile[k][j];
        }
      }
    done += m;
  }
}

/// Row i: its tokens, and +0 in its padding.
template <class V, class K, class Space>
void map_row(const K& kernel, const token_arguments<K, Space>& a, index i, bool streaming) {
  const index length = a.domain.length(i), slots = a.domain.slots(i);
  map_range<V>(kernel, a, i, 0, length, streaming);
  if (length == slots) return;
  const index begin = a.domain.begin(i);
  for (const auto& y : a.out) {
    if (y.data == nullptr || y.accumulate) continue;
    auto* const at = y.data + i * y.per_row + begin * y.per_begin;
    for (index j = length; j < slots; ++j) at[j * y.stride] = 0;
  }
}

/// Whether rows lie side by side in every tensor: full ones are then as one.
template <class K, class Space>
bool rows_touch(const token_arguments<K, Space>& a) {
  const token_domain<Space>& d = a.domain;
  if (d.kind == arrangement::packed) return false;
  bool beside =
      d.mask.kind() == mask_kind::none || (d.mask.stride(1) == 1 && d.mask.stride(0) == d.columns);
  for (const auto& x : a.in) beside = beside && x.stride == 1 && x.per_row == d.columns;
  for (const auto& y : a.out) beside = beside && y.stride == 1 && y.per_row == d.columns;
  return beside;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
