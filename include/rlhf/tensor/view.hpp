#pragma once

#include "rlhf/core/config.hpp"
#include "rlhf/tensor/traits.hpp"

namespace rlhf::inline v1 {

template <class X, class T, class Space>
inline constexpr bool fits = [] {
  if constexpr (tensor<X>)
    return std::is_convertible_v<element_of<X>(*)[], T(*)[]> &&
           std::same_as<tensor_space<X>, Space> && !(owner<X> && !std::is_lvalue_reference_v<X>);
  else
    return false;
}();

namespace detail {

/// The sentences a user reads when a tensor does not fit a field. Each cause is asked alone, so the
/// compiler prints one.
template <class E, class T>
constexpr void reject_element() {
  if constexpr (!std::same_as<std::remove_const_t<E>, std::remove_const_t<T>>)
    static_assert(std::same_as<std::remove_const_t<E>, std::remove_const_t<T>>,
                  "rlhf: the element type differs from the scalar of the call, f<scalar>(...)");
  else
    static_assert(!std::is_const_v<E> || std::is_const_v<T>, "rlhf: an output must not be const");
}

template <class Given, class Space>
constexpr void reject_space() {
  static_assert(std::same_as<Given, Space>,
                "rlhf: the tensor is in another memory space than the executor");
}

template <class X, class T, class Space>
constexpr void reject() {
  if constexpr (!tensor<X>)
    static_assert(tensor<X>,
                  "rlhf: this type is not a tensor; an expression needs .eval(), a pointer needs "
                  "its shape: {p, {rows, columns}}");
  else if constexpr (!std::same_as<tensor_space<X>, Space>)
    reject_space<tensor_space<X>, Space>();
  else if constexpr (!std::is_convertible_v<element_of<X>(*)[], T(*)[]>)
    reject_element<element_of<X>, T>();
  else
    static_assert(!owner<X>, "rlhf: a temporary that owns its memory would dangle; name it first");
}

/// The same for what stands before a shape, where a pointer is right.
template <class X, class T, class Space>
constexpr void reject_with_shape() {
  if constexpr (std::is_pointer_v<bare<X>>) {
    reject_element<std::remove_pointer_t<bare<X>>, T>();
  } else if constexpr (library_pointer<bare<X>>) {
    reject_space<typename pointer_traits<bare<X>>::space, Space>();
    reject_element<typename pointer_traits<bare<X>>::element, T>();
  } else {
    reject<X, T, Space>();
  }
}

}  // namespace detail

/// A non-owning view of the caller's tensor: pointer, up to three extents, element strides. It is
/// built in place from any `tensor`, from {pointer, shape}, or from {range, shape}; default
/// constructed it means "not given".
template <class T, class Space = host_space>
class view {
  raw_view<T, Space> raw_{};

  template <class X>
  constexpr void adopt(X& x) {
    const auto r = tensor_traits<bare<X>>::raw(x);
    raw_.data = r.data;
    raw_.rank = r.rank;
    for (int k = 0; k < 3; ++k) {
      raw_.size[k] = r.size[k];
      raw_.stride[k] = r.stride[k];
    }
  }

  constexpr void dense(T* data, const rlhf::shape& s) {
    raw_.data = data;
    raw_.rank = s.rank;
    index step = 1;
    for (int k = s.rank - 1; k >= 0; --k) {
      raw_.size[k] = s.size[k];
      raw_.stride[k] = step;
      // Unsigned, because extents are checked later, where the error can name its argument.
      step =
          static_cast<index>(static_cast<std::size_t>(step) * static_cast<std::size_t>(s.size[k]));
    }
  }

  constexpr void strided(T* data, const rlhf::shape& s, const rlhf::shape& strides) {
    raw_.data = data;
    raw_.rank = s.rank;
    for (int k = 0; k < s.rank; ++k) {
      raw_.size[k] = s.size[k];
      raw_.stride[k] = strides.size[k];
    }
  }

  constexpr void mistaken(const rlhf::shape& s, detail::misfit what, index number) {
    dense(nullptr, s.rank == 0 ? rlhf::shape(0) : s);  // given, whatever it is
    raw_.stride[0] = detail::stride_of(what, number);
  }

 public:
  using element = T;
  using space = Space;

  constexpr view() = default;
  constexpr view(raw_view<T, Space> raw) : raw_(raw) {}
  constexpr view(T* data, const rlhf::shape& s) { dense(data, s); }
  constexpr view(T* data, const rlhf::shape& s, const rlhf::shape& strides) {
    if (strides.rank != s.rank) [[unlikely]]
      mistaken(s, detail::misfit::strides, strides.rank);
    else
      strided(data, s, strides);
  }
  template <class P>
    requires points_to<P, T, Space>
  constexpr view(const P& data, const rlhf::shape& s) { dense(pointer_traits<P>::raw(data), s); }
  template <class X>
    requires fits<X, T, Space>
  constexpr view(X&& x) { adopt(x); }
  template <class X>
    requires fits<X, T, Space>
  constexpr view(X&& x, const rlhf::shape& s) {
    adopt(x);
    if (raw_.rank != 1 || (raw_.size[0] > 1 && raw_.stride[0] != 1)) [[unlikely]]
      mistaken(s, detail::misfit::range, raw_.rank);
    else if (raw_.size[0] != s.elements() || s.rank == 0) [[unlikely]]
      mistaken(s, detail::misfit::length, raw_.size[0]);
    else
      dense(raw_.data, s);
  }
  template <class X>
    requires(!fits<X, T, Space> && !std::derived_from<bare<X>, view> &&
             !std::same_as<bare<X>, raw_view<T, Space>> && !std::is_arithmetic_v<bare<X>>)
  constexpr view(X&&) { detail::reject<X, T, Space>(); }
  template <class X>
    requires(!fits<X, T, Space> && !points_to<bare<X>, T, Space> && !std::is_convertible_v<X, T*> &&
             !std::is_arithmetic_v<bare<X>>)
  constexpr view(X&&, const rlhf::shape&, const rlhf::shape& = {}) {
    detail::reject_with_shape<X, T, Space>();
  }

  /// Given or not: an empty tensor is given, though its pointer may be null.
  RLHF_HOST_DEVICE constexpr explicit operator bool() const { return raw_.rank != 0; }
  RLHF_HOST_DEVICE constexpr const raw_view<T, Space>& raw() const { return raw_; }
  RLHF_HOST_DEVICE constexpr T* data() const { return raw_.data; }
  RLHF_HOST_DEVICE constexpr int rank() const { return raw_.rank; }
  RLHF_HOST_DEVICE constexpr index size(int k) const { return raw_.size[k]; }
  RLHF_HOST_DEVICE constexpr index stride(int k) const { return raw_.stride[k]; }
  constexpr rlhf::shape shape() const {
    rlhf::shape s;
    s.rank = raw_.rank;
    for (int k = 0; k < 3; ++k) s.size[k] = raw_.size[k];
    return s;
  }
};

/// A view is a tensor itself, so it may be given to any field.
template <class T, class Space>
struct tensor_traits<view<T, Space>> {
  static constexpr bool owns = false;
  static constexpr raw_view<T, Space> raw(const view<T, Space>& v) { return v.raw(); }
};

/// An input with one number per token or one per sequence. Padded, the rank says which; packed,
/// a rank-1 tensor is per token unless wrapped in per_sequence(x).
template <class X>
struct per_sequence_reference {
  X&& tensor;
};
template <class X>
constexpr per_sequence_reference<X> per_sequence(X&& x) {
  return {std::forward<X>(x)};
}

template <class T, class Space = host_space>
struct signal : view<T, Space> {
  bool one_per_sequence = false;

  constexpr signal() = default;
  constexpr signal(const view<T, Space>& v) : view<T, Space>(v) {}
  using view<T, Space>::view;
  template <class X>
  constexpr signal(per_sequence_reference<X> x)
      : view<T, Space>(std::forward<X>(x.tensor)), one_per_sequence(true) {}
};

/// Adds to the tensor instead of overwriting it; masked slots keep their bits.
template <class X>
struct add_to_reference {
  X&& tensor;
};
template <class X>
constexpr add_to_reference<X> add_to(X&& x) {
  return {std::forward<X>(x)};
}

template <class T, class Space>
struct add_to_view {
  view<T, Space> tensor;
};
template <class T>
constexpr add_to_view<T, host_space> add_to(T* data, const shape& s) {
  return {view<T, host_space>(data, s)};
}
template <tensor X>
constexpr auto add_to(X&& x, const shape& s) {
  using T = element_of<X>;
  using Space = tensor_space<X>;
  return add_to_view<T, Space>{view<T, Space>(std::forward<X>(x), s)};
}

/// A tensor that the call writes: overwritten, or added to when given as add_to(x).
template <class T, class Space = host_space>
struct output : view<T, Space> {
  bool accumulate = false;

  constexpr output() = default;
  constexpr output(const view<T, Space>& v) : view<T, Space>(v) {}
  using view<T, Space>::view;
  template <class X>
  constexpr output(add_to_reference<X> x)
      : view<T, Space>(std::forward<X>(x.tensor)), accumulate(true) {}
  template <class U, class S>
  constexpr output(add_to_view<U, S> x) : view<T, Space>(x.tensor), accumulate(true) {}
};

/// The scale of the gradient that comes from above: a number, a device_scalar, or a tensor with
/// one number per sequence or per token.
template <class T, class Space = host_space>
struct upstream_scale : signal<const T, Space> {
  double number = 1;
  const double* device = nullptr;

  constexpr upstream_scale() = default;
  constexpr upstream_scale(const view<const T, Space>& v) : signal<const T, Space>(v) {}
  constexpr upstream_scale(const signal<const T, Space>& v) : signal<const T, Space>(v) {}
  using signal<const T, Space>::signal;
  template <class N>
    requires std::is_arithmetic_v<N>
  constexpr upstream_scale(N n) : number(static_cast<double>(n)) {}
  constexpr upstream_scale(device_scalar s) : device(s.address()) {}
};

/// First member of every aggregate of inputs and outputs. Nothing converts to it, not even {}, so
/// a positional call does not compile and every field is named.
class named_only {
 public:
  constexpr explicit named_only() = default;
};

}  // namespace rlhf::inline v1
