#pragma once

#include "rlhf/backend/host.hpp"

// Eigen's dense types are recognised by shape (data, strides, storage order), so this header works
// with every Eigen that has them and costs nothing to compile beyond the host backend.
#include <Eigen/Core>

namespace rlhf::inline v1 {

namespace detail {

template <class X>
concept eigen_dense = requires(X& x) {
  x.data();
  x.rows();
  x.cols();
  x.innerStride();
  x.outerStride();
  X::IsRowMajor;
  X::IsVectorAtCompileTime;
};

}  // namespace detail

/// Array, Matrix, Map, Ref, and Blocks of them; row- or column-major, any strides. A vector has rank
/// 1, everything else rank 2. An expression has no memory and does not compile: .eval() it.
template <class X>
  requires detail::eigen_dense<X>
struct tensor_traits<X> {
  static constexpr bool owns = std::is_base_of_v<Eigen::PlainObjectBase<X>, X>;

  template <class Y>
  static constexpr auto raw(Y& x)
      -> raw_view<std::remove_pointer_t<decltype(x.data())>, host_space> {
    const auto inner = static_cast<index>(x.innerStride());
    const auto outer = static_cast<index>(x.outerStride());
    if constexpr (X::IsVectorAtCompileTime)
      return {x.data(), 1, {static_cast<index>(x.size()), 1, 1}, {inner, 0, 0}};
    else if constexpr (X::IsRowMajor)
      return {x.data(),
              2,
              {static_cast<index>(x.rows()), static_cast<index>(x.cols()), 1},
              {outer, inner, 0}};
    else
      return {x.data(),
              2,
              {static_cast<index>(x.rows()), static_cast<index>(x.cols()), 1},
              {inner, outer, 0}};
  }
};

}  // namespace rlhf::inline v1
