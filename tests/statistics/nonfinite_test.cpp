#include "rlhf/statistics/nonfinite.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using rlhf::nonfinite_policy;
using rlhf::shape;
using rlhf::RLHF_COMPUTE::screen_nonfinite;
using numbers = std::vector<double>;

struct screened {
  numbers weight;
  double dropped;
};

/// Two inputs of one layout, the second with a NaN or an infinity of its own, and a third that is
/// not given. Their rows lie in `a`, `b` and `weight` alike: row i at i · per_row + begin(i).
struct tokens {
  numbers a{1, not_a_number, 3, 4, 5, infinite};
  numbers b{1, infinite, 3, 4, 5, 6};
  std::vector<float> weight{2, 1, 1, 0.5f, 1, 1};
  rlhf::token_domain<rlhf::host_space> domain;

  screened screen(nonfinite_policy policy) const {
    const bool packed = domain.kind == rlhf::arrangement::packed;
    const index per_row = packed ? 0 : 3, per_begin = packed ? 1 : 0;
    const rlhf::token_input<double> in[] = {
        {a.data(), per_row, per_begin, 1, 0}, {b.data(), per_row, per_begin, 1, 0}, {}};
    numbers memory(64, -7);  // whatever is not written would show
    const rlhf::serial exec{memory.data(), memory.size() * sizeof(double)};
    auto run = exec.begin("f");
    const auto s = screen_nonfinite<double>(run, domain, in, policy);
    screened r;
    const auto* const w = static_cast<const double*>(s.domain.mask.data());
    for (index k = 0; k < 6; ++k) r.weight.push_back(s.dropped != nullptr ? w[k] : -1);
    r.dropped = s.dropped != nullptr ? *s.dropped : -1;
    return r;
  }
};

tokens padded() {
  tokens t;
  t.domain.rows = 2, t.domain.columns = 3;
  t.domain.mask = rlhf::mask_view<>(t.weight, shape(2, 3));
  return t;
}

TEST_CASE("nonfinite: a token is dropped once, whichever of its inputs is not finite") {
  const screened s = padded().screen(nonfinite_policy::drop_token);
  CHECK(s.weight == numbers{2, 0, 1, 0.5, 1, 0});
  CHECK(s.dropped == 2);
}

TEST_CASE("nonfinite: with a token goes its sequence; the count is that of the tokens") {
  tokens t = padded();
  t.a[5] = 6;
  const screened s = t.screen(nonfinite_policy::drop_sequence);
  CHECK(s.weight == numbers{0, 0, 0, 0.5, 1, 1});
  CHECK(s.dropped == 1);
}

TEST_CASE("nonfinite: what is masked, or lies behind the length, is neither counted nor kept") {
  tokens t = padded();
  const std::int64_t length[] = {3, 2};
  t.domain.kind = rlhf::arrangement::lengths;
  t.domain.indices = rlhf::index_view<>(length);
  t.weight[1] = 0;
  const screened s = t.screen(nonfinite_policy::drop_sequence);
  CHECK(s.weight == numbers{2, 0, 1, 0.5, 1, 0});
  CHECK(s.dropped == 0);
}

TEST_CASE("nonfinite: packed rows lie where they begin") {
  tokens t = padded();
  const std::int32_t offsets[] = {0, 4, 6};
  t.domain.kind = rlhf::arrangement::packed;
  t.domain.columns = 6;
  t.domain.indices = rlhf::index_view<>(offsets);
  t.domain.mask = rlhf::mask_view<>(t.weight);
  t.a[1] = t.b[1] = 2;
  const screened s = t.screen(nonfinite_policy::drop_sequence);
  CHECK(s.weight == numbers{2, 1, 1, 0.5, 0, 0});
  CHECK(s.dropped == 1);
}

TEST_CASE("nonfinite: propagate makes no new mask, error refuses by name") {
  tokens t = padded();
  CHECK(t.screen(nonfinite_policy::propagate).dropped == -1);
  const std::string said = message_of([&] { t.screen(nonfinite_policy::error); });
  CHECK(said.find("f: inputs: expected finite values in every counted token") == 0);
  t.a[1] = t.b[1] = t.a[5] = 0;
  CHECK(t.screen(nonfinite_policy::error).dropped == -1);
}

}  // namespace
}  // namespace rlhf_test
