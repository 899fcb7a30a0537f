#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <type_traits>
#include <vector>

#include "rlhf/math/math.hpp"
#include "support/quad.hpp"

/// Helpers of the tests in this folder: where to look, and how far off is what was found.

namespace rlhf_test {

namespace math = rlhf::math;

/// xorshift64: the same integers everywhere, turned into floats by exact steps only.
class generator {
  std::uint64_t state_ = 0x9e37'79b9'7f4a'7c15u;

 public:
  std::uint64_t operator()() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  double unit() { return static_cast<double>((*this)() >> 11) * 0x1p-53; }
};

template <class T>
using word_of = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

/// |got - want| in units of the last place of want; 0 for the same infinity and for two NaN.
template <class T>
double ulp_error(T got, quad want) {
  constexpr double wrong = 1e30;
  if (want != want) return std::isnan(got) ? 0 : wrong;
  if (std::isnan(got)) return wrong;
  const T rounded = static_cast<T>(want);
  if (std::isinf(rounded) || std::isinf(got)) return got == rounded ? 0 : wrong;
  const quad size = want < 0 ? -want : want;
  int exponent = -2000;
  const double near_size = static_cast<double>(size);
  if (near_size != 0) {
    std::frexp(near_size, &exponent);
    if (static_cast<quad>(std::ldexp(1.0, exponent - 1)) > size) --exponent;
  }
  const int last = std::max(exponent - std::numeric_limits<T>::digits,
                            std::numeric_limits<T>::min_exponent - std::numeric_limits<T>::digits);
  const quad difference = static_cast<quad>(got) - want;
  const quad unit = static_cast<quad>(std::ldexp(1.0, last));
  return static_cast<double>((difference < 0 ? -difference : difference) / unit);
}

template <class T>
std::vector<T> special_values() {
  using limits = std::numeric_limits<T>;
  std::vector<T> values;
  for (const double v : {0.0,
                         1.0,
                         0.5,
                         2.0,
                         0.25,
                         1e-3,
                         1e-8,
                         1e-30,
                         0.1,
                         0.3465,
                         0.3466,
                         0.4587,
                         0.6931471805599453,
                         0.7071067811865476,
                         1.4142135623730951,
                         1.5,
                         3.0,
                         10.0,
                         17.3,
                         36.7,
                         50.0,
                         80.0,
                         87.3,
                         88.0,
                         88.7,
                         88.8,
                         103.9,
                         104.1,
                         708.3,
                         709.7,
                         709.8,
                         745.1,
                         745.2,
                         1e4,
                         1e30}) {
    const T at = static_cast<T>(v);
    values.push_back(at);
    values.push_back(std::nextafter(at, limits::infinity()));
    values.push_back(std::nextafter(at, -limits::infinity()));
  }
  for (const T at : {limits::denorm_min(), limits::min(), limits::min() / 2, limits::max(),
                     limits::infinity(), limits::epsilon()}) {
    values.push_back(at);
  }
  const std::size_t positive = values.size();
  for (std::size_t i = 0; i < positive; ++i) values.push_back(-values[i]);
  values.push_back(limits::quiet_NaN());
  values.push_back(-limits::quiet_NaN());
  return values;
}

/// Special values, and `count` each of: uniform in [low, high], uniform in [-1, 1], any exponent
/// below 1, any bits.
template <class T>
std::vector<T> samples(double low, double high, int count) {
  std::vector<T> values = special_values<T>();
  generator random;
  for (int i = 0; i < count; ++i) {
    values.push_back(static_cast<T>(low + (high - low) * random.unit()));
    values.push_back(static_cast<T>(2 * random.unit() - 1));
    const int exponent = -static_cast<int>(random() % 60);
    values.push_back(static_cast<T>(std::ldexp(2 * random.unit() - 1, exponent)));
    values.push_back(std::bit_cast<T>(static_cast<word_of<T>>(random())));
  }
  return values;
}

template <class T>
struct worst_case {
  double error = 0;
  T at = 0;
};

template <class T, class Function, class Reference>
worst_case<T> worst_ulp(const std::vector<T>& inputs, Function function, Reference reference) {
  worst_case<T> worst;
  for (const T x : inputs) {
    const double error = ulp_error<T>(function(x), reference(static_cast<quad>(x)));
    if (error > worst.error) worst = {error, x};
  }
  return worst;
}

template <class T>
bool same_bits(T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return std::bit_cast<word_of<T>>(a) == std::bit_cast<word_of<T>>(b);
}

/// How many inputs give other bits in a pack than alone. `function` takes any lane.
template <class T, class Function>
int lanes_that_differ(const std::vector<T>& inputs, Function function) {
  using V = math::native_lane<T>;
  constexpr int w = math::width<V>;
  int count = 0;
  for (const T* x = inputs.data(); x + w <= inputs.data() + inputs.size(); x += w) {
    const V y = function(math::load<V>(x));
    for (int k = 0; k < w; ++k) {
      const T alone = function(x[k]);
      if (!same_bits(alone, math::lane_at(y, k))) ++count;
    }
  }
  return count;
}

/// Every float there is, against a reference in double, in the native lane.
template <class Function, class Reference>
worst_case<float> worst_of_all_floats(Function function, Reference reference) {
  using V = math::native_lane<float>;
  constexpr int w = math::width<V>;
  worst_case<float> worst;
  float x[static_cast<std::size_t>(w)];
  float y[static_cast<std::size_t>(w)];
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += w) {
    for (int k = 0; k < w; ++k) {
      x[k] = std::bit_cast<float>(static_cast<std::uint32_t>(bits) + static_cast<std::uint32_t>(k));
    }
    math::store<V>(y, function(math::load<V>(x)));
    for (int k = 0; k < w; ++k) {
      const double want = reference(static_cast<double>(x[k]));
      const double got = static_cast<double>(y[k]);
      if (got == want || (std::isnan(got) && std::isnan(want))) continue;
      double error = 1e30;
      const float rounded = static_cast<float>(want);
      if (std::isinf(rounded) || std::isinf(y[k])) {
        if (rounded == y[k]) continue;
      } else if (!std::isnan(got) && !std::isnan(want)) {
        const int exponent = std::max(want == 0 ? -149 : std::ilogb(want) - 23, -149);
        error = std::fabs(got - want) * std::ldexp(1.0, -exponent);
      }
      if (error > worst.error) worst = {error, x[k]};
    }
  }
  return worst;
}

inline bool long_tests() { return std::getenv("RLHF_LONG_TESTS") != nullptr; }

}  // namespace rlhf_test
