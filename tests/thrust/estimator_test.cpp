#include "tests/thrust/estimator_cases.hpp"

namespace thrust_test {

/// Blocks that come so close behind each other that only every 64th knows its x in time: the others
/// have to add up the links of all pieces between.
struct early_block : rlhf::RLHF_COMPUTE::detail::serial_block {
  using serial_block::serial_block;
  static int observe(const int* flag) {
    const int state = serial_block::observe(flag);
    return reinterpret_cast<std::uintptr_t>(flag) % 256 == 0 || state == 0 ? state : 1;
  }
};
struct early_executor : device_executor {
  using block = early_block;
  explicit early_executor(const device_executor& exec) : device_executor(exec) {}
  rlhf::device_run<early_executor> begin(const char* function) const { return {*this, function}; }
};

TEST_CASE("device: pieces of a long row that look back far have the numbers of the host") {
  const index n = 300000;
  numbers random(3);
  const auto reward = random.many<float>(n, -1, 1);
  std::vector<std::uint8_t> ends(static_cast<std::size_t>(n), 0);
  for (int k = 0; k < 9; ++k) ends[static_cast<std::size_t>(random.below(n))] = 1;
  for (const bool episodes : {false, true}) {
    trace host, device;
    const auto body = [&]<class Place>(const auto& exec, Place*, trace& to) {
      tensor<Place, float> r(reward, rlhf::shape(1, n)), x(7.0f, rlhf::shape(1, n));
      tensor<Place, std::uint8_t> e(ends, rlhf::shape(1, n));
      rlhf::mask_view<typename Place::space> terminated;
      if (episodes) terminated = e.mask();
      const auto d =
          rlhf::discounted_returns<float>({.reward = r.view(), .terminated = terminated},
                                          {.returns = x.view()}, {.gamma = 0.9999}, exec);
      read_result(Place::get(d), to);
      x.read(to);
    };
    body(rlhf::serial{}, static_cast<host_place*>(nullptr), host);
    device_place away;
    const early_executor early(away.exec);
    body(early, static_cast<device_place*>(nullptr), device);
    CHECK(host.size() > 300000);
    CHECK(difference(host, device, 0) == "");
  }
}

}  // namespace thrust_test
