#pragma once

#include "rlhf/primitive/tokens.hpp"

/// Rank-1 tensors ([pairs], or [batch] of rewards) as one row of tokens, so that the primitives and
/// their order of sums serve them too.

namespace rlhf::inline v1 {

namespace detail {

template <class E, class Space>
struct strided_row {
  const E* data;
  index size;
  index stride;
};

}  // namespace detail

template <class E, class Space>
struct tensor_traits<detail::strided_row<E, Space>> {
  static constexpr bool owns = false;
  template <class Y>
  static constexpr raw_view<const E, Space> raw(Y& x) {
    return {x.data, 2, {1, x.size, 1}, {0, x.stride, 0}};
  }
};

namespace detail {

/// [n] as [1, n].
template <class T, class Space>
constexpr view<T, Space> as_row(const view<T, Space>& v) {
  return view<T, Space>(raw_view<T, Space>{v.data(), 2, {1, v.size(0), 1}, {0, v.stride(0), 0}});
}
template <class T, class Space>
constexpr output<T, Space> as_row(const output<T, Space>& v) {
  output<T, Space> row(raw_view<T, Space>{v.data(), 2, {1, v.size(0), 1}, {0, v.stride(0), 0}});
  row.accumulate = v.accumulate;
  return row;
}
template <class Space>
mask_view<Space> as_row(const mask_view<Space>& m) {
  const index n = m.size(0), step = m.stride(0);
  switch (m.kind()) {
    case mask_kind::flag:
      return mask_view<Space>(
          strided_row<std::uint8_t, Space>{static_cast<const std::uint8_t*>(m.data()), n, step});
    case mask_kind::weight32:
      return mask_view<Space>(
          strided_row<float, Space>{static_cast<const float*>(m.data()), n, step});
    case mask_kind::weight64:
      return mask_view<Space>(
          strided_row<double, Space>{static_cast<const double*>(m.data()), n, step});
    case mask_kind::none:
      break;
  }
  return m;
}

/// A rank-1 tensor becomes a row where `as_one_row` says so; anything else stays as it is, for the
/// binder to judge.
template <class V>
V row_if(bool as_one_row, const V& v) {
  return as_one_row && v.rank() == 1 ? as_row(v) : v;
}

}  // namespace detail

}  // namespace rlhf::inline v1
