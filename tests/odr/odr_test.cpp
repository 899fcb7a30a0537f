#include "tests/odr/unit.hpp"

#include <doctest/doctest.h>

#include <cmath>

TEST_CASE("units built with other flags live in one program, each with its own code") {
  // 100 tokens: whole packs of every width, and a rest.
  std::vector<float> log_prob, old_log_prob, advantage;
  for (int i = 0; i < 100; ++i) {
    log_prob.push_back(static_cast<float>(-1 + 0.3 * std::sin(i)));
    old_log_prob.push_back(static_cast<float>(-1 + 0.3 * std::cos(3 * i)));
    advantage.push_back(static_cast<float>(std::sin(7 * i)));
  }
  double expected = 0;
  for (std::size_t i = 0; i < 100; ++i) {
    const double ratio =
        std::exp(static_cast<double>(log_prob[i]) - static_cast<double>(old_log_prob[i]));
    const double a = static_cast<double>(advantage[i]);
    expected -= std::fmin(ratio * a, std::fmin(std::fmax(ratio, 0.8), 1.28) * a) / 100;
  }

  struct built {
    unit* run;
    int pack_bytes;  // -1: whatever the machine's default is
    bool runs;
  };
  std::vector<built> units{
      {unit_default, -1, true}, {unit_scalar, 0, true}, {unit_strict, -1, true}};
#ifdef RLHF_TEST_AVX2_UNIT
  units.push_back({unit_avx2, 32, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
  for (const built& u : units) {
    if (!u.runs) continue;
    const unit_result r = u.run(log_prob, old_log_prob, advantage);
    if (u.pack_bytes >= 0) CHECK(r.pack_bytes == u.pack_bytes);
    CHECK(r.loss == doctest::Approx(expected).epsilon(1e-6));
    for (std::size_t i = 0; i < 100; ++i) {
      const double ratio =
          std::exp(static_cast<double>(log_prob[i]) - static_cast<double>(old_log_prob[i]));
      const double a = static_cast<double>(advantage[i]);
      const bool cut = (a > 0 && ratio > 1.28) || (a < 0 && ratio < 0.8);
      CHECK(static_cast<double>(r.d_log_prob[i]) ==
            doctest::Approx(cut ? 0 : -ratio * a / 100).epsilon(1e-5));
    }
  }
}
