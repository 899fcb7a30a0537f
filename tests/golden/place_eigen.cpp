#if RLHF_TEST_EIGEN

#include "rlhf/backend/eigen.hpp"
#include "tests/golden/place.hpp"

namespace golden {

namespace {

/// Column-major arrays, as Eigen's users have them; three extents as the rows of a row-major one.
template <class T>
class eigen_place final : public keeping_place<T> {
  template <class X, int Order = Eigen::ColMajor>
  using matrix = Eigen::Array<X, Eigen::Dynamic, Eigen::Dynamic, Order>;
  template <class X>
  using vector = Eigen::Array<X, Eigen::Dynamic, 1>;

  template <class X>
  vector<X>& keep_vector(const array& a) {
    auto& v = this->keep(vector<X>(a.size()));
    for (index i = 0; i < a.size(); ++i) v(i) = static_cast<X>(a[i]);
    return v;
  }
  template <class X>
  matrix<X>& keep_matrix(const array& a) {
    auto& m = this->keep(matrix<X>(a.shape[0], a.shape[1]));
    for (index i = 0; i < a.shape[0]; ++i)
      for (index j = 0; j < a.shape[1]; ++j) m(i, j) = static_cast<X>(a(i, j));
    return m;
  }
  matrix<T, Eigen::RowMajor>& keep_rows(const array& a) {
    auto& m = this->keep(matrix<T, Eigen::RowMajor>(a.shape[0] * a.shape[1], a.shape[2]));
    for (index i = 0; i < a.size(); ++i) m.data()[i] = static_cast<T>(a[i]);
    return m;
  }

 public:
  rlhf::raw_view<const T, rlhf::host_space> in(const array& a) override {
    if (a.rank() == 1) return to_raw(rlhf::view<const T>(keep_vector<T>(a)));
    if (a.rank() == 2) return to_raw(rlhf::view<const T>(keep_matrix<T>(a)));
    const T* const p = keep_rows(a).data();
    return to_raw(rlhf::view<const T>(p, to_shape(a.shape)));
  }
  rlhf::mask_view<> mask(const array& a) override {
    if (a.rank() == 1) return keep_vector<bool>(a);
    return keep_matrix<bool>(a);
  }
  rlhf::mask_view<> weights(const array& a) override {
    if (a.rank() == 1) return keep_vector<double>(a);
    return keep_matrix<double>(a);
  }
  rlhf::index_view<> integers(const array& a) override {
    if (a.rank() == 1) return keep_vector<std::int32_t>(a);
    return keep_matrix<std::int32_t>(a);
  }
  written<T> out(const std::vector<index>& shape) override {
    const array start = array::filled(shape, never_written);
    if (shape.size() == 1) return {to_raw(rlhf::view<T>(keep_vector<T>(start))), shape};
    if (shape.size() == 2) return {to_raw(rlhf::view<T>(keep_matrix<T>(start))), shape};
    return {to_raw(rlhf::view<T>(keep_rows(start).data(), to_shape(shape))), shape};
  }
};

}  // namespace

template <class T>
std::unique_ptr<place<T>> make_eigen_place() {
  return std::make_unique<eigen_place<T>>();
}
template std::unique_ptr<place<float>> make_eigen_place<float>();
template std::unique_ptr<place<double>> make_eigen_place<double>();

}  // namespace golden

#endif
