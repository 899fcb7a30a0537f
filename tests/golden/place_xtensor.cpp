#if RLHF_TEST_XTENSOR

#include "rlhf/backend/xtensor.hpp"
#include "tests/golden/place.hpp"

namespace golden {

namespace {

/// Row-major tensors; an extent of 1 has stride 0, as xtensor makes it.
template <class T>
class xtensor_place final : public keeping_place<T> {
  template <class X, size_t Rank>
  xt::xtensor<X, Rank>& keep_tensor(const array& a) {
    typename xt::xtensor<X, Rank>::shape_type shape{};
    for (size_t k = 0; k < Rank; ++k) shape[k] = static_cast<size_t>(a.shape[k]);
    auto& t = this->keep(xt::xtensor<X, Rank>(shape));
    for (index i = 0; i < a.size(); ++i) t.data()[i] = static_cast<X>(a[i]);
    return t;
  }
  template <class To, class X>
  To keep_any(const array& a) {
    if (a.rank() == 1) return To(keep_tensor<X, 1>(a));
    return To(keep_tensor<X, 2>(a));
  }

 public:
  rlhf::raw_view<const T, rlhf::host_space> in(const array& a) override {
    if (a.rank() == 3) return to_raw(rlhf::view<const T>(keep_tensor<T, 3>(a)));
    return to_raw(keep_any<rlhf::view<const T>, T>(a));
  }
  rlhf::mask_view<> mask(const array& a) override { return keep_any<rlhf::mask_view<>, bool>(a); }
  rlhf::mask_view<> weights(const array& a) override {
    return keep_any<rlhf::mask_view<>, double>(a);
  }
  rlhf::index_view<> integers(const array& a) override {
    return keep_any<rlhf::index_view<>, std::int64_t>(a);
  }
  written<T> out(const std::vector<index>& shape) override {
    const array start = array::filled(shape, never_written);
    if (shape.size() == 3) return {to_raw(rlhf::view<T>(keep_tensor<T, 3>(start))), shape};
    return {to_raw(keep_any<rlhf::view<T>, T>(start)), shape};
  }
};

}  // namespace

template <class T>
std::unique_ptr<place<T>> make_xtensor_place() {
  return std::make_unique<xtensor_place<T>>();
}
template std::unique_ptr<place<float>> make_xtensor_place<float>();
template std::unique_ptr<place<double>> make_xtensor_place<double>();

}  // namespace golden

#endif
