#pragma once

#include <concepts>
#include <cstddef>
#include <type_traits>
#include <utility>

#include "rlhf/core/scalar.hpp"
#include "rlhf/tensor/shape.hpp"

namespace rlhf::inline v1 {

/// Says how a user's type becomes a view. A specialisation has
///   static constexpr bool owns;             a temporary of this type frees its memory
///   static auto raw(X& x) -> raw_view<...>  pointer, extents, element strides
/// Standard containers and anything that looks like std::mdspan are known here; each backend
/// header adds its own library's types.
template <class X>
struct tensor_traits;

template <class X>
using bare = std::remove_cvref_t<X>;

template <class X>
concept tensor = requires(X& x) {
  tensor_traits<bare<X>>::raw(x);
};

template <class X>
using raw_of = decltype(tensor_traits<bare<X>>::raw(
    std::declval<std::add_lvalue_reference_t<std::remove_reference_t<X>>>()));
template <class X>
using element_of = typename raw_of<X>::element;
template <class X>
using tensor_space = typename raw_of<X>::space;

/// An rvalue of an owner would leave a dangling view behind.
template <class X>
concept owner = tensor_traits<bare<X>>::owns;

/// Says how a library's own pointer type becomes a plain one; a shape follows it. A specialisation
/// has element, space and static element* raw(const P&).
template <class P>
struct pointer_traits;

template <class P>
concept library_pointer = requires(const P& p) {
  pointer_traits<P>::raw(p);
};

template <class P, class T, class Space>
concept points_to = library_pointer<P> && requires {
  requires std::same_as<typename pointer_traits<P>::space, Space>;
  requires std::is_convertible_v < typename pointer_traits<P>::element(*)
  [], T(*)[] > ;
};

namespace detail {

/// A contiguous range that is no array: std::vector, std::span, std::array and their like, found
/// by shape so that none of their headers is needed here.
template <class X>
concept contiguous_range = requires(X& x) {
  {*x.data()};
  { x.size() } -> std::convertible_to<std::size_t>;
  {x.begin()};
  requires std::is_pointer_v<decltype(x.data())>;
};

/// Anything with dimensions or a layout of its own is not a plain range.
template <class X>
concept has_dimensions = requires(X& x) {
  x.rows();
}
|| requires(X& x) { x.shape(); }
|| requires(X& x) { x.rank(); };

template <class X>
concept span_like = requires {
  X::extent;
}
&&std::is_trivially_copyable_v<X>;

template <class X>
concept mdspan_like = requires(X& x) {
  x.data_handle();
  x.extent(0);
  x.stride(0);
  X::rank();
};

template <class T>
concept plain_element = std::is_arithmetic_v<std::remove_const_t<T>> ||
    std::is_trivially_copyable_v<std::remove_const_t<T>>;

template <class T, class Space = host_space>
constexpr raw_view<T, Space> contiguous(T* data, std::size_t n) {
  return {data, 1, {static_cast<index>(n), 1, 1}, {1, 0, 0}};
}

}  // namespace detail

template <class X>
  requires(detail::contiguous_range<X> && !detail::has_dimensions<X>)
struct tensor_traits<X> {
  static constexpr bool owns = !detail::span_like<X>;
  template <class Y>
  static constexpr auto raw(Y& x) {
    return detail::contiguous(x.data(), static_cast<std::size_t>(x.size()));
  }
};

template <class X>
  requires detail::mdspan_like<X>
struct tensor_traits<X> {
  static constexpr bool owns = false;
  template <class Y>
  static constexpr auto raw(Y& x)
      -> raw_view<std::remove_pointer_t<decltype(x.data_handle())>, host_space> {
    static_assert(X::rank() >= 1 && X::rank() <= 3, "rlhf: a tensor has one to three extents");
    raw_view<std::remove_pointer_t<decltype(x.data_handle())>, host_space> r;
    r.data = x.data_handle();
    r.rank = static_cast<int>(X::rank());
    for (int k = 0; k < r.rank; ++k) {
      r.size[k] = static_cast<index>(x.extent(static_cast<std::size_t>(k)));
      r.stride[k] = static_cast<index>(x.stride(static_cast<std::size_t>(k)));
    }
    return r;
  }
};

template <class T, std::size_t N>
  requires(!std::is_array_v<T>)
struct tensor_traits<T[N]> {
  static constexpr bool owns = false;
  template <class U>
  static constexpr raw_view<U, host_space> raw(U (&x)[N]) {
    return detail::contiguous(&x[0], N);
  }
};

template <class T, std::size_t B, std::size_t R, std::size_t C>
  requires(!std::is_array_v<T>)
struct tensor_traits<T[B][R][C]> {
  static constexpr bool owns = false;
  template <class U>
  static constexpr raw_view<U, host_space> raw(U(&x)[B][R][C]) {
    return {&x[0][0][0],
            3,
            {static_cast<index>(B), static_cast<index>(R), static_cast<index>(C)},
            {static_cast<index>(R * C), static_cast<index>(C), 1}};
  }
};

template <class T, std::size_t R, std::size_t C>
  requires(!std::is_array_v<T>)
struct tensor_traits<T[R][C]> {
  static constexpr bool owns = false;
  template <class U>
  static constexpr raw_view<U, host_space> raw(U(&x)[R][C]) {
    return {&x[0][0],
            2,
            {static_cast<index>(R), static_cast<index>(C), 1},
            {static_cast<index>(C), 1, 0}};
  }
};

}  // namespace rlhf::inline v1
