#pragma once

#include "rlhf/backend/host.hpp"

// xtensor 0.26 moved its headers into folders.
#if __has_include(<xtensor/containers/xtensor.hpp>)
#include <xtensor/containers/xtensor.hpp>
#else
#include <xtensor/xtensor.hpp>
#endif

namespace rlhf::inline v1 {

namespace detail {

template <class X>
concept xtensor_like = requires(X& x) {
  x.data();
  x.dimension();
  x.shape();
  x.strides();
  x.data_offset();
};

template <class X>
concept xtensor_owner = requires {
  typename X::temporary_type;
  requires std::same_as<typename X::temporary_type, X>;
};

}  // namespace detail

/// xtensor, xarray, adapt, view and strided_view with memory behind them; one to three dimensions,
/// any layout. An expression has no memory and does not compile: xt::eval it.
template <class X>
  requires detail::xtensor_like<X>
struct tensor_traits<X> {
  static constexpr bool owns = detail::xtensor_owner<X>;

  template <class Y>
  static auto raw(Y& x) -> raw_view<std::remove_pointer_t<decltype(x.data())>, host_space> {
    raw_view<std::remove_pointer_t<decltype(x.data())>, host_space> r;
    const auto rank = x.dimension();
    if (rank < 1 || rank > 3) [[unlikely]] {  // said where function and argument are known
      r.rank = rank < 1 ? 1 : static_cast<int>(rank);
      r.size[0] = 0;
      r.stride[0] = detail::stride_of(detail::misfit::rank, static_cast<index>(rank));
      return r;
    }
    r.data = x.data() + x.data_offset();
    r.rank = static_cast<int>(rank);
    for (std::size_t k = 0; k < rank; ++k) {
      r.size[k] = static_cast<index>(x.shape()[k]);
      r.stride[k] = static_cast<index>(x.strides()[k]);
    }
    return r;
  }
};

}  // namespace rlhf::inline v1
