#include "tests/backend/same_bits.hpp"
#include "tests/support/thread_pool.hpp"

namespace {

static_assert(rlhf::thread_pool<rlhf_test::thread_pool>);

/// One thread that claims to be many and works backwards: order must not matter.
struct backwards {
  template <class F>
  void parallel_for(rlhf::index n, const F& f) const {
    for (rlhf::index i = n; i-- > 0;) f(i);
  }
  rlhf::index concurrency() const { return 64; }
};

}  // namespace

TEST_CASE("parallel: any number of threads has the bits of one") {
  for (const rlhf::index count : {1, 2, 3, 5, 7}) {
    CAPTURE(count);
    rlhf_test::check_same_bits(rlhf_test::thread_pool{count});
  }
}

TEST_CASE("parallel: the order of the work does not matter") {
  rlhf_test::check_same_bits(backwards{});
}

TEST_CASE("parallel: with a workspace of the bytes that were asked for it has the same bits") {
  const auto rows = rlhf_test::odd_rows();
  const backwards pool;
  const std::vector<float> x(static_cast<std::size_t>(rows[1].tokens()), 0.5f);
  const std::vector<float> advantage(static_cast<std::size_t>(rows[1].rows()), 1.0f);
  const auto call = [&](const auto& exec) {
    return rlhf::clipped_surrogate_loss<float>(
        {.log_prob = x,
         .old_log_prob = x,
         .advantage = rlhf::per_sequence(advantage),
         .layout = rlhf::packed(rows[1].offsets)},
        {}, {.over = rlhf::aggregation::token_mean(rlhf::local)}, exec);
  };
  std::vector<unsigned char> workspace(rlhf::workspace_bytes(call, pool.concurrency()));
  const rlhf::parallel<backwards> exec{pool, workspace.data(), workspace.size()};
  CHECK(call(exec).loss == call(rlhf::serial{}).loss);
  const rlhf::parallel<backwards> less{pool, workspace.data(), workspace.size() - 128};
  CHECK_THROWS_AS(call(less), rlhf::contract_violation);
}
