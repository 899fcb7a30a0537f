#pragma once

#include "rlhf/math/lane.hpp"
#include "rlhf/primitive/executor.hpp"
#include "rlhf/primitive/tokens.hpp"

namespace rlhf::inline RLHF_COMPUTE {

/// The primitive of losses: tokens in, gradients out, sums, in one pass.
///
/// A kernel is a copyable struct that works on one lane of tokens at a time:
///
///     struct squared_error {
///       using scalar_type = float;
///       static constexpr int inputs = 2, outputs = 1, sums = 1, ranges = 0, scales = 1;
///       static constexpr int observed = 2;     // leading inputs whose NaN and inf are counted
///       static constexpr int scaled_sums = 1;  // leading sums that hold a factor `scale`
///       template <class Token>
///       RLHF_HOST_DEVICE void operator()(Token& t) const {
///         const auto error = t.in[0] - t.in[1];
///         t.sum[0] = error * error * t.scale[0];
///         t.out[0] = (error + error) * t.scale[0];
///       }
///     };
///
/// It fills every out, sum and range. Masked tokens are selected away around it: they are not
/// counted, their outputs become +0, and what it computes for them is thrown away. Under a mask of
/// weights a sum is weighted around it too, but for the first `scaled_sums`, whose factor is.
///
/// What a kernel may say beside, for the host's sake; no bit depends on it:
///
///     static constexpr int kept = n;  // it comes in two parts, operator() being one after the
///     first(t); second(t);            // other: the first fills t.kept[n], every range and some
///                                     // sums, the second reads t.kept and fills the others and
///                                     // every out
///     static constexpr bool early(int k);        // sum k is filled by first
///     static constexpr int first_inputs = m;     // leading inputs that first reads
///     static constexpr bool silent(int k);  // sum k is ±0 for inputs of 0 and finite scales
///     static constexpr bool silent_outputs = b;  // so is every out
///     static constexpr int rare_sum = k;  // the plain_sum: it counts tokens and is 0 but where
///     rare(t);                            // some range is_extreme(low, high); this fills it
///                                         // alone and reads t.in alone
///
/// A tile of tokens is then swept twice in the nearest cache, with registers for either half.
///
/// `static constexpr bool whole(int k)`, where it has one, names sums that only add zeros and ones
/// while no weights are given: no order of additions changes them, and a device takes any.
///
/// Sums have one order that depends on row lengths alone: rows in groups of 64; a row starts at
/// lane 0 of 16 and takes max(1, ceil(L / 16)) steps; lanes carry on from row to row, go to double
/// every 64 steps and at the group's end; a binary tree over those, then over groups.
template <class K, class Space>
struct token_arguments;

/// factor · (*factor_at) / (count · divisor) · upstream · (*upstream_at), or 0 for a count of 0:
/// what multiplies every token of a loss. What is null is 1, or the number beside it.
struct quotient {
  double count = 1;
  const double* counted = nullptr;  ///< takes the place of count
  double divisor = 1;
  double factor = 1;
  const double* factor_at = nullptr;
  double upstream = 1;
  const double* upstream_at = nullptr;
  RLHF_HOST_DEVICE double value() const {
    const double n = counted != nullptr ? *counted : count;
    const double f = factor_at != nullptr ? factor * *factor_at : factor;
    const double share = n > 0 ? f / (n * divisor) : 0;
    return share * (upstream_at != nullptr ? upstream * *upstream_at : upstream);
  }
};

/// A factor per row: *uniform, times per_row[i] where given. It lies in the executor's memory, so
/// that a normaliser may be computed there. run.scale(quotient) makes one; on a device it stays a
/// quotient until a kernel reads it, which saves a launch.
struct row_scale {
  const double* uniform = nullptr;
  const double* per_row = nullptr;
  quotient where_read = {};  ///< where uniform is null
  RLHF_HOST_DEVICE double at(index i) const {
    const double all = uniform != nullptr ? *uniform : where_read.value();
    return per_row == nullptr ? all : all * per_row[i];
  }
};

namespace detail {
/// The extent of an array that may be empty.
RLHF_HOST_DEVICE constexpr std::size_t at_least_one(int n) {
  return n > 0 ? static_cast<std::size_t>(n) : 1;
}
template <class K>
constexpr int kept_lanes() {
  if constexpr (requires { K::kept; })
    return K::kept;
  else
    return 0;
}
}  // namespace detail

template <class K, class Space>
struct token_arguments {
  using scalar_type = typename K::scalar_type;
  token_domain<Space> domain = {};
  token_input<scalar_type> in[detail::at_least_one(K::inputs)] = {};
  token_output<scalar_type> out[detail::at_least_one(K::outputs)] = {};
  row_scale scale[detail::at_least_one(K::scales)] = {};
};

/// What a kernel sees: lanes of its inputs and row factors, and the slots it fills. Under a mask
/// of weights `scale` already holds factor · weight.
template <class V, class K>
struct token_lanes {
  V in[detail::at_least_one(K::inputs)];
  V scale[detail::at_least_one(K::scales)];
  V out[detail::at_least_one(K::outputs)];
  V sum[detail::at_least_one(K::sums)];
  V range[detail::at_least_one(K::ranges)];
  V kept[detail::at_least_one(detail::kept_lanes<K>())];
};

/// Whether a sum is to be multiplied by the weights of a mask: not those that hold a factor
/// `scale`, and not the one that counts tokens (static constexpr int plain_sum, where a kernel has
/// one).
template <class K>
RLHF_HOST_DEVICE constexpr bool takes_weight(int k) {
  if constexpr (requires { K::plain_sum; })
    return k >= K::scaled_sums && k != K::plain_sum;
  else
    return k >= K::scaled_sums;
}

/// Where map_reduce leaves its figures: sums, then the count of non-finite tokens, then the low
/// and the high end of each range (+inf and -inf where no token was counted).
template <class K>
struct sums_of {
  static constexpr int nonfinite = K::sums;
  static constexpr int low = K::sums + 1;
  static constexpr int high = K::sums + 1 + K::ranges;
  static constexpr int size = K::sums + 1 + 2 * K::ranges;
};

inline constexpr index rows_per_group = 64;
inline constexpr index virtual_lanes = 16;
inline constexpr index steps_per_flush = 64;

}  // namespace rlhf::inline RLHF_COMPUTE
