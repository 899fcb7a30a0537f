#pragma once

#include <cstdint>

#include "rlhf/core/config.hpp"
#include "rlhf/tensor/view.hpp"

namespace rlhf::inline v1 {

/// Lengths, offsets, labels or group ids: int32 or int64, rank 1 or 2, any stride.
template <class Space = host_space>
class index_view {
  const void* data_ = nullptr;
  int rank_ = 0;
  bool wide_ = false;
  index size_[2] = {0, 1};
  index stride_[2] = {0, 0};

  template <class I>
  static constexpr bool fits_index = std::signed_integral<I> && (sizeof(I) == 4 || sizeof(I) == 8);
  template <class E>
  static constexpr void accept_element() {
    static_assert(fits_index<E>, "rlhf: lengths, offsets, labels and group ids are int32 or int64");
  }
  constexpr void reshape(const rlhf::shape& s) {
    rank_ = s.rank;
    size_[0] = s.size[0], size_[1] = s.size[1];
    stride_[0] = s.rank == 2 ? s.size[1] : 1, stride_[1] = s.rank == 2 ? 1 : 0;
  }
  constexpr void mistaken(const rlhf::shape& s, detail::misfit what, index number) {
    reshape(s.rank == 0 ? rlhf::shape(0) : s);  // given, whatever it is
    data_ = nullptr;
    stride_[0] = detail::stride_of(what, number);
  }

 public:
  using space = Space;

  constexpr index_view() = default;
  template <class I>
    requires fits_index<I>
  constexpr index_view(const I* data, const rlhf::shape& s)
      : data_(data),
        rank_(s.rank),
        wide_(sizeof(I) == 8),
        size_{s.size[0], s.size[1]},
        stride_{s.rank == 2 ? s.size[1] : 1, s.rank == 2 ? index{1} : index{0}} {}
  template <class E>
    requires(!fits_index<E>)
  constexpr index_view(const E*, const rlhf::shape&) { accept_element<E>(); }
  template <class P>
    requires points_to<P, const typename pointer_traits<P>::element, Space>
  constexpr index_view(const P& data, const rlhf::shape& s)
      : index_view(pointer_traits<P>::raw(data), s) {}
  template <tensor X>
    requires(fits_index<std::remove_const_t<element_of<X>>>&& std::same_as<tensor_space<X>, Space>)
  constexpr index_view(X&& x) {
    static_assert(!(owner<X> && !std::is_lvalue_reference_v<X>),
                  "rlhf: a temporary that owns its memory would dangle; name it first");
    const auto r = tensor_traits<bare<X>>::raw(x);
    data_ = r.data;
    rank_ = r.rank;
    wide_ = sizeof(element_of<X>) == 8;
    for (int k = 0; k < 2; ++k) size_[k] = r.size[k], stride_[k] = r.stride[k];
  }
  template <tensor X>
  constexpr index_view(X&& x, const rlhf::shape& s) : index_view(std::forward<X>(x)) {
    if (rank_ != 1 || (size_[0] > 1 && stride_[0] != 1)) [[unlikely]]
      mistaken(s, detail::misfit::range, rank_);
    else if (size_[0] != s.elements() || s.rank == 0) [[unlikely]]
      mistaken(s, detail::misfit::length, size_[0]);
    else
      reshape(s);
  }
  template <class X>
    requires(!tensor<X> && !std::derived_from<bare<X>, index_view>)
  constexpr index_view(X&&) {
    static_assert(tensor<X>,
                  "rlhf: this type is not a tensor; an expression needs .eval(), a pointer needs "
                  "its shape: {p, {rows, columns}}");
  }
  template <tensor X>
    requires(!(fits_index<std::remove_const_t<element_of<X>>> &&
               std::same_as<tensor_space<X>, Space>))
  constexpr index_view(X&&) {
    accept_element<std::remove_const_t<element_of<X>>>();
    static_assert(std::same_as<tensor_space<X>, Space>,
                  "rlhf: the tensor is in another memory space than the executor");
  }

  RLHF_HOST_DEVICE constexpr explicit operator bool() const { return rank_ != 0; }
  RLHF_HOST_DEVICE constexpr const void* data() const { return data_; }
  constexpr std::size_t element_size() const { return wide_ ? 8 : 4; }
  RLHF_HOST_DEVICE constexpr int rank() const { return rank_; }
  RLHF_HOST_DEVICE constexpr index size(int k) const { return size_[k]; }
  constexpr const index* strides() const { return stride_; }
  constexpr rlhf::shape shape() const {
    rlhf::shape s;
    s.rank = rank_;
    s.size[0] = size_[0], s.size[1] = size_[1];
    return s;
  }
  RLHF_HOST_DEVICE constexpr index operator()(index i, index j) const {
    const index at = i * stride_[0] + j * stride_[1];
    return wide_ ? static_cast<index>(static_cast<const std::int64_t*>(data_)[at])
                 : static_cast<index>(static_cast<const std::int32_t*>(data_)[at]);
  }
  RLHF_HOST_DEVICE constexpr index operator[](index i) const { return (*this)(i, 0); }
};

enum class mask_kind : std::uint8_t { none, flag, weight32, weight64 };

/// Which tokens count: bool or uint8 flags, or float/double weights, each 0 or from 1e-30 to 1e30.
/// Left out, every token of the layout counts.
template <class Space = host_space>
class mask_view {
  const void* data_ = nullptr;
  mask_kind kind_ = mask_kind::none;
  int rank_ = 0;
  index size_[2] = {0, 1};
  index stride_[2] = {0, 0};

  template <class E>
  static constexpr mask_kind kind_of() {
    if constexpr (std::same_as<E, bool> || std::same_as<E, std::uint8_t>)
      return mask_kind::flag;
    else if constexpr (std::same_as<E, float>)
      return mask_kind::weight32;
    else if constexpr (std::same_as<E, double>)
      return mask_kind::weight64;
    else
      return mask_kind::none;
  }
  template <class E>
  static constexpr void accept_element() {
    static_assert(kind_of<E>() != mask_kind::none,
                  "rlhf: a mask is bool, uint8_t, or float/double weights");
  }
  constexpr void reshape(const rlhf::shape& s) {
    rank_ = s.rank;
    size_[0] = s.size[0], size_[1] = s.size[1];
    stride_[0] = s.rank == 2 ? s.size[1] : 1, stride_[1] = s.rank == 2 ? 1 : 0;
  }
  constexpr void mistaken(const rlhf::shape& s, detail::misfit what, index number) {
    reshape(s.rank == 0 ? rlhf::shape(0) : s);  // given, whatever it is
    data_ = nullptr;
    stride_[0] = detail::stride_of(what, number);
  }

 public:
  using space = Space;

  constexpr mask_view() = default;
  template <class E>
    requires(kind_of<E>() != mask_kind::none)
  constexpr mask_view(const E* data, const rlhf::shape& s)
      : data_(data),
        kind_(kind_of<E>()),
        rank_(s.rank),
        size_{s.size[0], s.size[1]},
        stride_{s.rank == 2 ? s.size[1] : 1, s.rank == 2 ? index{1} : index{0}} {}
  template <class E>
    requires(kind_of<E>() == mask_kind::none)
  constexpr mask_view(const E*, const rlhf::shape&, const rlhf::shape& = {}) {
    accept_element<E>();
  }
  template <class P>
    requires points_to<P, const typename pointer_traits<P>::element, Space>
  constexpr mask_view(const P& data, const rlhf::shape& s)
      : mask_view(pointer_traits<P>::raw(data), s) {}
  template <class E>
    requires(kind_of<E>() != mask_kind::none)
  constexpr mask_view(const E* data, const rlhf::shape& s, const rlhf::shape& strides)
      : data_(data),
        kind_(kind_of<E>()),
        rank_(s.rank),
        size_{s.size[0], s.size[1]},
        stride_{strides.size[0], strides.rank == 2 ? strides.size[1] : index{0}} {
    if (strides.rank != s.rank) [[unlikely]]
      mistaken(s, detail::misfit::strides, strides.rank);
  }
  template <tensor X>
    requires(!std::derived_from<bare<X>, mask_view>)
  constexpr mask_view(X&& x) {
    using E = std::remove_const_t<element_of<X>>;
    accept_element<E>();
    static_assert(std::same_as<tensor_space<X>, Space>,
                  "rlhf: the tensor is in another memory space than the executor");
    static_assert(!(owner<X> && !std::is_lvalue_reference_v<X>),
                  "rlhf: a temporary that owns its memory would dangle; name it first");
    const auto r = tensor_traits<bare<X>>::raw(x);
    data_ = r.data;
    kind_ = kind_of<E>();
    rank_ = r.rank;
    for (int k = 0; k < 2; ++k) size_[k] = r.size[k], stride_[k] = r.stride[k];
  }
  template <tensor X>
    requires(!std::derived_from<bare<X>, mask_view>)
  constexpr mask_view(X&& x, const rlhf::shape& s) : mask_view(std::forward<X>(x)) {
    if (rank_ != 1 || (size_[0] > 1 && stride_[0] != 1)) [[unlikely]]
      mistaken(s, detail::misfit::range, rank_);
    else if (size_[0] != s.elements() || s.rank == 0) [[unlikely]]
      mistaken(s, detail::misfit::length, size_[0]);
    else
      reshape(s);
  }
  template <class X>
    requires(!tensor<X> && !std::derived_from<bare<X>, mask_view>)
  constexpr mask_view(X&&) {
    static_assert(tensor<X>,
                  "rlhf: this mask is not a tensor; std::vector<bool> has no array of bool: use "
                  "std::vector<std::uint8_t>");
  }
  template <class X>
    requires(!tensor<X> && std::is_class_v<bare<X>> && !library_pointer<bare<X>>)
  constexpr mask_view(X&& x, const rlhf::shape&) : mask_view(std::forward<X>(x)) {}

  RLHF_HOST_DEVICE constexpr explicit operator bool() const { return rank_ != 0; }
  RLHF_HOST_DEVICE constexpr const void* data() const { return data_; }
  constexpr const index* sizes() const { return size_; }
  constexpr const index* strides() const { return stride_; }
  constexpr std::size_t element_size() const {
    return kind_ == mask_kind::weight64 ? 8 : kind_ == mask_kind::weight32 ? 4 : 1;
  }
  RLHF_HOST_DEVICE constexpr mask_kind kind() const { return kind_; }
  RLHF_HOST_DEVICE constexpr int rank() const { return rank_; }
  RLHF_HOST_DEVICE constexpr index size(int k) const { return size_[k]; }
  RLHF_HOST_DEVICE constexpr index stride(int k) const { return stride_[k]; }
  constexpr rlhf::shape shape() const {
    rlhf::shape s;
    s.rank = rank_;
    s.size[0] = size_[0], s.size[1] = size_[1];
    return s;
  }
  /// The weight at an element offset; flags weigh 0 or 1.
  RLHF_HOST_DEVICE constexpr double at(index offset) const {
    switch (kind_) {
      case mask_kind::flag:
        return static_cast<const std::uint8_t*>(data_)[offset] != 0 ? 1.0 : 0.0;
      case mask_kind::weight32:
        return static_cast<double>(static_cast<const float*>(data_)[offset]);
      case mask_kind::weight64:
        return static_cast<const double*>(data_)[offset];
      case mask_kind::none:
        break;
    }
    return 1.0;
  }
};

enum class arrangement : std::uint8_t { padded, lengths, packed };

/// How sequences lie in memory. Default: padded [batch, time], every column a token.
template <class Space = host_space>
struct sequence_layout {
  arrangement kind = arrangement::padded;
  index_view<Space> indices = {};

  constexpr sequence_layout() = default;
  constexpr sequence_layout(arrangement k, const index_view<Space>& at) : kind(k), indices(at) {}
  template <class X>
    requires(!std::derived_from<bare<X>, sequence_layout>)
  constexpr sequence_layout(X&&) {
    if constexpr (requires { typename bare<X>::layout_space; })
      detail::reject_space<typename bare<X>::layout_space, Space>();
    else
      static_assert(std::is_void_v<X>,
                    "rlhf: say how sequences lie: .layout = rlhf::lengths(x) or "
                    "rlhf::packed(cu_seqlens)");
  }
  using layout_space = Space;
};

/// Padded rows whose first lengths[i] columns are tokens.
template <tensor X>
constexpr auto lengths(X&& x) {
  return sequence_layout<tensor_space<X>>{arrangement::lengths,
                                          index_view<tensor_space<X>>(std::forward<X>(x))};
}
template <class Space = host_space, std::integral N>
constexpr auto lengths(const N* data, const rlhf::shape& s) {
  return sequence_layout<Space>{arrangement::lengths, index_view<Space>(data, s)};
}

/// Sequences one after the other; sequence i is [cu_seqlens[i], cu_seqlens[i + 1]).
template <tensor X>
constexpr auto packed(X&& cu_seqlens) {
  return sequence_layout<tensor_space<X>>{arrangement::packed,
                                          index_view<tensor_space<X>>(std::forward<X>(cu_seqlens))};
}
template <class Space = host_space, std::integral N>
constexpr auto packed(const N* data, const rlhf::shape& s) {
  return sequence_layout<Space>{arrangement::packed, index_view<Space>(data, s)};
}

}  // namespace rlhf::inline v1
