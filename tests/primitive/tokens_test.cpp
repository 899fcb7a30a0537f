#include "rlhf/primitive/tokens.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using domain = rlhf::token_domain<rlhf::host_space>;
using rlhf::arrangement;
using rlhf::shape;

TEST_CASE("token_domain: where rows begin and end in each layout") {
  const std::vector<std::int32_t> length{2, 0}, offset{0, 2, 2, 5};
  domain d;
  d.rows = 2, d.columns = 3;
  CHECK(d.length(1) == 3);
  CHECK(d.begin(1) == 0);
  d.kind = arrangement::lengths, d.indices = rlhf::index_view<>(length);
  CHECK(d.length(0) == 2);
  CHECK(d.length(1) == 0);
  CHECK(d.begin(1) == 0);
  CHECK(d.slots(0) == 3);  // the padding is the row's as well
  d.kind = arrangement::packed, d.indices = rlhf::index_view<>(offset);
  d.rows = 3, d.columns = 5;
  CHECK(d.begin(2) == 2);
  CHECK(d.length(0) == 2);
  CHECK(d.length(1) == 0);
  CHECK(d.length(2) == 3);
  CHECK(d.slots(2) == 3);
}

TEST_CASE("token_domain: an index that would leave the buffer makes an empty row inside it") {
  const std::vector<std::int64_t> length{-1, 4, 3}, offset{0, 3, 2, 9, -4, 1};
  domain d;
  d.rows = 3, d.columns = 3;
  d.kind = arrangement::lengths, d.indices = rlhf::index_view<>(length);
  CHECK(d.length(0) == 0);
  CHECK(d.length(1) == 0);
  CHECK(d.length(2) == 3);
  d.kind = arrangement::packed, d.indices = rlhf::index_view<>(offset);
  d.rows = 5, d.columns = 5;
  CHECK(d.length(0) == 3);
  for (index i = 1; i < 5; ++i) CHECK(d.length(i) == 0);  // 3 > 2, 9 > 5, 9 > -4, -4 < 0
  CHECK(d.begin(3) == 5);
  CHECK(d.begin(4) == 0);
}

TEST_CASE("token_domain: valid tokens end with the last weight above 0") {
  const std::vector<float> weight{1, 0, 0.5f, 0, 0, 0, 0, 0};
  const std::vector<std::int32_t> length{2, 4}, offset{0, 4, 8};
  domain d;
  d.rows = 2, d.columns = 4;
  CHECK(d.valid_length(0) == 4);  // no mask: the length
  d.mask = rlhf::mask_view<>(weight, shape(2, 4));
  CHECK(d.valid_length(0) == 3);
  CHECK(d.valid_length(1) == 0);
  d.kind = arrangement::lengths, d.indices = rlhf::index_view<>(length);
  CHECK(d.valid_length(0) == 1);  // behind its length nothing is looked at
  d.kind = arrangement::packed, d.indices = rlhf::index_view<>(offset);
  d.columns = 8;
  d.mask = rlhf::mask_view<>(weight);
  CHECK(d.valid_length(0) == 3);
  CHECK(d.valid_length(1) == 0);
}

TEST_CASE("token_domain: where the mask of a row lies") {
  const std::vector<std::uint8_t> flag(24);
  const std::vector<std::int32_t> offset{0, 2, 5};
  domain d;
  d.rows = 2, d.columns = 3;
  d.mask = rlhf::mask_view<>(flag.data(), shape(2, 3), shape(12, 4));
  CHECK(d.mask_offset(1) == 12);
  CHECK(d.mask_stride() == 4);
  d.kind = arrangement::packed, d.indices = rlhf::index_view<>(offset);
  d.columns = 5;
  d.mask = rlhf::mask_view<>(flag.data(), shape(5), shape(3));
  CHECK(d.mask_offset(1) == 6);
  CHECK(d.mask_stride() == 3);
}

}  // namespace
}  // namespace rlhf_test
