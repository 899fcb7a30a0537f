#include "rlhf/backend/openmp.hpp"
#include "tests/backend/same_bits.hpp"

static_assert(rlhf::thread_pool<rlhf::openmp_pool>);

TEST_CASE("openmp_pool: the bits of one thread, whatever their number") {
  rlhf_test::check_same_bits(rlhf::openmp_pool{});
  for (const int threads : {1, 3, 7}) {
    CAPTURE(threads);
    rlhf_test::check_same_bits(rlhf::openmp_pool{threads});
  }
}

TEST_CASE("openmp_pool: each index is visited once") {
  std::vector<int> visits(1000);
  rlhf::openmp_pool{5}.parallel_for(1000,
                                    [&](rlhf::index i) { ++visits[static_cast<std::size_t>(i)]; });
  CHECK(visits == std::vector<int>(1000, 1));
  rlhf::openmp_pool{5}.parallel_for(0, [&](rlhf::index) { FAIL("nothing to visit"); });
}
