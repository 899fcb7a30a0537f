#pragma once

#include <cstdint>

#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline v1 {

/// What a masked token between valid ones is to an estimator over time. Masked tokens before the
/// first and after the last valid one are no time steps in any mode.
enum class hole_mode : unsigned char {
  skip,  ///< no time step: what follows a token is the next valid one; holes are not read
  zero,  ///< a time step whose inputs are 0; holes are not read
  count  ///< a time step like any other: the inputs at holes are read
};

/// Where flag (i, j) of a bool or uint8 tensor lies, as in token_input. Not given: false.
struct token_flags {
  const std::uint8_t* data = nullptr;
  index per_row = 0, per_begin = 0, stride = 0;
};

/// Binds a tensor of flags, one per token, to the shape of the call's tokens.
template <class Space>
token_flags bind_flags(const token_binder<Space>& bind, const char* name, const mask_view<Space>& v,
                       const shape& tokens) {
  if (!v) return {};
  expects(v.kind() == mask_kind::flag, bind.function(), name, "flags: bool or uint8_t", "weights");
  if (!(v.shape() == tokens)) [[unlikely]]
    detail::fail_shape(bind.function(), name, tokens, v.shape());
  detail::check_indices(bind.function(), name, v);
  const bool packed = bind.domain().kind == arrangement::packed;
  return {static_cast<const std::uint8_t*>(v.data()), packed ? 0 : v.stride(0),
          packed ? v.stride(0) : 0, packed ? v.stride(0) : v.stride(1)};
}

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

/// The primitive of estimators over time: x_t = b_t + a · x_{t+1} over the valid tokens of each
/// row, last to first.
///
///     struct reward_to_go {
///       using scalar_type = float;
///       static constexpr int inputs = 1, outputs = 1, flags = 0;
///       static constexpr int shifted = -1;  // this input's next valid value is t.next; −1: none
///       double decay;                       // a; with flags, 0 after a token that has one set
///       template <class Token>
///       RLHF_HOST_DEVICE void step(Token& t) const { t.b = t.in[0]; }
///       template <class Token>
///       RLHF_HOST_DEVICE void emit(Token& t) const { t.out[0] = t.x; }
///       template <class Token>
///       RLHF_HOST_DEVICE bool usable(const Token& t) const { return math::is_finite(t.in[0]); }
///     };
///
/// step fills b, emit fills every out from x and the inputs; both work on one lane of tokens. A
/// kernel with `static constexpr bool varying_decay = true` fills t.a in step instead. A decay of 0
/// stops everything, NaN included. usable says, for one token, whether its inputs are finite; it is
/// asked only where the outputs of a row are not.
///
/// The bits of a row depend on its valid tokens alone: tiles of 1,024 and blocks of 8, both counted
/// from the last valid token; in a block three steps of a tree; from block to block one fused
/// multiply-add; from tile to tile in double; what is left at the row's beginning one by one.
///
/// Moments of the outputs are taken along the way, about the outputs of a segment's first token
/// from the end: 8 lanes by place in a block, and what is left beside them. Rows stand in groups of
/// 64; in a group a segment ends with the row that fills it to 512 valid tokens, or with one of more
/// than 4 tiles, which is cut into pieces behind each fourth. A binary tree over the pieces of a
/// segment, the segments of a group, the groups.
template <class K, class Space>
struct scan_arguments {
  using T = typename K::scalar_type;
  token_domain<Space> domain = {};
  hole_mode holes = hole_mode::skip;
  token_input<T> in[detail::at_least_one(K::inputs)] = {};
  token_flags flag[detail::at_least_one(K::flags)] = {};
  token_input<T> after = {};  ///< one per row: the shifted input after the last valid token
  token_input<T> end = {};    ///< one per row: x after the last valid token
  token_output<T> out[detail::at_least_one(K::outputs)] = {};
};

/// What a scan kernel sees.
template <class V, class K>
struct scan_lanes {
  V in[detail::at_least_one(K::inputs)];
  mask_of<V> flag[detail::at_least_one(K::flags)];
  V next;
  V a;
  V b;
  V x;
  V out[detail::at_least_one(K::outputs)];
};

/// Where reverse_scan leaves its figures: positions, tokens with unusable inputs, then mean and sum
/// of squared distances of each output over the valid tokens.
template <class K>
struct scan_figures {
  static constexpr int positions = 0;
  static constexpr int nonfinite = 1;
  static constexpr int moments = 2;
  static constexpr int size = 2 + 2 * K::outputs;
};

inline constexpr index scan_tile_tokens = 1024;
inline constexpr index scan_block_tokens = 8;

namespace detail {
template <class K>
constexpr bool has_varying_decay() {
  if constexpr (requires { K::varying_decay; })
    return K::varying_decay;
  else
    return false;
}
}  // namespace detail

}  // namespace rlhf::inline RLHF_COMPUTE
