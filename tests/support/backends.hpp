#pragma once

// One test body, every host backend: a TEST_CASE_TEMPLATE over RLHF_TEST_BACKENDS makes its tensors
// through B and hands them to the library as that backend's own types.

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "rlhf/backend/host.hpp"
#if defined(RLHF_TEST_EIGEN)
#include "rlhf/backend/eigen.hpp"
#endif
#if defined(RLHF_TEST_XTENSOR)
#include "rlhf/backend/xtensor.hpp"
#if __has_include(<xtensor/containers/xtensor.hpp>)
#include <xtensor/containers/xtensor.hpp>
#else
#include <xtensor/xtensor.hpp>
#endif
#endif

namespace rlhf_test {

using index = std::ptrdiff_t;

inline constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
inline constexpr double infinite = std::numeric_limits<double>::infinity();

/// Plain memory: pointer and shape.
template <class T>
struct host_matrix {
  std::vector<T> data;
  index rows, columns;
  host_matrix(index r, index c, T fill = T())
      : data(static_cast<std::size_t>(r * c), fill), rows(r), columns(c) {}
  T& operator()(index i, index j) { return data[static_cast<std::size_t>(i * columns + j)]; }
  const T& operator()(index i, index j) const {
    return data[static_cast<std::size_t>(i * columns + j)];
  }
  rlhf::view<T> tensor() { return {data.data(), rlhf::shape(rows, columns)}; }
  rlhf::view<const T> tensor() const { return {data.data(), rlhf::shape(rows, columns)}; }
};

/// Plain memory in columns, every second element used: strides where one expects none.
template <class T>
struct strided_matrix {
  std::vector<T> data;
  index rows, columns;
  strided_matrix(index r, index c, T fill = T())
      : data(static_cast<std::size_t>(2 * r * c), fill), rows(r), columns(c) {}
  T& operator()(index i, index j) { return data[static_cast<std::size_t>(2 * (j * rows + i))]; }
  const T& operator()(index i, index j) const {
    return data[static_cast<std::size_t>(2 * (j * rows + i))];
  }
  rlhf::view<T> tensor() {
    return {data.data(), rlhf::shape(rows, columns), rlhf::shape(index{2}, 2 * rows)};
  }
  rlhf::view<const T> tensor() const {
    return {data.data(), rlhf::shape(rows, columns), rlhf::shape(index{2}, 2 * rows)};
  }
};

struct host_backend {
  static constexpr const char* name = "host";
  template <class T>
  using matrix = host_matrix<T>;
};
struct strided_backend {
  static constexpr const char* name = "host, strided";
  template <class T>
  using matrix = strided_matrix<T>;
};

#if defined(RLHF_TEST_EIGEN)
template <class T, int Order>
struct eigen_matrix {
  Eigen::Array<T, Eigen::Dynamic, Eigen::Dynamic, Order> data;
  eigen_matrix(index r, index c, T fill = T()) : data(r, c) { data.setConstant(fill); }
  T& operator()(index i, index j) { return data(i, j); }
  const T& operator()(index i, index j) const { return data(i, j); }
  auto& tensor() { return data; }
  const auto& tensor() const { return data; }
};
struct eigen_rows_backend {
  static constexpr const char* name = "eigen, row-major";
  template <class T>
  using matrix = eigen_matrix<T, Eigen::RowMajor>;
};
struct eigen_columns_backend {
  static constexpr const char* name = "eigen, column-major";
  template <class T>
  using matrix = eigen_matrix<T, Eigen::ColMajor>;
};
#define RLHF_TEST_EIGEN_BACKENDS , rlhf_test::eigen_rows_backend, rlhf_test::eigen_columns_backend
#else
#define RLHF_TEST_EIGEN_BACKENDS
#endif

#if defined(RLHF_TEST_XTENSOR)
template <class T, xt::layout_type Order>
struct xtensor_matrix {
  xt::xtensor<T, 2, Order> data;
  xtensor_matrix(index r, index c, T fill = T())
      : data(std::array<std::size_t, 2>{static_cast<std::size_t>(r), static_cast<std::size_t>(c)},
             fill) {}
  T& operator()(index i, index j) { return data(i, j); }
  const T& operator()(index i, index j) const { return data(i, j); }
  auto& tensor() { return data; }
  const auto& tensor() const { return data; }
};
struct xtensor_rows_backend {
  static constexpr const char* name = "xtensor, row-major";
  template <class T>
  using matrix = xtensor_matrix<T, xt::layout_type::row_major>;
};
struct xtensor_columns_backend {
  static constexpr const char* name = "xtensor, column-major";
  template <class T>
  using matrix = xtensor_matrix<T, xt::layout_type::column_major>;
};
#define RLHF_TEST_XTENSOR_BACKENDS \
  , rlhf_test::xtensor_rows_backend, rlhf_test::xtensor_columns_backend
#else
#define RLHF_TEST_XTENSOR_BACKENDS
#endif

#define RLHF_TEST_BACKENDS \
  rlhf_test::host_backend, \
      rlhf_test::strided_backend RLHF_TEST_EIGEN_BACKENDS RLHF_TEST_XTENSOR_BACKENDS

/// A matrix of backend B from rows written out in the test.
template <class B, class T = double>
typename B::template matrix<T> rows(
    std::initializer_list<std::initializer_list<std::type_identity_t<T>>> values) {
  const auto r = static_cast<index>(values.size());
  const auto c = r > 0 ? static_cast<index>(values.begin()->size()) : index{0};
  typename B::template matrix<T> m(r, c);
  index i = 0;
  for (const auto& row : values) {
    index j = 0;
    for (const T& x : row) m(i, j++) = x;
    ++i;
  }
  return m;
}

template <class B>
auto flags(std::initializer_list<std::initializer_list<std::uint8_t>> values) {
  return rows<B, std::uint8_t>(values);
}

/// "function: argument: expected ..., received ...", with something in each place.
inline bool has_four_parts(const std::string& message) {
  const auto argument = message.find(": ");
  const auto expected = message.find(": expected "), received = message.rfind(", received ");
  return argument != 0 && argument < expected && expected != std::string::npos &&
         received != std::string::npos && expected + 11 < received &&
         received + 11 < message.size() && message.size() < 319;  // a longer one has been cut
}

/// A message of a broken contract, or "" where none is broken. Every message is asked for its parts.
template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const rlhf::contract_violation& e) {
    const std::string said = e.what();
    CAPTURE(said);
    CHECK(has_four_parts(said));
    return said;
  }
  return "";
}

/// Numbers for tests: from integers, so that every compiler makes the same ones.
class random_numbers {
  std::uint64_t state_;

 public:
  explicit random_numbers(std::uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  std::uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  /// Uniform in [low, high), a multiple of 2^-24 of the width.
  double uniform(double low = 0, double high = 1) {
    return low + (high - low) * static_cast<double>(bits() >> 40) * 0x1p-24;
  }
  index below(index n) { return static_cast<index>(bits() % static_cast<std::uint64_t>(n)); }
  bool chance(double p) { return uniform() < p; }
};

}  // namespace rlhf_test
