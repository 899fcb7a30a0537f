#pragma once

#include "rlhf/math/storage.hpp"
#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline v1 {

/// Rows of logits: the one of token j of sequence i begins at
/// data[i * per_row + begin(i) * per_begin + j * stride], and its elements are `step` apart.
template <class L>
struct logit_rows {
  L* data = nullptr;
  index per_row = 0, per_begin = 0, stride = 0, step = 1;
  RLHF_HOST_DEVICE constexpr L* at(index i, index begin, index j) const {
    return data + (i * per_row + begin * per_begin + j * stride);
  }
};

/// What one read of a row says of it: y = logit / temperature, p = softmax(y). All are NaN for a
/// row that holds a NaN or +inf, or nothing but -inf.
struct row_statistics {
  double log_prob = 0;            ///< of the label: (y − max y) − log sum exp(y − max y)
  double entropy = 0;             ///< − sum p log p, nats
  double log_sum_exp = 0;         ///< max y + log sum exp(y − max y)
  double mean_log_prob = 0;       ///< mean of log p over the classes that are not -inf; on request
  double sum_p_squared = 0;       ///< sum of p²; on request
  double classes = 0;             ///< how many logits are not -inf; on request
  bool label_is_largest = false;  ///< the label is the first of the largest logits
  bool finite = false;            ///< false where the figures are NaN
};

/// The gradient a kernel asks for, in classes v of one row:
///
///     d y_v = label · 1[v = label] + p · p_v + p_log_p · p_v (log p_v + entropy) + uniform
///
/// with `uniform` left out where p_v is 0 because the logit is -inf. The primitive divides by the
/// temperature.
struct row_slopes {
  double label = 0;
  double p = 0;
  double p_log_p = 0;
  double uniform = 0;
};

/// Where a token stands.
struct row_place {
  index sequence = 0;
  index begin = 0;  ///< of the sequence, in a packed layout
  index position = 0;
};

template <class T>
RLHF_HOST_DEVICE constexpr index offset_of(const token_input<T>& x, const row_place& at) {
  return at.sequence * x.per_row + at.begin * x.per_begin + at.position * x.stride;
}
template <class T>
RLHF_HOST_DEVICE constexpr T read_token(const token_input<T>& x, const row_place& at) {
  return x.data == nullptr ? x.absent : x.data[offset_of(x, at)];
}
template <class T>
RLHF_HOST_DEVICE constexpr void write_token(const token_output<T>& y, const row_place& at,
                                            double value) {
  if (y.data == nullptr) return;
  T& to = y.data[at.sequence * y.per_row + at.begin * y.per_begin + at.position * y.stride];
  const T rounded = static_cast<T>(value) + T(0);  // never −0
  to = y.accumulate ? to + rounded : rounded;
}
/// +0 in a slot that does not count.
template <class T>
RLHF_HOST_DEVICE constexpr void clear_token(const token_output<T>& y, const row_place& at) {
  if (y.data == nullptr || y.accumulate) return;
  y.data[at.sequence * y.per_row + at.begin * y.per_begin + at.position * y.stride] = T(0);
}

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

/// The primitive of the vocabulary: a row of logits in, its statistics, then its gradient, in one
/// read and one exponential per logit.
///
/// A kernel is a copyable struct that is called once for each counted token:
///
///     struct negative_log_prob {
///       static constexpr int sums = 1, ranges = 0;
///       RLHF_HOST_DEVICE void operator()(row_token<negative_log_prob>& t) const {
///         t.sum[0] = -t.of.log_prob * t.weight;
///         t.slope = {.label = -t.weight, .p = t.weight};
///       }
///       RLHF_HOST_DEVICE void masked(const row_place&) const {}
///     };
///
/// It fills sum, range, nonfinite and slope, and writes what it wants per token; `masked` is called
/// for the slots that do not count, whose logits are not read and whose gradient becomes +0 (or
/// keeps its bits where it is added to).
///
/// A row is read in tiles of 1,024 with a maximum of their own, 16 lanes wide; tiles merge in
/// double. The order depends on nothing but the number of classes, so a row has the same bits alone
/// and in a batch, and appended classes of -inf change nothing. Sums: a binary tree over counted
/// tokens.
template <class K>
struct row_token {
  row_place place = {};
  double weight = 1;
  row_statistics of = {};
  double sum[detail::at_least_one(K::sums)] = {};
  double range[detail::at_least_one(K::ranges)] = {};
  double nonfinite = 0;  ///< 1 where an input of the token is not finite
  row_slopes slope = {};
};

template <storage L, class Space>
struct row_arguments {
  token_domain<Space> domain = {};  ///< which tokens count; labels of those are in range
  logit_rows<const L> logits = {};
  index classes = 0;
  index_view<Space> label = {};
  double temperature = 1;
  bool mean_wanted = false;     ///< mean_log_prob and classes
  bool squares_wanted = false;  ///< sum_p_squared
  logit_rows<L> gradient = {};  ///< null: not wanted; may be the logits themselves
  bool accumulate = false;
  bool plain_slopes = false;  ///< the kernel's p_log_p and uniform are 0: logits are read once

  RLHF_HOST_DEVICE constexpr index label_of(const row_place& at) const {
    return label.rank() == 1 ? label[at.begin + at.position] : label(at.sequence, at.position);
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE
