#pragma once

#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "rlhf/preference/dpo.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/reward/ensemble.hpp"
#include "rlhf/value/clipped_value_loss.hpp"
#include "rlhf/value/explained_variance.hpp"
#include "tests/thrust/batch.hpp"

namespace thrust_test {

TEST_CASE_TEMPLATE("device: preferences, per answer and per token", T, float, double) {
  for (const arranged how : arrangements) {
    CAPTURE(static_cast<int>(how));
    const batch_of<T> batch(how, 70, 30, 61), other(how, 70, 20, 62);
    compare<T>([&]<class Place>(Place& place, trace& to) {
      typename batch_of<T>::template given<Place> x(batch), y(other);
      tensor<Place, T> d_chosen(T(7), batch.shape), d_rejected(T(7), other.shape);
      tensor<Place, T> pair_loss(T(7), rlhf::shape(batch.rows));
      const auto tokens =
          rlhf::dpo_loss<T>({.chosen_log_prob = x.a.view(),
                             .rejected_log_prob = y.a.view(),
                             .ref_chosen_log_prob = x.b.view(),
                             .ref_rejected_log_prob = y.b.view(),
                             .chosen_mask = x.mask,
                             .rejected_mask = y.mask,
                             .chosen_layout = x.layout,
                             .rejected_layout = y.layout},
                            {.d_chosen_log_prob = d_chosen.view(),
                             .d_rejected_log_prob = rlhf::add_to(d_rejected.view()),
                             .pair_loss = pair_loss.view()},
                            {.over = rlhf::reduction::mean(rlhf::local)}, place.exec);
      tensor<Place, T> d_row(T(7), rlhf::shape(batch.rows)), d_other(T(7), rlhf::shape(batch.rows));
      const auto pairs = rlhf::bradley_terry_loss<T>(
          {.chosen_reward = x.row.view(), .rejected_reward = y.row.view()},
          {.d_chosen_reward = d_row.view(), .d_rejected_reward = d_other.view()},
          {.centering = 0.01, .over = rlhf::reduction::mean(rlhf::local)}, place.exec);
      read_result(Place::get(tokens), to);
      read_result(Place::get(pairs), to);
      d_chosen.read(to);
      d_rejected.read(to);
      pair_loss.read(to);
      d_row.read(to);
      d_other.read(to);
    });
  }
}

TEST_CASE_TEMPLATE("device: the critic, and the distance to the reference", T, float, double) {
  for (const arranged how : arrangements) {
    CAPTURE(static_cast<int>(how));
    const batch_of<T> batch(how, 67, 31, 63);
    compare<T>([&]<class Place>(Place& place, trace& to) {
      typename batch_of<T>::template given<Place> x(batch);
      tensor<Place, T> d_value(T(7), batch.shape), d_log_prob(T(7), batch.shape);
      tensor<Place, T> kl(T(7), batch.shape), reward(T(7), batch.shape);
      const auto value = rlhf::clipped_value_loss<T>(
          {.value = x.a.view(),
           .old_value = x.b.view(),
           .returns = x.c.view(),
           .mask = x.mask,
           .layout = x.layout},
          {.d_value = d_value.view()}, {.over = rlhf::aggregation::token_mean(rlhf::local)},
          place.exec);
      const auto explained = rlhf::explained_variance<T>(
          {.value = x.a.view(), .returns = x.c.view(), .mask = x.mask, .layout = x.layout}, {}, {},
          place.exec);
      const auto estimate = rlhf::kl_estimate<T>(
          {.log_prob = x.a.view(), .ref_log_prob = x.b.view(), .mask = x.mask, .layout = x.layout},
          {.d_log_prob = d_log_prob.view()}, {.over = rlhf::aggregation::token_mean(rlhf::local)},
          place.exec);
      const auto penalty =
          rlhf::kl_penalty<T>({.log_prob = x.a.view(),
                               .ref_log_prob = x.b.view(),
                               .score = rlhf::per_sequence(x.row.view()),
                               .mask = x.mask,
                               .layout = x.layout},
                              {.reward = reward.view(), .kl = kl.view()}, {}, place.exec);
      read_result(Place::get(value), to);
      read_result(Place::get(explained), to);
      read_result(Place::get(estimate), to);
      read_result(Place::get(penalty), to);
      d_value.read(to);
      d_log_prob.read(to);
      reward.read(to);
      kl.read(to);
    });
  }
}

TEST_CASE_TEMPLATE("device: ensembles of reward models", T, float, double) {
  const index members = 5, samples = 200;
  numbers random(64);
  const auto scores = random.many<T>(members * samples, -2, 2);
  for (const auto combine : {rlhf::ensemble::mean, rlhf::ensemble::worst_case,
                             rlhf::ensemble::median, rlhf::ensemble::mean_minus_std})
    compare<T>([&]<class Place>(Place& place, trace& to) {
      tensor<Place, T> reward(scores, rlhf::shape(members, samples));
      tensor<Place, T> combined(T(7), rlhf::shape(samples)), apart(T(7), rlhf::shape(samples));
      tensor<Place, T> d_reward(T(7), rlhf::shape(members, samples));
      const auto r = rlhf::ensemble_reward<T>(
          {.reward = reward.view()},
          {.combined = combined.view(), .disagreement = apart.view(), .d_reward = d_reward.view()},
          {.combine = combine,
           .coefficient = combine == rlhf::ensemble::mean_minus_std ? 0.5 : 0.0},
          place.exec);
      read_result(Place::get(r), to);
      combined.read(to);
      apart.read(to);
      d_reward.read(to);
    });
}

}  // namespace thrust_test
