// A policy loss, a loss over pairs and an estimator that the library does not have.

#include <rlhf/backend/host.hpp>
#include <rlhf/policy/policy_loss.hpp>
#include <rlhf/primitive/reverse_scan.hpp>
#include <rlhf/statistics/moments.hpp>
#include <rlhf/statistics/pair_loss.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

//! [formula]
// A policy loss that pulls the ratio back to 1 with a spring in place of a clip.
struct spring {
  double stiffness;

  template <rlhf::lane V>
  RLHF_HOST_DEVICE V operator()(const rlhf::policy_token<V>& t) const {
    const V one = rlhf::math::constant<V>(1);
    const V k = rlhf::math::constant<V>(stiffness);
    const V stretch = t.ratio - one;
    return k * stretch * stretch - t.ratio * t.advantage;
  }
};
//! [formula]

//! [slope]
// The same with its slope written out, and a count of tokens far from the old policy.
struct spring_with_slope {
  double stiffness;

  template <rlhf::lane V>
  RLHF_HOST_DEVICE rlhf::policy_terms<V> operator()(const rlhf::policy_token<V>& t) const {
    const V zero = rlhf::math::constant<V>(0);
    const V one = rlhf::math::constant<V>(1);
    const V two = rlhf::math::constant<V>(2);
    const V k = rlhf::math::constant<V>(stiffness);
    const V stretch = t.ratio - one;
    const V far = rlhf::math::constant<V>(0.3);
    return {.loss = k * stretch * stretch - t.ratio * t.advantage,
            .d_log_prob = t.ratio * (two * k * stretch - t.advantage),  // d ratio = ratio
            .clipped_low = rlhf::math::select(stretch < -far, one, zero),
            .clipped_high = rlhf::math::select(stretch > far, one, zero)};
  }
};
//! [slope]

//! [pairs]
// A hinge on the difference of two scores.
struct hinge {
  template <rlhf::lane V>
  RLHF_HOST_DEVICE V operator()(const rlhf::scored_pair<V>& p) const {
    const V zero = rlhf::math::constant<V>(0);
    return rlhf::math::max(p.margin - (p.chosen - p.rejected), zero);
  }
};
//! [pairs]

//! [scan]
// x_t = r_t + decay · x_{t+1} over the tokens of each row, last to first.
template <rlhf::scalar T>
struct decayed_sum {
  using scalar_type = T;
  static constexpr int inputs = 1, outputs = 1, flags = 0, shifted = -1;
  double decay;

  template <class Token>
  RLHF_HOST_DEVICE void step(Token& t) const {
    t.b = t.in[0];
  }
  template <class Token>
  RLHF_HOST_DEVICE void emit(Token& t) const {
    t.out[0] = t.x;
  }
  template <class Token>
  RLHF_HOST_DEVICE bool usable(const Token& t) const {
    return rlhf::math::is_finite(t.in[0]);
  }
};

inline rlhf::moments read_decayed_sums(const double* figures) {
  return {figures[0], figures[2], figures[3]};  // positions; mean and spread of the output
}

// The call: fields bound to the tokens of the batch, one pass, a result.
template <rlhf::scalar T, rlhf::executor Exec = rlhf::serial>
rlhf::result_of<Exec, rlhf::moments> decayed_sums(
    const rlhf::view<const T, rlhf::space_of<Exec>>& reward,
    const rlhf::sequence_layout<rlhf::space_of<Exec>>& layout, double decay,
    const rlhf::output<T, rlhf::space_of<Exec>>& sums, const Exec& exec = {}) {
  using kernel = decayed_sum<T>;
  rlhf::expects(decay >= 0 && decay <= 1, "decayed_sums", "decay", "in [0, 1]", decay);
  rlhf::token_binder<rlhf::space_of<Exec>> bind("decayed_sums", "reward", reward, layout, {});
  rlhf::scan_arguments<kernel, rlhf::space_of<Exec>> a;
  a.domain = bind.domain();
  a.in[0] = bind.token("reward", reward);
  a.out[0] = bind.written("sums", sums);

  auto run = exec.begin("decayed_sums");
  double* const figures = run.template allocate<double>(rlhf::scan_figures<kernel>::size);
  run.reverse_scan(kernel{decay}, a, figures);
  return run.template finish<rlhf::moments>(figures, &read_decayed_sums);
}
//! [scan]

int main() {
  const std::vector<double> log_prob = {-1.0, -0.7, -2.0, -0.9, -1.1, 0};
  const std::vector<double> old_log_prob = {-1.2, -1.1, -2.0, -0.5, -1.0, 0};
  const std::vector<double> advantage = {1.0, -0.5};
  const std::vector<std::int32_t> length = {3, 2};
  std::vector<double> d_log_prob(6), d_written(6), d_lambda(6);
  const rlhf::shape tokens(2, 3);
  const rlhf::policy_batch<double> batch{.log_prob = {log_prob, tokens},
                                         .old_log_prob = {old_log_prob, tokens},
                                         .advantage = advantage,
                                         .layout = rlhf::lengths(length)};
  const auto over = rlhf::aggregation::token_mean(5);

  //! [call]
  const auto r = rlhf::policy_loss<double>(spring{2.0}, batch, {.d_log_prob = {d_log_prob, tokens}},
                                           rlhf::policy_config{.over = over});
  //! [call]
  std::printf("spring   loss %.6f  KL(old || new) %.4f\n", r.loss, r.approx_kl_k3.mean());

  const auto written =
      rlhf::policy_loss<double>(spring_with_slope{2.0}, batch, {.d_log_prob = {d_written, tokens}},
                                rlhf::policy_config{.over = over});
  std::printf("written  loss %.6f  far %.1f\n", written.loss, written.clip_fraction.mean());
  double apart = 0;
  for (std::size_t k = 0; k < 6; ++k)
    apart = std::fmax(apart, std::fabs(d_log_prob[k] - d_written[k]));
  std::printf("slopes by dual numbers and by hand differ by less than 1e-15: %s\n",
              apart < 1e-15 ? "yes" : "no");

  //! [lambda]
  // On the host a generic lambda will do.
  const auto plain = rlhf::policy_loss<double>(
      [](const auto& t) { return -(t.ratio * t.advantage); }, batch,
      {.d_log_prob = {d_lambda, tokens}}, rlhf::policy_config{.over = over});
  //! [lambda]
  std::printf("lambda   loss %.6f\n", plain.loss);

  //! [pair_call]
  const std::vector<double> chosen = {1.2, 0.1, 0.4}, rejected = {0.0, 0.3, 0.1};
  const std::vector<double> margin = {0.5, 0.5, 0.5};
  std::vector<double> d_chosen(3), d_rejected(3);
  const auto pairs = rlhf::pair_loss<double>(
      hinge{}, {.chosen_score = chosen, .rejected_score = rejected, .margin = margin},
      {.d_chosen_score = d_chosen, .d_rejected_score = d_rejected},
      {.over = rlhf::reduction::mean(rlhf::local)});
  //! [pair_call]
  std::printf("hinge    loss %.4f  accuracy %.3f  d_chosen %.3f %.3f %.3f\n", pairs.loss,
              pairs.accuracy.mean(), d_chosen[0], d_chosen[1], d_chosen[2]);

  //! [scan_call]
  const std::vector<double> reward = {0, 0, 1, 0, 2, 0};
  std::vector<double> sums(6);
  const rlhf::moments m =
      decayed_sums<double>({reward, tokens}, rlhf::lengths(length), 0.5, {sums, tokens});
  //! [scan_call]
  std::printf("sums     %.2f %.2f %.2f | %.2f %.2f   mean %.2f\n", sums[0], sums[1], sums[2],
              sums[3], sums[4], m.mean);
}
