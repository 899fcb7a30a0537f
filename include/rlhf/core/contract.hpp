#pragma once

#include <concepts>
#include <cstddef>
#include <cstdlib>
#include <stdexcept>

#include "rlhf/core/config.hpp"

namespace rlhf::inline v1 {

/// Sizes, strides and offsets: signed and 64 bits wide on every machine we support.
using index = std::ptrdiff_t;

/// A broken requirement of a call. what() names function, argument, what was expected and what
/// came: "clipped_surrogate_loss: advantage: expected shape [4, 8], received [4, 7]".
class contract_violation : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

/// Called instead of the throw where exceptions are off. It must not return.
using contract_handler = void (*)(const char* message);

namespace detail {

inline contract_handler& installed_contract_handler() noexcept {
  static contract_handler handler = nullptr;
  return handler;
}

/// A sentence in a fixed buffer: no allocation, no stream; what does not fit is cut.
class sentence {
  char text_[320];
  std::size_t size_ = 0;

 public:
  sentence() noexcept { text_[0] = '\0'; }
  const char* c_str() const noexcept { return text_; }

  RLHF_RARE sentence& add(const char* text) noexcept {
    while (*text != '\0' && size_ + 1 < sizeof text_) text_[size_++] = *text++;
    text_[size_] = '\0';
    return *this;
  }

  RLHF_RARE sentence& add(index value) noexcept {
    char digits[24];
    int n = 0;
    const bool negative = value < 0;
    auto rest = negative ? ~static_cast<std::size_t>(value) + 1 : static_cast<std::size_t>(value);
    do {
      digits[n++] = static_cast<char>('0' + rest % 10);
      rest /= 10;
    } while (rest != 0);
    if (negative) add("-");
    while (n > 0) {
      const char one[2] = {digits[--n], '\0'};
      add(one);
    }
    return *this;
  }

  /// Six significant digits: enough to recognise the number the caller passed.
  RLHF_RARE sentence& add(double value) noexcept {
    if (value != value) return add("nan");
    if (value < 0) {
      add("-");
      value = -value;
    }
    if (value > 1.7976931348623157e308) return add("inf");
    if (value == 0) return add("0");
    int exponent = 0;
    while (value >= 10) value /= 10, ++exponent;
    while (value < 1) value *= 10, --exponent;
    auto mantissa = static_cast<index>(value * 1e5 + 0.5);
    if (mantissa >= 1000000) mantissa /= 10, ++exponent;
    int zeros = 0;
    while (zeros < 5 && mantissa % 10 == 0) mantissa /= 10, ++zeros;
    const int decimals = 5 - zeros;
    if (exponent >= 0 && exponent < 6 && decimals <= exponent) {
      for (int i = decimals; i < exponent; ++i) mantissa *= 10;
      return add(mantissa);
    }
    index power = 1;
    for (int i = 0; i < decimals; ++i) power *= 10;
    if (exponent < 0 && exponent >= -4) {
      add("0.");
      for (int i = -1; i > exponent; --i) add("0");
      return add(mantissa);
    }
    if (exponent >= 0 && exponent < 6) {
      for (int i = 0; i < exponent; ++i) power /= 10;
      add(mantissa / power).add(".");
      for (index p = power / 10; p > 1 && mantissa % power < p; p /= 10) add("0");
      return add(mantissa % power);
    }
    add(mantissa / power);
    if (decimals > 0) {
      add(".");
      for (index p = power / 10; p > 1 && mantissa % power < p; p /= 10) add("0");
      add(mantissa % power);
    }
    return add("e").add(static_cast<index>(exponent));
  }
};

inline namespace RLHF_CHECKS {

[[noreturn]] inline void report(const char* message) {
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
  throw contract_violation(message);
#else
  if (installed_contract_handler() != nullptr) installed_contract_handler()(message);
  __builtin_printf("rlhf: %s\n", message);
  std::abort();
#endif
}

/// All four parts are asked for, so that no message can leave one out.
template <class Received>
[[noreturn, gnu::noinline, gnu::cold]] void fail(const char* function, const char* argument,
                                                 const char* expected, Received received) {
  sentence s;
  s.add(function).add(": ").add(argument).add(": expected ").add(expected);
  s.add(", received ").add(received);
  report(s.c_str());
}

/// Of a requirement on data: how many broke it.
[[noreturn, gnu::noinline, gnu::cold]] inline void fail_count(const char* function,
                                                              const char* argument,
                                                              const char* expected, double count) {
  sentence s;
  s.add(count).add(count == 1 ? " that is not" : " that are not");
  fail(function, argument, expected, s.c_str());
}

}  // namespace RLHF_CHECKS
}  // namespace detail

/// Installs the handler that a broken contract calls where exceptions are off.
inline void set_contract_handler(contract_handler handler) noexcept {
  detail::installed_contract_handler() = handler;
}

inline namespace RLHF_CHECKS {

/// The check that every public call makes on the host, in every build, before its first write.
inline void expects(bool rule, const char* function, const char* argument, const char* expected,
                    const char* received) {
  if (!rule) [[unlikely]]
    detail::fail(function, argument, expected, received);
}
inline void expects(bool rule, const char* function, const char* argument, const char* expected,
                    double received) {
  if (!rule) [[unlikely]]
    detail::fail(function, argument, expected, received);
}
inline void expects(bool rule, const char* function, const char* argument, const char* expected,
                    index received) {
  if (!rule) [[unlikely]]
    detail::fail(function, argument, expected, received);
}
template <std::integral N>
void expects(bool rule, const char* function, const char* argument, const char* expected,
             N received) {
  expects(rule, function, argument, expected, static_cast<index>(received));
}

}  // namespace RLHF_CHECKS

}  // namespace rlhf::inline v1
