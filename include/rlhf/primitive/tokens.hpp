#pragma once

#include "rlhf/tensor/check.hpp"

namespace rlhf::inline v1 {

/// What the fields of a batch are called in errors; a call with two batches has other names. Strings
/// and object live as long as the program.
struct token_field_names {
  const char* mask = "mask";
  const char* lengths = "layout: lengths";
  const char* packed = "layout: packed(cu_seqlens)";
};
inline constexpr token_field_names usual_field_names;

/// The tokens of a batch, whatever its layout: `rows` sequences, each with a beginning and a length,
/// and a mask that may put holes into them. Every primitive walks tokens through this one type, so
/// padded, lengths and packed give the same bits.
template <class Space>
struct token_domain {
  index rows = 0;
  index columns = 0;  ///< padded width; packed: number of tokens
  arrangement kind = arrangement::padded;
  index_view<Space> indices = {};
  mask_view<Space> mask = {};
  const token_field_names* names = nullptr;  ///< null: the usual ones

  constexpr const token_field_names& field_names() const {
    return names != nullptr ? *names : usual_field_names;
  }
  RLHF_HOST_DEVICE constexpr index begin(index i) const {
    return kind == arrangement::packed ? within(indices[i]) : 0;
  }
  RLHF_HOST_DEVICE constexpr index length(index i) const {
    if (kind == arrangement::padded) return columns;
    const index first = kind == arrangement::lengths ? 0 : indices[i];
    const index last = kind == arrangement::lengths ? indices[i] : indices[i + 1];
    // On a stream the host cannot read the indices: what would leave the buffer is an empty row.
    return first >= 0 && last >= first && last <= columns ? last - first : 0;
  }
  /// Slots the row owns in memory: what lies beyond its length is padding.
  RLHF_HOST_DEVICE constexpr index slots(index i) const {
    return kind == arrangement::packed ? length(i) : columns;
  }
  RLHF_HOST_DEVICE constexpr index mask_offset(index i) const {
    return kind == arrangement::packed ? begin(i) * mask.stride(0) : i * mask.stride(0);
  }
  RLHF_HOST_DEVICE constexpr index mask_stride() const {
    return kind == arrangement::packed ? mask.stride(0) : mask.stride(1);
  }
  /// Valid positions end here: the length, or the last position with weight > 0, plus one.
  RLHF_HOST_DEVICE constexpr index valid_length(index i) const {
    index n = length(i);
    if (mask.kind() == mask_kind::none) return n;
    const index at = mask_offset(i), step = mask_stride();
    while (n > 0 && !(mask.at(at + (n - 1) * step) > 0)) --n;
    return n;
  }

 private:
  RLHF_HOST_DEVICE constexpr index within(index n) const {
    return n < 0 ? 0 : n > columns ? columns : n;
  }
};

/// Where element (i, j) of an input lies: data[i * per_row + begin(i) * per_begin + j * stride].
/// A null pointer means "not given": every token then reads `absent`.
template <class T>
struct token_input {
  const T* data = nullptr;
  index per_row = 0, per_begin = 0, stride = 0;
  T absent = T(0);
};

template <class T>
struct token_output {
  T* data = nullptr;
  index per_row = 0, per_begin = 0, stride = 0;
  bool accumulate = false;
};

inline namespace RLHF_CHECKS {

/// Turns the views of a call into inputs and outputs over one domain, and holds every check of
/// shape, memory and overlap, so that an algorithm states its fields and nothing else.
template <class Space>
class token_binder {
  const char* function_;
  token_domain<Space> domain_;
  rlhf::shape token_shape_;
  struct named_range {
    const char* name;
    detail::byte_range bytes;
    bool written;
  };
  named_range seen_[24];
  int seen_count_ = 0;

  RLHF_NOINLINE void note(const char* name, detail::byte_range bytes, bool written) {
    for (int k = 0; k < seen_count_; ++k)
      if ((written || seen_[k].written) && detail::overlap(bytes, seen_[k].bytes)) [[unlikely]] {
        detail::sentence s;
        s.add("memory that overlaps ").add(seen_[k].name);
        detail::fail(function_, name, "memory of its own", s.c_str());
      }
    if (seen_count_ < 24) seen_[seen_count_++] = {name, bytes, written};
  }

  const token_field_names& names() const { return domain_.field_names(); }

  template <class V>
  void match(const char* name, const V& v) const {
    if (!(v.shape() == token_shape_)) [[unlikely]]
      detail::fail_shape(function_, name, token_shape_, v.shape());
  }

  RLHF_NOINLINE void bind_layout(const sequence_layout<Space>& layout) {
    domain_.kind = layout.kind;
    domain_.indices = layout.indices;
    const char* const what = layout.kind == arrangement::packed ? names().packed : names().lengths;
    if (layout.kind == arrangement::padded) {
      domain_.rows = token_shape_.size[0];
      domain_.columns = token_shape_.size[1];
      return;
    }
    const index_view<Space>& at = layout.indices;
    if (at.rank() != 1) [[unlikely]]
      detail::fail_shape(function_, what, "rank 1", at.shape());
    detail::check_indices(function_, what, at);
    if (layout.kind == arrangement::lengths) {
      domain_.rows = token_shape_.size[0];
      domain_.columns = token_shape_.size[1];
      if (at.size(0) != domain_.rows) [[unlikely]]
        detail::fail_shape(function_, what, shape(domain_.rows), at.shape());
    } else {
      expects(at.size(0) >= 1, function_, what, "rows + 1 offsets, at least one", at.size(0));
      domain_.rows = at.size(0) - 1;
      domain_.columns = token_shape_.size[0];
    }
    if constexpr (std::same_as<Space, host_space>) {
      if (layout.kind == arrangement::lengths) {
        for (index i = 0; i < domain_.rows; ++i)
          if (at[i] < 0 || at[i] > domain_.columns) [[unlikely]]
            detail::fail(function_, what, "0 <= length <= columns", at[i]);
      } else {
        expects(at[0] == 0, function_, what, "offsets that begin with 0", at[0]);
        for (index i = 0; i < domain_.rows; ++i)
          if (at[i + 1] < at[i]) [[unlikely]]
            detail::fail(function_, what, "offsets that do not decrease", at[i + 1]);
        expects(at[domain_.rows] == domain_.columns, function_, what,
                "offsets that end with the number of tokens", at[domain_.rows]);
      }
    }
  }

  template <class W>
  void check_weights(const W* weights) const {
    const index step = domain_.mask_stride();
    for (index i = 0; i < domain_.rows; ++i) {
      const W* const row = weights + domain_.mask_offset(i);
      const index n = domain_.length(i);
      bool wrong = false;  // one look at the end, so that the loop has no branch
      for (index j = 0; j < n; ++j) wrong |= !detail::is_weight(static_cast<double>(row[j * step]));
      if (wrong) [[unlikely]]
        fail_weight(i);
    }
  }
  [[noreturn, gnu::noinline, gnu::cold]] void fail_weight(index i) const {
    index at = domain_.mask_offset(i);
    while (detail::is_weight(domain_.mask.at(at))) at += domain_.mask_stride();
    detail::fail(function_, names().mask, detail::weight_range, domain_.mask.at(at));
  }

  /// Checks the memory of a tensor of the right shape.
  RLHF_NOINLINE void take(const char* name, const void* data, std::size_t element,
                          std::size_t alignment, int rank, const index* size, const index* stride,
                          bool is_written) {
    detail::check_memory(function_, name, data, alignment, rank, size, stride);
    if (is_written) detail::check_distinct(function_, name, rank, size, stride);
    note(name, detail::bytes_of(data, element, rank, size, stride), is_written);
  }
  template <class T>
  void take(const char* name, const view<T, Space>& v, bool is_written) {
    take(name, v.data(), sizeof(T), alignof(T), v.rank(), v.raw().size, v.raw().stride, is_written);
  }

  RLHF_NOINLINE void bind_mask(const mask_view<Space>& mask) {
    if (!mask) return;
    if (!(mask.shape() == token_shape_)) [[unlikely]]
      detail::fail_shape(function_, names().mask, token_shape_, mask.shape());
    detail::check_indices(function_, names().mask, mask);
    note(names().mask,
         detail::bytes_of(mask.data(), mask.element_size(), mask.rank(), mask.sizes(),
                          mask.strides()),
         false);
    domain_.mask = mask;
    if constexpr (std::same_as<Space, host_space>) {
      if (mask.kind() == mask_kind::weight32) check_weights(static_cast<const float*>(mask.data()));
      if (mask.kind() == mask_kind::weight64)
        check_weights(static_cast<const double*>(mask.data()));
    }
  }

 public:
  /// `leading` is the tensor whose shape all others share.
  template <class T>
  token_binder(const char* function, const char* name, const view<T, Space>& leading,
               const sequence_layout<Space>& layout, const mask_view<Space>& mask,
               const token_field_names* names = nullptr)
      : function_(function), token_shape_(leading.shape()) {
    domain_.names = names;
    if (!leading) [[unlikely]]
      detail::fail(function, name, "a tensor: this input is required", "none");
    const bool packed = layout.kind == arrangement::packed;
    if (leading.rank() != (packed ? 1 : 2)) [[unlikely]]
      detail::fail_shape(function, name,
                         packed ? "rank 1, because the layout is packed"
                                : "rank 2, [batch, time]; rank 1 needs .layout = packed(offsets)",
                         leading.shape());
    detail::check_memory(function, name, leading);
    bind_layout(layout);
    bind_mask(mask);
  }

  const token_domain<Space>& domain() const { return domain_; }
  const char* function() const { return function_; }

  /// Memory of a tensor that is bound elsewhere; what is written must not overlap it.
  void occupy(const char* name, detail::byte_range bytes, bool is_written) {
    note(name, bytes, is_written);
  }

  /// An input with one number per token.
  template <class T>
  RLHF_NOINLINE token_input<T> token(const char* name, const view<const T, Space>& v) {
    if (!v) [[unlikely]]
      detail::fail(function_, name, "a tensor: this input is required", "none");
    match(name, v);
    take(name, v, false);
    const bool packed = domain_.kind == arrangement::packed;
    return {v.data(), packed ? 0 : v.stride(0), packed ? v.stride(0) : 0,
            packed ? v.stride(0) : v.stride(1), T(0)};
  }
  template <class T>
  RLHF_NOINLINE token_input<T> token(const char* name, const view<const T, Space>& v, T absent) {
    if (v) return token(name, v);
    token_input<T> none;
    none.absent = absent;
    return none;
  }

  /// An input with one number per sequence.
  template <class T>
  RLHF_NOINLINE token_input<T> sequence(const char* name, const view<const T, Space>& v) {
    if (!v) [[unlikely]]
      detail::fail(function_, name, "a tensor: this input is required", "none");
    if (v.rank() != 1 || v.size(0) != domain_.rows) [[unlikely]]
      detail::fail_shape(function_, name, shape(domain_.rows), v.shape());
    take(name, v, false);
    return {v.data(), v.stride(0), 0, 0, T(0)};
  }

  /// An input with one number per token or one per sequence.
  template <class T>
  RLHF_NOINLINE token_input<T> either(const char* name, const signal<const T, Space>& v) {
    const bool rows = v.one_per_sequence || (v.rank() == 1 && domain_.kind != arrangement::packed);
    if (rows) return sequence(name, static_cast<const view<const T, Space>&>(v));
    if (v && !(v.shape() == token_shape_)) [[unlikely]] {
      detail::sentence s;
      detail::add_shape(s.add("shape "), token_shape_);
      const bool packed = domain_.kind == arrangement::packed;
      detail::add_shape(s.add(packed ? ", or per_sequence(x) of shape " : ", or shape "),
                        rlhf::shape(domain_.rows));
      detail::fail_shape(function_, name, s.c_str(), v.shape());
    }
    return token(name, static_cast<const view<const T, Space>&>(v));
  }
  template <class T>
  RLHF_NOINLINE token_input<T> either(const char* name, const signal<const T, Space>& v, T absent) {
    if (v) return either(name, v);
    token_input<T> none;
    none.absent = absent;
    return none;
  }

  /// The tensor of .upstream, if it is one.
  template <class T>
  token_input<T> upstream(const upstream_scale<T, Space>& scale) {
    detail::check_address(function_, "upstream", scale.device);
    return either("upstream", static_cast<const signal<const T, Space>&>(scale), T(1));
  }

  /// A tensor the call writes, one number per token; not given is fine.
  template <class T>
  RLHF_NOINLINE token_output<T> written(const char* name, const output<T, Space>& v) {
    if (!v) return {};
    match(name, v);
    take(name, static_cast<const view<T, Space>&>(v), true);
    const bool packed = domain_.kind == arrangement::packed;
    return {v.data(), packed ? 0 : v.stride(0), packed ? v.stride(0) : 0,
            packed ? v.stride(0) : v.stride(1), v.accumulate};
  }

  /// A tensor the call writes, one number per sequence.
  template <class T>
  RLHF_NOINLINE token_output<T> written_per_sequence(const char* name, const output<T, Space>& v) {
    if (!v) return {};
    if (v.rank() != 1 || v.size(0) != domain_.rows) [[unlikely]]
      detail::fail_shape(function_, name, shape(domain_.rows), v.shape());
    take(name, static_cast<const view<T, Space>&>(v), true);
    return {v.data(), v.stride(0), 0, 0, v.accumulate};
  }

  /// Ids of rows (groups, rollouts): rank 1, one per sequence.
  RLHF_NOINLINE void row_ids(const char* name, const index_view<Space>& v) const {
    if (!v) [[unlikely]]
      detail::fail(function_, name, "a tensor: this input is required", "none");
    if (v.rank() != 1 || v.size(0) != domain_.rows) [[unlikely]]
      detail::fail_shape(function_, name, shape(domain_.rows), v.shape());
    detail::check_indices(function_, name, v);
  }

  /// A field this call has no use for must not be given.
  RLHF_NOINLINE void unused(const char* name, bool given) const {
    if (given) [[unlikely]]
      detail::fail(function_, name, "to be left out: this call does not use it", "one");
  }
};

}  // namespace RLHF_CHECKS

}  // namespace rlhf::inline v1
