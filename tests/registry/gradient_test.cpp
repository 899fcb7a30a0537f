// The analytic gradient of every function against central differences of its loss in __float128.

#include <doctest/doctest.h>

#include "tests/registry/registry.hpp"

using namespace rlhf_test;

namespace {

std::map<std::string, std::vector<quad>> widen(const problem& p) {
  std::map<std::string, std::vector<quad>> x;
  for (const auto& [name, v] : p.inputs) x[name].assign(v.begin(), v.end());
  return x;
}

double relative(quad a, quad b, quad scale) {
  const quad d = a > b ? a - b : b - a;
  return static_cast<double>(d / scale);
}

}  // namespace

TEST_CASE("every loss agrees with its formula summed in __float128") {
  for (const entry& e : registry()) {
    if (!e.reference) continue;
    CAPTURE(e.name);
    random_numbers random(11);
    for (int k = 0; k < 3 * e.variants; ++k) {
      const problem p = draw(e, k % e.variants, 5, 7, true, random);
      CAPTURE(k % e.variants);
      auto a = lay_out<double>(e, p, form::mask_u8);
      const figures f = e.call_double(a);
      if (f.count("loss") == 0) continue;
      const double loss = f.at("loss");
      const quad expected = e.reference(p, widen(p));
      CHECK(relative(loss, expected,
                     expected > 1    ? expected
                     : expected < -1 ? -expected
                                     : quad(1)) < 1e-13);
    }
  }
}

TEST_CASE("every gradient is the slope of its loss to 1e-10") {
  for (const entry& e : registry()) {
    if (!e.reference) continue;
    CAPTURE(e.name);
    random_numbers random(29);
    int compared = 0;
    for (int k = 0; k < 2 * e.variants; ++k) {
      problem p = draw(e, k % e.variants, 4, 6, k % 2 == 0, random);
      p.upstream = e.scales && k % 2 == 1 ? 0.75 : 1;
      if (e.masked && k % 4 == 3)  // weights instead of flags
        for (double& w : p.weight) w *= random.uniform(0.25, 2);
      CAPTURE(k);
      auto a = lay_out<double>(e, p, form::mask_double);
      e.call_double(a);
      auto x = widen(p);
      for (const input_spec& s : e.inputs(p.variant)) {
        if (s.gradient == nullptr || a.written.count(s.gradient) == 0) continue;
        CAPTURE(s.name);
        const auto gradient = dense(a, s.gradient);
        std::vector<quad> slope;
        quad largest = 0;
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          quad& v = x[s.name][i];
          const quad kept = v;
          const quad h = static_cast<quad>(1e-10) * (kept > 1 ? kept : kept < -1 ? -kept : quad(1));
          v = kept + h;
          const quad above = e.reference(p, x);
          v = kept - h;
          const quad below = e.reference(p, x);
          v = kept;
          slope.push_back((above - below) / (2 * h) * static_cast<quad>(p.upstream));
          const quad size = slope.back() < 0 ? -slope.back() : slope.back();
          if (size > largest) largest = size;
        }
        for (std::size_t i = 0; i < gradient.size(); ++i) {
          CAPTURE(i);
          const quad size = slope[i] < 0 ? -slope[i] : slope[i];
          const quad floor = static_cast<quad>(1e-6) * largest;
          const quad scale = size > floor ? size : floor > 0 ? floor : quad(1);
          const double error = relative(gradient[i], slope[i], scale);
          CHECK(error <= 1e-10);
          ++compared;
        }
      }
    }
    CHECK(compared > 0);
  }
}
