#pragma once

#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

namespace golden {

using index = std::ptrdiff_t;
using std::size_t;

inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr double nan = std::numeric_limits<double>::quiet_NaN();

/// Numbers of a file, or of an answer: row-major, in double. A scalar has no extents.
struct array {
  std::vector<index> shape;
  std::vector<double> data;

  array() = default;
  array(std::vector<index> extents, std::vector<double> numbers)
      : shape(std::move(extents)), data(std::move(numbers)) {
    if (count(shape) != size())
      throw std::logic_error("an array whose shape does not fit its data");
  }

  static index count(const std::vector<index>& extents) {
    return std::accumulate(extents.begin(), extents.end(), index{1}, std::multiplies<>());
  }
  static array filled(std::vector<index> extents, double x) {
    const auto n = static_cast<size_t>(count(extents));
    return {std::move(extents), std::vector<double>(n, x)};
  }
  static array scalar(double x) { return {{}, {x}}; }
  static array vector(std::vector<double> numbers) {
    const auto n = static_cast<index>(numbers.size());
    return {{n}, std::move(numbers)};
  }

  index size() const { return static_cast<index>(data.size()); }
  index rank() const { return static_cast<index>(shape.size()); }
  index rows() const { return shape.empty() ? 1 : shape[0]; }
  index columns() const { return rank() < 2 ? 1 : shape[1]; }
  double& operator[](index i) { return data.at(static_cast<size_t>(i)); }
  double operator[](index i) const { return data.at(static_cast<size_t>(i)); }
  double& operator()(index i, index j) { return (*this)[i * columns() + j]; }
  double operator()(index i, index j) const { return (*this)[i * columns() + j]; }

  array reshaped(std::vector<index> extents) const { return {std::move(extents), data}; }
  /// Row i of a matrix as a matrix of one row.
  array row(index i) const { return rows_of(i, i + 1); }
  /// Entries [first, last) along the first extent.
  array rows_of(index first, index last) const {
    if (first < 0 || last < first || last > rows()) throw std::out_of_range("rows of an array");
    std::vector<index> s = shape;
    const index step = rows() == 0 ? 0 : size() / rows();
    s[0] = last - first;
    return {std::move(s), {data.begin() + first * step, data.begin() + last * step}};
  }
  /// Columns [first, last) of a matrix.
  array columns_of(index first, index last) const {
    array a = filled({rows(), last - first}, 0);
    for (index i = 0; i < rows(); ++i)
      for (index j = first; j < last; ++j) a(i, j - first) = (*this)(i, j);
    return a;
  }
  void set_row(index i, const array& from) {
    const index step = size() / rows();
    for (index j = 0; j < step; ++j) (*this)[i * step + j] = from[j];
  }
};

template <class F>
array map(const F& f, const array& a) {
  array r = a;
  for (index i = 0; i < a.size(); ++i) r[i] = f(a[i]);
  return r;
}

template <class F>
array map(const F& f, const array& a, const array& b) {
  if (a.size() != b.size()) throw std::logic_error("arrays of different sizes");
  array r = a;
  for (index i = 0; i < a.size(); ++i) r[i] = f(a[i], b[i]);
  return r;
}

inline array operator*(const array& a, double b) {
  return map([b](double x) { return x * b; }, a);
}
inline array operator*(const array& a, const array& b) { return map(std::multiplies<>(), a, b); }
inline array operator+(const array& a, const array& b) { return map(std::plus<>(), a, b); }
inline array operator-(const array& a, const array& b) { return map(std::minus<>(), a, b); }
inline array operator-(const array& a) { return map(std::negate<>(), a); }

inline double sum(const array& a) { return std::accumulate(a.data.begin(), a.data.end(), 0.0); }
inline double largest(const array& a) {
  double most = 0;
  for (const double x : a.data)
    if (std::isfinite(x)) most = std::max(most, std::abs(x));
  return most;
}
inline array complement(const array& mask) {
  return map([](double x) { return 1 - x; }, mask);
}
inline array row_sums(const array& a) {
  array r = array::filled({a.rows()}, 0);
  for (index i = 0; i < a.rows(); ++i)
    for (index j = 0; j < a.columns(); ++j) r[i] += a(i, j);
  return r;
}
/// x[i] in every column of row i.
inline array spread(const array& x, index columns) {
  array r = array::filled({x.size(), columns}, 0);
  for (index i = 0; i < x.size(); ++i)
    for (index j = 0; j < columns; ++j) r(i, j) = x[i];
  return r;
}
/// a where the mask is not 0, else 0: a product would let a NaN through.
inline array kept(const array& a, const array& mask) {
  return map([](double x, double m) { return m != 0 ? x : 0.0; }, a, mask);
}
inline array ones_like(const array& a) { return array::filled(a.shape, 1); }
inline array zeros_like(const array& a) { return array::filled(a.shape, 0); }
inline array gather(const array& a, const std::vector<index>& at) {
  array r = array::filled({static_cast<index>(at.size())}, 0);
  for (size_t i = 0; i < at.size(); ++i) r.data[i] = a[at[i]];
  return r;
}

}  // namespace golden
