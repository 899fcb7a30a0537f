#pragma once

#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"
#include "tests/thrust/batch.hpp"

namespace thrust_test {

TEST_CASE_TEMPLATE("device: the clipped surrogate has the numbers of the host", T, float, double) {
  for (const arranged how : arrangements)
    for (const extents size : sizes) {
      if (is_left_out(size.rows * size.columns)) continue;
      CAPTURE(static_cast<int>(how));
      CAPTURE(size.rows);
      CAPTURE(size.columns);
      batch_of<T> batch(how, size.rows, size.columns, 11);
      batch.poison();
      compare<T>([&]<class Place>(Place& place, trace& to) {
        typename batch_of<T>::template given<Place> x(batch);
        tensor<Place, T> d_log_prob(T(7), batch.shape);
        const auto lean = rlhf::clipped_surrogate_loss<T>(
            {.log_prob = x.a.view(),
             .old_log_prob = x.b.view(),
             .advantage = rlhf::per_sequence(x.row.view()),
             .mask = x.mask,
             .layout = x.layout},
            {.d_log_prob = d_log_prob.view()},
            {.clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)}, place.exec);
        read_result(Place::get(lean), to);
        d_log_prob.read(to);
      });
    }
}

TEST_CASE_TEMPLATE("device: every input and output of a policy loss, with scalars on the device", T,
                   float, double) {
  for (const arranged how : arrangements)
    for (const extents size : {extents{5, 19}, extents{67, 33}}) {
      CAPTURE(static_cast<int>(how));
      batch_of<T> batch(how, size.rows, size.columns, 23);
      batch.poison();
      compare<T>([&]<class Place>(Place& place, trace& to) {
        typename batch_of<T>::template given<Place> x(batch);
        tensor<Place, T> d_log_prob(T(7), batch.shape), d_entropy(T(1), batch.shape);
        tensor<Place, T> token_loss(T(2), batch.shape), ratio(T(3), batch.shape);
        number<Place> tokens(123), beta(0.05), above(1.5);
        const auto full = rlhf::clipped_surrogate_loss<T>(
            {.log_prob = x.a.view(),
             .old_log_prob = x.b.view(),
             .ref_log_prob = x.c.view(),
             .entropy = x.c.view(),
             .advantage = x.d.view(),
             .coefficient = rlhf::per_sequence(x.row.view()),
             .mask = x.mask,
             .layout = x.layout},
            {.d_log_prob = rlhf::add_to(d_log_prob.view()),
             .d_entropy = d_entropy.view(),
             .token_loss = token_loss.view(),
             .ratio = ratio.view(),
             .upstream = above.at()},
            {.dual_clip = 3,
             .over = rlhf::aggregation::token_mean(tokens.at()),
             .kl = {.coefficient = beta.at()},
             .entropy = {.coefficient = 0.01,
                         .over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local)}},
            place.exec);
        read_result(Place::get(full), to);
        d_log_prob.read(to);
        d_entropy.read(to);
        token_loss.read(to);
        ratio.read(to);
      });
    }
}

TEST_CASE_TEMPLATE("device: every aggregation and every answer to a NaN", T, float, double) {
  using rlhf::aggregation;
  const aggregation overs[] = {aggregation::token_sum(),
                               aggregation::sequence_mean_token_sum(rlhf::local),
                               aggregation::sequence_mean_token_sum_norm(4, 100),
                               aggregation::sequence_mean_token_mean(rlhf::local),
                               aggregation::group_mean_token_mean(rlhf::local),
                               aggregation::turn_mean(rlhf::local)};
  for (const arranged how : {arranged::flags, arranged::packed})
    for (const aggregation& over : overs)
      for (const auto nonfinite :
           {rlhf::nonfinite_policy::propagate, rlhf::nonfinite_policy::drop_token,
            rlhf::nonfinite_policy::drop_sequence}) {
        batch_of<T> batch(how, 9, 30, 31);
        batch.poison();
        batch.d[5] = std::numeric_limits<T>::infinity();
        compare<T>([&]<class Place>(Place& place, trace& to) {
          typename batch_of<T>::template given<Place> x(batch);
          tensor<Place, T> d_log_prob(T(7), batch.shape);
          const bool grouped = over.mode() == rlhf::aggregation_mode::group_mean_token_mean;
          rlhf::index_view<typename Place::space> group;
          if (grouped) group = x.group;
          const auto r =
              rlhf::reinforce_loss<T>({.log_prob = x.a.view(),
                                       .advantage = x.d.view(),
                                       .group_id = group,
                                       .mask = x.mask,
                                       .layout = x.layout},
                                      {.d_log_prob = d_log_prob.view()},
                                      {.over = over, .nonfinite = nonfinite}, place.exec);
          read_result(Place::get(r), to);
          d_log_prob.read(to);
        });
      }
}

TEST_CASE_TEMPLATE("device: ratios of whole sequences", T, float, double) {
  for (const arranged how : arrangements)
    for (const auto form : {rlhf::sequence_form::sequence, rlhf::sequence_form::token}) {
      for (const bool per_token : {false, true}) {
        batch_of<T> batch(how, 70, 33, 41);
        batch.poison();
        compare<T>([&]<class Place>(Place& place, trace& to) {
          typename batch_of<T>::template given<Place> x(batch);
          tensor<Place, T> d_log_prob(T(7), batch.shape);
          tensor<Place, T> sequence_loss(T(7), rlhf::shape(batch.rows));
          rlhf::signal<const T, typename Place::space> advantage = rlhf::per_sequence(x.row.view());
          if (per_token) advantage = x.d.view();
          const auto r = rlhf::sequence_clipped_surrogate_loss<T>(
              {.log_prob = x.a.view(),
               .old_log_prob = x.b.view(),
               .advantage = advantage,
               .mask = x.mask,
               .layout = x.layout},
              {.d_log_prob = d_log_prob.view(), .sequence_loss = sequence_loss.view()},
              {.clip_low = 0.2,
               .clip_high = 0.2,
               .form = form,
               .over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local)},
              place.exec);
          read_result(Place::get(r), to);
          d_log_prob.read(to);
          sequence_loss.read(to);
        });
      }
    }
}

}  // namespace thrust_test
