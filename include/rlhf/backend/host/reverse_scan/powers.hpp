#pragma once

#include "rlhf/math/lane.hpp"
#include "rlhf/primitive/reverse_scan.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Powers of a decay that is the same everywhere, from double.
template <class T>
struct decay_powers {
  static constexpr int blocks = static_cast<int>(scan_tile_tokens / scan_block_tokens);
  T one, two, eight;
  alignas(32) T to_middle[8];  // 4, 3, 2, 1, and 0 four times
  alignas(32) T to_end[8];     // 8, 7, ..., 1
  T block[blocks + 1];         // 8·m
  double tile;                 // 1,024

  RLHF_NOINLINE explicit decay_powers(double decay) {
    double power[9];
    power[0] = 1;
    for (int k = 1; k <= 8; ++k) power[k] = power[k - 1] * decay;
    one = narrow(power[1]);
    two = narrow(power[2]);
    eight = narrow(power[8]);
    for (int k = 0; k < 8; ++k) {
      to_end[k] = narrow(power[8 - k]);
      to_middle[k] = k < 4 ? narrow(power[4 - k]) : T(0);
    }
    double far = 1;
    for (int m = 0; m <= blocks; ++m, far *= power[8]) block[m] = narrow(far);
    tile = far / power[8];
    if (!(power[8] > 0)) tile = 0;
  }

 private:
  /// Subnormal powers cost hundreds of cycles and say nothing.
  static T narrow(double x) {
    const T y = static_cast<T>(x);
    return y < math::detail::format<T>::smallest_normal ? T(0) : y;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
