#pragma once

#include "rlhf/primitive/row_reduce.hpp"
#include "rlhf/statistics/aggregation.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// 1 / 0 or the mask's weight for each slot, 0 where the label says "ignore". A label that is
/// neither a class nor that is counted, and weighs 0, and so is a weight that is none: on a stream
/// nobody could refuse them earlier.
template <class Space>
struct label_weights {
  token_domain<Space> domain;
  index mask_stride;  // of a rank-1 mask; 0: that of the domain
  row_arguments<float, Space> labels;
  index ignore;
  double* weight;                // [rows, columns] or packed like the domain
  double* wrong;                 // labels per row
  double* no_weights = nullptr;  // the same of weights; null where they have been looked at

  RLHF_HOST_DEVICE void operator()(index i) const {
    const index begin = domain.begin(i), n = domain.length(i);
    const index step = mask_stride != 0 ? mask_stride : domain.mask_stride();
    const index at = mask_stride != 0 ? begin * mask_stride : domain.mask_offset(i);
    double* const row = weight + (domain.kind == arrangement::packed ? begin : i * domain.columns);
    double bad = 0, unfit = 0;
    for (index j = 0; j < n; ++j) {
      double w = domain.mask.at(at + j * step);
      if (no_weights != nullptr && !is_weight(w)) {
        w = 0;
        unfit += 1;
      }
      if (w > 0 && labels.label) {
        const index label = labels.label_of({i, begin, j});
        const bool ignored = label == ignore;
        const bool inside = label >= 0 && label < labels.classes;
        if (ignored || !inside) w = 0;
        if (!ignored && !inside) bad += 1;
      }
      row[j] = w;
    }
    for (index j = n; j < domain.slots(i); ++j) row[j] = 0;
    wrong[i] = bad;
    if (no_weights != nullptr) no_weights[i] = unfit;
  }
};

/// Turns the views of a call on logits into rows over a domain of tokens, and holds every check of
/// them. Logits are [batch, time, classes], [tokens, classes] with packed offsets, or [tokens,
/// classes] alone: then the tokens belong to no sequence.
template <storage L, class Space>
class row_binder {
  using T = compute_of<L>;

  const char* function_;
  view<const L, Space> logits_;
  bool loose_;  // [tokens, classes] without offsets: one sequence for the primitives
  index offsets_[2] = {0, 0};
  mask_view<Space> mask_;
  token_binder<Space> tokens_;
  index_view<Space> label_ = {};
  index ignore_ = -100;

  static view<const L, Space> leading(const char* function, const view<const L, Space>& logits,
                                      arrangement kind) {
    if (!logits) [[unlikely]]
      fail(function, "logits", "a tensor: this input is required", "none");
    const int rank = logits.rank();
    const bool fits = kind == arrangement::packed    ? rank == 2
                      : kind == arrangement::lengths ? rank == 3
                                                     : rank == 2 || rank == 3;
    if (!fits) [[unlikely]]
      fail_shape(function, "logits",
                 kind == arrangement::packed    ? "rank 2, because the layout is packed"
                 : kind == arrangement::lengths ? "rank 3, because the layout is lengths"
                                                : "rank 2, [tokens, classes], or 3, [batch, time, "
                                                  "classes]",
                 logits.shape());
    check_memory(function, "logits", logits);
    expects(logits.size(rank - 1) >= 1, function, "logits", "at least one class",
            logits.size(rank - 1));
    raw_view<const L, Space> tokens;
    tokens.data = logits.data();
    tokens.rank = rank - 1;
    for (int k = 0; k + 1 < rank; ++k) {
      tokens.size[k] = logits.size(k);
      tokens.stride[k] = logits.stride(k);
    }
    return tokens;
  }

  sequence_layout<Space> layout_of(const sequence_layout<Space>& layout) {
    if (!loose_) return layout;
    offsets_[1] = logits_.size(0);
    return {arrangement::packed, index_view<Space>(static_cast<const index*>(offsets_), shape(2))};
  }

  /// First and last byte of a view, whatever its strides.
  template <class X>
  static byte_range span_of(const view<X, Space>& v) {
    index low = 0, high = 0;
    for (int k = 0; k < v.rank(); ++k) {
      if (v.size(k) == 0) return {};
      const index reach = (v.size(k) - 1) * v.stride(k);
      (reach < 0 ? low : high) += reach;
    }
    const auto at = reinterpret_cast<std::uintptr_t>(v.data());
    const auto size = static_cast<index>(sizeof(X));
    return {at + static_cast<std::uintptr_t>(low * size),
            at + static_cast<std::uintptr_t>((high + 1) * size), 0, 0};
  }

  /// Rows of equal stride that lie side by side share no element though their spans overlap.
  bool side_by_side(const view<L, Space>& gradient) const {
    const int rows = logits_.rank() - 2;  // the dimension whose stride separates rows
    for (int k = 0; k < logits_.rank(); ++k)
      if (logits_.stride(k) != gradient.stride(k)) return false;
    const index stride = logits_.stride(rows);
    if (stride <= 0 || logits_.stride(rows + 1) != 1) return false;
    if (rows == 1 && logits_.stride(0) % stride != 0) return false;
    const auto a = reinterpret_cast<std::intptr_t>(logits_.data());
    const auto b = reinterpret_cast<std::intptr_t>(gradient.data());
    const auto size = static_cast<std::intptr_t>(sizeof(L));
    if ((b - a) % size != 0) return false;
    const index between = ((b - a) / size % stride + stride) % stride;
    return between >= classes() && stride - between >= classes();
  }

 public:
  row_binder(const char* function, const view<const L, Space>& logits,
             const sequence_layout<Space>& layout, const mask_view<Space>& mask)
      : function_(function),
        logits_(logits),
        loose_(layout.kind == arrangement::padded && logits.rank() == 2),
        mask_(mask),
        tokens_(function, "logits", leading(function, logits, layout.kind), layout_of(layout),
                mask) {}
  row_binder(const row_binder&) = delete;
  row_binder& operator=(const row_binder&) = delete;

  /// For the tensors beside the logits, one number per token or per sequence.
  token_binder<Space>& tokens() { return tokens_; }
  index classes() const { return logits_.size(logits_.rank() - 1); }
  bool loose() const { return loose_; }

  void temperature(double t) const {
    expects(t > 0 && t <= 1.7976931348623157e308, function_, "temperature",
            "a number that is finite and > 0", t);
  }

  void labels(const index_view<Space>& label, index ignore_index) {
    const rlhf::shape expected = logits_.rank() == 3 ? rlhf::shape(logits_.size(0), logits_.size(1))
                                                     : rlhf::shape(logits_.size(0));
    if (!label) [[unlikely]]
      fail(function_, "label", "a tensor: this input is required", "none");
    if (!(label.shape() == expected)) [[unlikely]]
      fail_shape(function_, "label", expected, label.shape());
    check_indices(function_, "label", label);
    label_ = label;
    ignore_ = ignore_index;
    if constexpr (std::same_as<Space, host_space>) {
      // Memory safety, so always checked; labels of masked tokens may be anything.
      const token_domain<Space>& domain = tokens_.domain();
      row_arguments<float, Space> labels;
      labels.label = label;
      for (index i = 0; i < domain.rows; ++i) {
        const index begin = domain.begin(i), at = domain.mask_offset(i);
        for (index j = 0; j < domain.length(i); ++j) {
          if (!(domain.mask.at(at + j * domain.mask_stride()) > 0)) continue;
          const index y = labels.label_of({i, begin, j});
          if ((y < 0 || y >= classes()) && y != ignore_index) [[unlikely]]
            fail(function_, "label", "0 <= label < classes, or ignore_index, in a counted token",
                 y);
        }
      }
    }
  }

  /// The gradient of the logits: memory of its own, or exactly that of the logits. Comes before the
  /// other tensors of the call are bound.
  void gradient(const output<L, Space>& d_logits, row_arguments<L, Space>& a) {
    const view<L, Space>& to = d_logits;
    if (!to) {
      tokens_.occupy("logits", bytes_of(logits_), false);
      return;
    }
    if (!(to.shape() == logits_.shape())) [[unlikely]]
      fail_shape(function_, "d_logits", logits_.shape(), to.shape());
    check_memory(function_, "d_logits", to);
    check_distinct(function_, "d_logits", to);
    bool same = to.data() == logits_.data();
    for (int k = 0; k < to.rank(); ++k) same = same && to.stride(k) == logits_.stride(k);
    if (same && d_logits.accumulate && to.size(0) > 0) [[unlikely]]
      fail(function_, "d_logits", "memory of its own, because it is added to", "that of logits");
    if (!same && overlap(span_of(to), span_of(logits_)) && !side_by_side(to)) [[unlikely]]
      fail(function_, "d_logits", "memory of its own, or exactly that of logits",
           "memory that overlaps logits");
    if (!same) tokens_.occupy("logits", bytes_of(logits_), false);
    tokens_.occupy("d_logits", bytes_of(to), true);
    a.gradient = rows_of<L>(to);
    a.accumulate = d_logits.accumulate;
  }

  row_arguments<L, Space> arguments(double t) const {
    row_arguments<L, Space> a;
    a.logits = rows_of<const L>(logits_);
    a.classes = classes();
    a.label = label_;
    a.temperature = t;
    return a;
  }

  /// The domain of the call: masked tokens and ignored labels weigh 0.
  template <class Run>
  token_domain<Space> counted(Run& run) const {
    token_domain<Space> domain = tokens_.domain();
    const index slots =
        domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
    const bool packed = domain.kind == arrangement::packed && !loose_;
    if (loose_) {
      domain.kind = arrangement::padded;
      domain.indices = {};
    }
    if (!label_ && !mask_) return domain;
    double* const weight = run.template allocate<double>(slots);
    double* const wrong = run.template allocate<double>(domain.rows + 1);
    label_weights<Space> functor{domain, loose_ ? mask_stride() : 0, {}, ignore_, weight, wrong};
    functor.labels.label = label_;
    functor.labels.classes = classes();
    if constexpr (!std::same_as<Space, host_space>)
      if (mask_ && mask_.kind() != mask_kind::flag)
        functor.no_weights = run.template allocate<double>(domain.rows + 1);
    run.for_each(domain.rows, functor);
    if constexpr (!std::same_as<Space, host_space>) {
      if (double* const unfit = functor.no_weights; unfit != nullptr) {
        run.for_each(1, add_rows{unfit, domain.rows, unfit + domain.rows});
        run.refuse(unfit + domain.rows, "mask", weight_range);
      }
      run.for_each(1, add_rows{wrong, domain.rows, wrong + domain.rows});
      run.refuse(wrong + domain.rows, "label", "0 <= label < classes, or ignore_index");
    }
    domain.mask = packed ? mask_view<Space>(weight, rlhf::shape(slots))
                         : mask_view<Space>(weight, rlhf::shape(domain.rows, domain.columns));
    return domain;
  }

 private:
  index mask_stride() const { return mask_.rank() == 1 ? mask_.stride(0) : 0; }

  template <class X, class Y>
  logit_rows<X> rows_of(const view<Y, Space>& v) const {
    if (v.rank() == 3) return {v.data(), v.stride(0), 0, v.stride(1), v.stride(2)};
    return {v.data(), 0, v.stride(0), v.stride(0), v.stride(1)};
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
