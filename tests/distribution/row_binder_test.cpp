#include "rlhf/distribution/row_binder.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using numbers = std::vector<float>;
using binder = rlhf::RLHF_COMPUTE::detail::row_binder<float, rlhf::host_space>;
using arguments = rlhf::RLHF_COMPUTE::row_arguments<float, rlhf::host_space>;

TEST_CASE("row_binder: logits are [batch, time, classes], or [tokens, classes], packed or alone") {
  numbers x(24);
  const rlhf::view<const float> cube(x.data(), {2, 3, 4}), square(x.data(), {6, 4}), line(x);
  const std::vector<std::int32_t> length{1, 3}, offset{0, 2, 6};
  {
    const binder bind("f", cube, {}, {});
    CHECK(bind.classes() == 4);
    CHECK_FALSE(bind.loose());
    const auto a = bind.arguments(0.5);
    CHECK(a.classes == 4);
    CHECK(a.temperature == 0.5);
    CHECK(a.logits.at(1, 0, 2) == x.data() + 20);
    CHECK(a.gradient.data == nullptr);
  }
  {
    const binder bind("f", square, rlhf::packed(offset), {});
    CHECK_FALSE(bind.loose());
    CHECK(bind.arguments(1).logits.at(1, 2, 3) == x.data() + 20);
  }
  {
    const binder bind("f", square, {}, {});
    CHECK(bind.loose());
    CHECK(bind.arguments(1).logits.at(0, 0, 5) == x.data() + 20);
  }
  const auto message = [&](const rlhf::view<const float>& v,
                           const rlhf::sequence_layout<>& layout) {
    return message_of([&] { binder("f", v, layout, {}); });
  };
  CHECK(message(cube, rlhf::lengths(length)).empty());
  CHECK(message({}, {}).find("f: logits: expected a tensor") == 0);
  CHECK(message(line, {}).find("rank 2") != std::string::npos);
  CHECK(message(cube, rlhf::packed(offset)).find("because the layout is packed") !=
        std::string::npos);
  CHECK(message(square, rlhf::lengths(length)).find("because the layout is lengths") !=
        std::string::npos);
  CHECK(message({x.data(), {2, 3, 0}}, {}).find("at least one class") != std::string::npos);
}

TEST_CASE("row_binder: a temperature is finite and > 0") {
  numbers x(4);
  const binder bind("f", {x.data(), {1, 1, 4}}, {}, {});
  CHECK(message_of([&] { bind.temperature(0.1); }).empty());
  for (const double t : {0.0, -1.0, infinite, not_a_number})
    CHECK(message_of([&] { bind.temperature(t); }).find("f: temperature") == 0);
}

TEST_CASE("row_binder: labels of counted tokens are classes, or say that they are ignored") {
  numbers x(24);
  const rlhf::view<const float> logits(x.data(), {2, 3, 4});
  const auto message = [&](std::vector<std::int32_t> label, bool masked) {
    const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1};
    return message_of([&] {
      rlhf::mask_view<> m;
      if (masked) m = rlhf::mask_view<>(mask, rlhf::shape(2, 3));
      binder bind("f", logits, {}, m);
      bind.labels(rlhf::index_view<>(label.data(), rlhf::shape(2, 3)), -7);
    });
  };
  CHECK(message({0, 1, 2, 3, -7, 0}, false).empty());
  CHECK(message({0, 1, 4, 3, 0, 0}, false).find("received 4") != std::string::npos);
  CHECK(message({0, 1, 4, 3, 0, 0}, true).empty());  // masked: anything
  CHECK(message({0, 1, 0, -1, 0, 0}, true).find("received -1") != std::string::npos);
  binder bind("f", logits, {}, {});
  CHECK(message_of([&] { bind.labels({}, -100); }).find("f: label: expected a tensor") == 0);
  const std::vector<std::int32_t> five(5);
  CHECK(message_of([&] {
          bind.labels(rlhf::index_view<>(five), -100);
        }).find("f: label: expected shape [2, 3]") == 0);
}

TEST_CASE("row_binder: the domain has the mask's weights, without what the labels ignore") {
  numbers x(24);
  const rlhf::view<const float> logits(x.data(), {2, 3, 4});
  const std::vector<std::int32_t> label{0, -100, 1, 2, 3, -100}, length{3, 2};
  const std::vector<float> weight{0.5, 1, 0, 2, 1, 1};
  const rlhf::serial exec;
  auto run = exec.begin("f");
  const auto weights = [](const rlhf::token_domain<rlhf::host_space>& d, index n) {
    std::vector<double> w;
    for (index k = 0; k < n; ++k) w.push_back(d.mask.at(k));
    return w;
  };
  {
    binder bind("f", logits, rlhf::lengths(length), rlhf::mask_view<>(weight, rlhf::shape(2, 3)));
    bind.labels(rlhf::index_view<>(label.data(), rlhf::shape(2, 3)), -100);
    CHECK(weights(bind.counted(run), 6) == std::vector<double>{0.5, 0, 0, 2, 1, 0});
  }
  {
    const binder bind("f", logits, {}, {});
    CHECK(bind.counted(run).mask.kind() == rlhf::mask_kind::none);  // nothing to leave out
  }
  {
    // Tokens without sequences: one row for the primitives, with the mask's own stride.
    binder bind("f", {x.data(), {6, 4}}, {}, rlhf::mask_view<>(weight));
    bind.labels(rlhf::index_view<>(label), -100);
    const auto d = bind.counted(run);
    CHECK(d.kind == rlhf::arrangement::padded);
    CHECK(d.rows == 1);
    CHECK(d.columns == 6);
    CHECK(weights(d, 6) == std::vector<double>{0.5, 0, 0, 2, 1, 0});
  }
}

TEST_CASE("row_binder: a gradient has memory of its own, or exactly that of the logits") {
  numbers x(48), y(48);
  const rlhf::view<const float> logits(x.data(), {2, 3, 4});
  const auto message = [&](const rlhf::output<float>& to) {
    return message_of([&] {
      binder bind("f", logits, {}, {});
      arguments a = bind.arguments(1);
      bind.gradient(to, a);
      if (to) {
        CHECK(a.gradient.data == to.data());
        CHECK(a.accumulate == to.accumulate);
      } else {
        CHECK(a.gradient.data == nullptr);
      }
    });
  };
  const rlhf::output<float> in_place(rlhf::view<float>(x.data(), {2, 3, 4}));
  const rlhf::output<float> apart(rlhf::view<float>(y.data(), {2, 3, 4}));
  const rlhf::output<float> shifted(rlhf::view<float>(x.data() + 1, {2, 3, 4}));
  const rlhf::output<float> narrow(rlhf::view<float>(y.data(), {2, 3, 3}));
  CHECK(message({}).empty());
  CHECK(message(in_place).empty());
  CHECK(message(apart).empty());
  CHECK(message(rlhf::add_to(y.data(), {2, 3, 4})).empty());
  CHECK(message(rlhf::add_to(x.data(), {2, 3, 4})).find("because it is added to") !=
        std::string::npos);
  CHECK(message(shifted).find("or exactly that of logits") != std::string::npos);
  CHECK(message(narrow).find("f: d_logits: expected shape [2, 3, 4]") == 0);

  // Two halves of one wide matrix lie side by side: their spans overlap, no element does.
  const rlhf::view<const float> left(x.data(), {3, 4}, {8, 1});
  binder bind("f", left, {}, {});
  arguments a = bind.arguments(1);
  const rlhf::output<float> right(rlhf::view<float>(x.data() + 4, {3, 4}, {8, 1}));
  CHECK(message_of([&] { bind.gradient(right, a); }).empty());
  const rlhf::output<float> across(rlhf::view<float>(x.data() + 2, {3, 4}, {8, 1}));
  CHECK(message_of([&] {
          binder other("f", left, {}, {});
          other.gradient(across, a);
        }).find("d_logits") != std::string::npos);
}

TEST_CASE("row_binder: other outputs may not lie in the logits or in their gradient") {
  numbers x(24), y(24);
  const rlhf::view<const float> logits(x.data(), {2, 3, 4});
  binder bind("f", logits, {}, {});
  arguments a = bind.arguments(1);
  bind.gradient(rlhf::output<float>(rlhf::view<float>(y.data(), {2, 3, 4})), a);
  const rlhf::output<float> in_logits(rlhf::view<float>(x.data(), {2, 3}));
  const rlhf::output<float> in_gradient(rlhf::view<float>(y.data() + 3, {2, 3}));
  CHECK(message_of([&] { bind.tokens().written("entropy", in_logits); }).find("overlaps logits") !=
        std::string::npos);
  CHECK(message_of([&] {
          bind.tokens().written("entropy", in_gradient);
        }).find("overlaps d_logits") != std::string::npos);
}

}  // namespace
}  // namespace rlhf_test
