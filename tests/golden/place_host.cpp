#include "rlhf/backend/host.hpp"
#include "tests/golden/place.hpp"

namespace golden {

namespace {

/// Pointers with a shape; vectors for rank 1.
template <class T>
class host_place final : public keeping_place<T> {
 public:
  rlhf::raw_view<const T, rlhf::host_space> in(const array& a) override {
    if (a.rank() == 1) {
      const auto& v = this->keep(std::vector<T>(a.data.begin(), a.data.end()));
      return to_raw(rlhf::view<const T>(v));
    }
    const T* const p = this->template keep_numbers<T>(a);
    return to_raw(rlhf::view<const T>(p, to_shape(a.shape)));
  }
  rlhf::mask_view<> mask(const array& a) override {
    const std::uint8_t* const p = this->template keep_numbers<std::uint8_t>(a);
    return rlhf::mask_view<>(p, to_shape(a.shape));
  }
  rlhf::mask_view<> weights(const array& a) override {
    const double* const p = this->template keep_numbers<double>(a);
    return rlhf::mask_view<>(p, to_shape(a.shape));
  }
  rlhf::index_view<> integers(const array& a) override {
    const std::int64_t* const p = this->template keep_numbers<std::int64_t>(a);
    return rlhf::index_view<>(p, to_shape(a.shape));
  }
  written<T> out(const std::vector<index>& shape) override {
    T* const p = this->template keep_numbers<T>(array::filled(shape, never_written));
    return {to_raw(rlhf::view<T>(p, to_shape(shape))), shape};
  }
};

}  // namespace

template <class T>
array written<T>::read() const {
  array a = array::filled(shape, 0);
  const index n1 = view.rank > 1 ? view.size[1] : 1, n2 = view.rank > 2 ? view.size[2] : 1;
  index at = 0;
  for (index i = 0; i < view.size[0]; ++i)
    for (index j = 0; j < n1; ++j)
      for (index k = 0; k < n2; ++k)
        a[at++] = static_cast<double>(
            view.data[i * view.stride[0] + j * view.stride[1] + k * view.stride[2]]);
  return a;
}

template struct written<float>;
template struct written<double>;

template <class T>
std::unique_ptr<place<T>> make_host_place() {
  return std::make_unique<host_place<T>>();
}
template std::unique_ptr<place<float>> make_host_place<float>();
template std::unique_ptr<place<double>> make_host_place<double>();

}  // namespace golden
