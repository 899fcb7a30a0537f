#include "rlhf/statistics/row.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using rlhf::shape;
using rlhf::v1::detail::as_row;
using rlhf::v1::detail::row_if;

TEST_CASE("row: a rank-1 tensor is one row of tokens, with its stride and its memory") {
  float memory[9] = {};
  const auto row = as_row(rlhf::view<float>(memory, shape(3), shape(3)));
  CHECK(row.shape() == shape(1, 3));
  CHECK(row.stride(1) == 3);
  CHECK(row.data() == &memory[0]);
}

TEST_CASE("row: an output keeps whether it is added to") {
  std::vector<float> memory(3);
  CHECK(as_row(rlhf::output<float>(rlhf::add_to(memory))).accumulate);
  CHECK(!as_row(rlhf::output<float>(memory)).accumulate);
  CHECK(as_row(rlhf::output<float>(memory)).shape() == shape(1, 3));
}

/// Every second weight, 1 0 1, as a row.
template <class E>
void check_mask(rlhf::mask_kind kind) {
  const E memory[] = {E(1), E(0), E(0), E(1), E(1), E(0)};
  const auto row = as_row(rlhf::mask_view<>(&memory[0], shape(3), shape(2)));
  CHECK(row.kind() == kind);
  CHECK(row.shape() == shape(1, 3));
  for (index j = 0; j < 3; ++j) CHECK(row.at(j * row.stride(1)) == (j == 1 ? 0 : 1));
}

TEST_CASE("row: a mask of each kind") {
  check_mask<bool>(rlhf::mask_kind::flag);
  check_mask<std::uint8_t>(rlhf::mask_kind::flag);
  check_mask<float>(rlhf::mask_kind::weight32);
  check_mask<double>(rlhf::mask_kind::weight64);
  CHECK(!as_row(rlhf::mask_view<>()));
}

TEST_CASE("row_if: only what has rank 1, and only where it is asked for") {
  float memory[6] = {};
  const rlhf::view<float> one(memory, shape(6)), two(memory, shape(2, 3));
  CHECK(row_if(true, one).shape() == shape(1, 6));
  CHECK(row_if(false, one).shape() == shape(6));
  CHECK(row_if(true, two).shape() == shape(2, 3));
}

}  // namespace
}  // namespace rlhf_test
