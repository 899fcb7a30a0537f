#if defined(RLHF_TEST_TBB)

#include "rlhf/backend/tbb.hpp"
#include "tests/backend/same_bits.hpp"

static_assert(rlhf::thread_pool<rlhf::tbb_pool>);

TEST_CASE("tbb_pool: the bits of one thread") { rlhf_test::check_same_bits(rlhf::tbb_pool{}); }

TEST_CASE("tbb_pool: an arena's size is the concurrency of the calls made in it") {
  tbb::task_arena arena(2);
  arena.execute([] {
    CHECK(rlhf::tbb_pool::concurrency() == 2);
    rlhf_test::check_same_bits(rlhf::tbb_pool{});
  });
}

#endif
