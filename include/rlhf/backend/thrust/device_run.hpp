#pragma once

#include "rlhf/backend/thrust/groups.hpp"
#include "rlhf/backend/thrust/logit_rows.hpp"
#include "rlhf/backend/thrust/memory.hpp"
#include "rlhf/backend/thrust/moment_pass.hpp"
#include "rlhf/backend/thrust/row_scan.hpp"
#include "rlhf/backend/thrust/row_sums.hpp"
#include "rlhf/backend/thrust/token_pass.hpp"
#include "rlhf/primitive/executor.hpp"

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// Brings the figures of a call and the counts of its refusals together, where they do not lie so
/// already. Some may stand where others are to go, so all are read first.
struct gather_result {
  static constexpr int threads = 128;
  const double* figures;
  index count;
  index refusals;
  const double* refused[most_refusals];
  double* to;

  struct shared {
    double x[most_figures + most_refusals];
  };
  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index) const {
    team.each([&](int t) {
      for (index i = t; i < count + refusals; i += threads)
        s.x[i] = i < count ? figures[i] : *refused[i - count];
    });
    team.sync();
    team.each([&](int t) {
      for (index i = t; i < count + refusals; i += threads) to[i] = s.x[i];
    });
  }
};

}  // namespace detail

/// One call on a device: every primitive enqueues, nothing waits, nothing is read by the host. The
/// executor's machine has
///
///     launch(n, f)         f(i) for each i in [0, n), in any order
///     launch_lanes(n, f)   f(lanes, i) for each i, by 16 threads together; see serial_lanes
///     launch_team(n, f)    f(team, shared, i) for each i, by a block of threads; see serial_team
///
/// and runs what it is given in order. Counts, and whether lengths and offsets fit, wait for a pass
/// over the same tokens, which finds them on its way; who reads them first has them counted.
template <class Exec>
class device_run {
  const Exec& exec_;
  detail::device_arena arena_;

  struct refusal {
    const double* count;
    const char* argument;
    const char* expected;
  };
  refusal refusal_[detail::most_refusals];
  int refusals_ = 0;

  // Counts that are asked for and not yet enqueued.
  struct open_count {
    token_domain<typename Exec::space> domain;
    double* counts = nullptr;
    double* row_weight = nullptr;
  };
  open_count open_;

  // Domains whose lengths, offsets and weights the call has looked at, or is to look at.
  struct seen_domain {
    token_domain<typename Exec::space> domain;
    const void* mask;
    double* bad;          // rows that do not fit, until something has counted them
    double* bad_weights;  // the same of weights
  };
  seen_domain seen_[8];
  int seen_count_ = 0;

  // Valid lengths under a mask, once found.
  struct found_lengths {
    token_domain<typename Exec::space> domain;
    index* length;
  };
  found_lengths found_[4];
  int found_count_ = 0;

 public:
  using space = typename Exec::space;

  device_run(const Exec& exec, const char* function)
      : exec_(exec),
        arena_(function, exec.scratch(), exec.scratch_bytes(), Exec::dry, exec.next_result()) {}
  device_run(const device_run&) = delete;
  device_run& operator=(const device_run&) = delete;
  ~device_run() {
    if constexpr (Exec::dry) exec_.note(arena_.most());
  }

  const char* function() const { return arena_.function(); }

  template <class X>
  X* allocate(index n) {
    return arena_.template allocate<X>(n);
  }

  template <class F>
  void for_each(index n, const F& f) {
    settle();
    launch(n, f);
  }

  /// A factor of all tokens, which kernels work out where they need it.
  row_scale scale(const quotient& q) { return {nullptr, nullptr, q}; }

  void count(const token_domain<space>& domain, double* counts, double* row_weight = nullptr) {
    examine(domain);
    settle();
    if (!weighted(domain)) {
      open_ = {domain, counts, row_weight};
      return;
    }
    weigh({domain, counts, row_weight}, keep_lengths(domain));
  }

  /// A requirement that only the data can break: pending::get() throws if *count is not 0 then.
  void refuse(const double* count, const char* argument, const char* expected) {
    if (arena_.dry()) return;
    if (refusals_ == detail::most_refusals) [[unlikely]]
      detail::fail(function(), "run", "at most 16 requirements on data", "more");
    refusal_[refusals_++] = {count, argument, expected};
  }

  template <class K>
  void map_reduce(const K& kernel, const token_arguments<K, space>& a, double* sums) {
    map_reduce(kernel, a, sums, 0, detail::nothing{});
  }

  /// ... and then after(0) ... after(afters - 1), which read the sums.
  template <class K, class After>
  void map_reduce(const K& kernel, const token_arguments<K, space>& a, double* sums, index afters,
                  const After& after) {
    using pass = detail::token_pass<K, space, After>;
    examine(a.domain);
    bool counted = false;  // needed by the pass itself
    for (int k = 0; k < K::scales; ++k)
      counted = counted || (open_.counts != nullptr && a.scale[k].uniform == nullptr &&
                            a.scale[k].where_read.counted >= open_.counts &&
                            a.scale[k].where_read.counted < open_.counts + token_counts::size);
    if (open_.counts != nullptr &&
        (counted || !pass::writes_figures || a.domain.mask || !same(open_.domain, a.domain)))
      settle();
    const index* const length = a.domain.mask ? lengths_of(a.domain) : nullptr;
    const auto mark = arena_.mark();
    const auto map = detail::unit_map<space>::over(a.domain, length);
    detail::pass_target to;
    if constexpr (pass::writes_figures) to = target(map, a.domain, sums, pass::size);
    team(map.units, pass{{a, map}, kernel, to, after, afters});
    arena_.release(mark);
  }

  template <class K>
  void map_reduce_rows(const K& kernel, const token_arguments<K, space>& a, double* to) {
    constexpr detail::figure_row row{K::sums + 1, K::ranges};
    settle();
    examine(a.domain);
    const index* const length = a.domain.mask ? lengths_of(a.domain) : nullptr;
    const auto mark = arena_.mark();
    const auto map = detail::flush_map<space>::over(a.domain, length);
    auto* const partial = allocate<double>(map.slots * row.size());
    if (a.domain.rows > 0) {
      lanes(map.slots, detail::row_sums_pass<K, space>{kernel, a, map, partial});
      index stride = 1;
      for (index n = map.longest(); n > 1; n = (n + detail::fold_width - 1) / detail::fold_width) {
        launch(map.slots * row.size(), detail::fold_flushes<space>{map, row, partial, stride});
        stride *= detail::fold_width;
      }
    }
    launch(a.domain.rows * K::sums,
           detail::gather_rows<space>{map, row.size(), K::sums, partial, to});
    arena_.release(mark);
  }

  /// Moments, and then after(0) ... after(afters - 1), which read them and the counts.
  template <class K, class After>
  void moment_reduce(const K& kernel, const token_arguments<K, space>& a, double* figures,
                     index afters, const After& after) {
    using pass = detail::moment_pass<K, space, After>;
    examine(a.domain);
    if (open_.counts != nullptr && (a.domain.mask || !same(open_.domain, a.domain))) settle();
    const index* const length = a.domain.mask ? lengths_of(a.domain) : nullptr;
    const auto mark = arena_.mark();
    const auto map = detail::unit_map<space>::over(a.domain, length);
    const detail::pass_target to = target(map, a.domain, figures, pass::size);
    team(map.units, pass{{a, map}, kernel, to, after, afters});
    arena_.release(mark);
  }

  /// map_reduce for a kernel that only writes.
  template <class K>
  void map_tokens(const K& kernel, const token_arguments<K, space>& a) {
    map_reduce(kernel, a, nullptr);
  }

  template <class K>
  void reverse_scan(const K& kernel, const scan_arguments<K, space>& a, double* figures) {
    using T = typename K::scalar_type;
    using sums = detail::scan_sums<K::outputs>;
    using pass = detail::scan_pass<K, space>;
    settle();
    examine(a.domain);
    const index rows = a.domain.rows;
    const bool masked = a.domain.mask.kind() != mask_kind::none;
    const bool skips = masked && a.holes == hole_mode::skip;
    const auto mark = arena_.mark();
    auto map = detail::scan_map<space>::over(a.domain);
    if (masked) {
      auto* const size = allocate<detail::scan_row_size>(rows);
      lanes(rows, detail::size_of_scan_rows<space>{a.domain, a.holes, size});
      map.size = size;
    }
    if (detail::scan_map<space>::plans(a.domain)) {
      using plan = detail::plan_scan<space>;
      auto* const planned = allocate<detail::scan_slot>(map.slots);
      blocks(map.groups, plan::shape, plan{map, planned});
      map.planned = planned;
    }
    auto* const partial = allocate<sums>(map.slots);
    double decay = 0;
    if constexpr (!detail::has_varying_decay<K>()) decay = kernel.decay;
    pass scan{kernel,  a, detail::decay_powers<T>(decay), map, detail::scan_plan<K>::over(skips),
              partial, {}};
    // Long rows are shared out, unless where a piece ends only a walk along the row can tell.
    if (a.domain.columns > map.piece_steps && !skips) {
      scan.board.ticket = allocate<index>(1);
      scan.board.state = allocate<int>(map.slots);
      scan.board.link = allocate<detail::scan_link>(map.slots * detail::moment_piece_tiles);
      scan.board.first_x = allocate<double>(map.slots);
      for_each(map.slots + 1, detail::scan_board::clear{scan.board.ticket, scan.board.state});
    }
    blocks(map.slots, scan.plan.shape, scan);
    using segments = detail::fold_segments<K, space>;
    using few_segments = detail::fold_few_segments<K, space>;
    using groups = detail::fold_groups<K::outputs>;
    auto* from = allocate<sums>(map.groups);
    const few_segments fold{{kernel, a}, map, partial, from};
    if (few_segments::serve(map))
      blocks(fold.jobs(), few_segments::shape, fold);
    else
      blocks(map.groups, segments::shape, segments{{kernel, a}, map, partial, from});
    for (index n = map.groups; n >= 0;) {
      const index left = (n + groups::width - 1) / groups::width;
      auto* const to = left > 1 ? allocate<sums>(left) : nullptr;
      blocks(left > 1 ? left : 1, groups::shape, groups{from, n, to, left > 1 ? nullptr : figures});
      from = to;
      n = left > 1 ? left : -1;
    }
    arena_.release(mark);
  }

  template <class K, storage L>
  void row_reduce(const K& kernel, const row_arguments<L, space>& a, double* sums) {
    constexpr detail::figure_row row{K::sums + 1, K::ranges};
    settle();
    examine(a.domain);
    const token_domain<space>& domain = a.domain;
    const index slots =
        domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
    const auto mark = arena_.mark();
    const bool all = domain.kind == arrangement::padded && domain.mask.kind() == mask_kind::none;
    index* rank = nullptr;
    index* first = nullptr;
    if (!all) {
      auto* const counts = allocate<double>(3 * domain.rows);
      first = allocate<index>(domain.rows + 1);
      rank = allocate<index>(slots);
      lanes(domain.rows, detail::count_lanes<space>{domain, counts, nullptr});
      blocks(1, detail::rank_of_rows::shape, detail::rank_of_rows{counts, domain.rows, first});
      blocks(domain.rows, detail::rank_of_tokens<space>::shape,
             detail::rank_of_tokens<space>{domain, first, slots, rank});
    }
    auto* const partial = allocate<double>(slots * row.size());
    using pass = detail::logit_pass<K, L, space>;
    using plan_of = detail::logit_plan;
    const bool gradient = a.gradient.data != nullptr;
    typename pass::tile_slope* slopes = nullptr;
    if (plan_of::slopes_apart(a.classes, gradient, pass::bytes))
      slopes = allocate<typename pass::tile_slope>(slots * detail::row_tiles(a.classes));
    if (!arena_.dry()) {
      const auto plan = plan_of::over(a.classes, slots, gradient, a.squares_wanted, a.mean_wanted,
                                      pass::bytes, detail::shared_bytes_of(exec_));
      const pass each{kernel, a, rank, slots, partial, plan, 1 / a.temperature, slopes};
      blocks(each.jobs(), plan.shape, each);
    }
    fold_to(row, partial, slots, sums, first == nullptr ? nullptr : first + domain.rows);
    arena_.release(mark);
  }

  template <class K>
  void group_reduce(const sample_groups<space>& groups, const K& kernel, double* to) {
    using pass = detail::group_pass<K>;
    settle();
    const auto mark = arena_.mark();
    const index most = groups.size > 0 ? groups.samples / groups.size : groups.samples;
    pass p{kernel,        {most, groups.size, nullptr, nullptr},
           nullptr,       (most + pass::threads - 1) / pass::threads,
           nullptr,       to,
           exec_.ticket()};
    if (p.units < 1) p.units = 1;
    p.unit_sum = allocate<double>(p.units * pass::words);
    if (groups.size == 0) {
      detail::group_scratch scratch = {};
      for (index** part : {&scratch.start, &scratch.sorted, &scratch.spare, &scratch.group_start})
        *part = allocate<index>(groups.samples + 1);
      const auto cut = detail::group_cut::over(groups.samples);
      auto* const counts = allocate<detail::run_count>(cut.units + 1);
      auto* const found = allocate<detail::found_groups>(1);
      p.found = found;
      team(cut.units, detail::count_runs<space>{groups.id, cut, counts, exec_.ticket()});
      team(cut.units,
           detail::write_runs<space>{groups.id, cut, counts, scratch, found, exec_.ticket()});
    }
    team(p.units, p);
    arena_.release(mark);
  }

  template <class R>
  result_of<Exec, R> finish(const double* figures, R (*read)(const double*)) {
    open_.row_weight = nullptr;  // no one is left to read it
    settle();
    for (int k = 0; k < seen_count_; ++k)
      if (seen_[k].bad_weights != nullptr)
        weigh({seen_[k].domain, nullptr, nullptr}, nullptr);
      else if (seen_[k].bad != nullptr)
        count_bad(seen_[k]);
    if constexpr (!Exec::dry) {
      const index count = arena_.doubles_from(figures);
      if (count < 1 || count > detail::most_figures) [[unlikely]]
        detail::fail(function(), "run", "1 to 256 figures, allocated first", count);
      double* const to = exec_.take_result();
      bool in_place = figures == to;
      detail::gather_result gather{figures, count, refusals_, {}, to};
      result_of<Exec, R> r(exec_.handle(), function(), to, count, read);
      for (int k = 0; k < refusals_; ++k) {
        gather.refused[k] = refusal_[k].count;
        in_place = in_place && refusal_[k].count == to + count + k;
        r.add_refusal(refusal_[k].argument, refusal_[k].expected);
      }
      if (!in_place) exec_.launch_team(1, gather);
      return r;
    }
  }

 private:
  template <class F>
  void launch(index n, const F& f) {
    if (!arena_.dry() && n > 0) exec_.launch(n, f);
  }
  template <class F>
  void team(index units, const F& f) {
    if (!arena_.dry()) exec_.launch_team(units, f);
  }
  template <class F>
  void lanes(index n, const F& f) {
    if (arena_.dry() || n <= 0) return;
    exec_.launch_lanes(n, detail::merged_lanes<F>{f});
  }

  template <class F>
  void blocks(index n, const detail::block_shape& shape, const F& f) {
    if (!arena_.dry()) detail::launch_blocks(exec_, n, shape, f);
  }

  /// Where a pass leaves its figures, and the counts that wait for it. `size`: of a unit's row.
  detail::pass_target target(const detail::unit_map<space>& map, const token_domain<space>& domain,
                             double* sums, index size) {
    detail::pass_target to;
    to.sums = sums;
    to.arrived = exec_.ticket();
    to.partial = allocate<double>(map.units * size);
    if (map.per_group == 0) to.rank = allocate<index>(map.units);
    if (open_.counts != nullptr) {
      to.counts = open_.counts;
      open_.counts = nullptr;
    }
    to.bad = take_bad(domain);
    return to;
  }

  static bool weighted(const token_domain<space>& domain) {
    return domain.mask.kind() == mask_kind::weight32 || domain.mask.kind() == mask_kind::weight64;
  }
  static bool same_rows(const token_domain<space>& a, const token_domain<space>& b) {
    return a.kind == b.kind && a.rows == b.rows && a.columns == b.columns &&
           a.indices.data() == b.indices.data();
  }
  static bool same(const token_domain<space>& a, const token_domain<space>& b) {
    return same_rows(a, b) && a.mask.kind() == b.mask.kind() && a.mask.data() == b.mask.data() &&
           a.mask.stride(0) == b.mask.stride(0) && a.mask.stride(1) == b.mask.stride(1);
  }

  /// Memory for the valid lengths of a domain, that later passes over it find.
  index* keep_lengths(const token_domain<space>& domain) {
    auto* const length = allocate<index>(domain.rows);
    if (found_count_ < 4) found_[found_count_++] = {domain, length};
    return length;
  }
  const index* lengths_of(const token_domain<space>& domain) {
    for (int k = 0; k < found_count_; ++k)
      if (same(found_[k].domain, domain)) return found_[k].length;
    if (!weighted(domain)) return count_flags({domain, nullptr, nullptr});
    auto* const length = keep_lengths(domain);
    weigh({domain, nullptr, nullptr}, length);
    return length;
  }

  /// The same under weights, which are looked at on the way.
  void weigh(const open_count& ask, index* length) {
    detail::weigh_pass<space> pass{ask.domain};
    pass.length = length;
    pass.counts = ask.counts;
    pass.row_weight = ask.row_weight;
    pass.bad = take_bad(ask.domain);
    for (int k = 0; k < seen_count_; ++k)
      if (seen_[k].bad_weights != nullptr && same(seen_[k].domain, ask.domain)) {
        pass.bad_weights = seen_[k].bad_weights;
        seen_[k].bad_weights = nullptr;
      }
    const auto mark = arena_.mark();
    pass.rows = allocate<double>(pass.size * (ask.domain.rows > 0 ? ask.domain.rows : 1));
    pass.arrived = exec_.ticket();
    team(pass.units(), pass);
    arena_.release(mark);
  }

  /// Counts and valid lengths of a domain without weights.
  const index* count_flags(const open_count& ask) {
    auto pass = detail::count_pass<space>::over(ask.domain);
    if (ask.domain.mask) pass.length = keep_lengths(ask.domain);
    const auto mark = arena_.mark();
    pass.partial = allocate<double>(pass.units * pass.size);
    if (pass.segments > 1) pass.found = allocate<double>(2 * ask.domain.rows * pass.segments);
    pass.counts = ask.counts;
    pass.row_weight = ask.row_weight;
    pass.bad = take_bad(ask.domain);
    pass.arrived = exec_.ticket();
    team(pass.units, pass);
    arena_.release(mark);
    return pass.length;
  }

  /// Counts what is asked for, because someone may read it.
  void settle() {
    if (open_.counts == nullptr && open_.row_weight == nullptr) return;
    const open_count ask = open_;
    open_ = {};
    count_flags(ask);
  }

  /// Where the number of bad rows of a domain is to go, if it is still open.
  double* take_bad(const token_domain<space>& domain) {
    for (int k = 0; k < seen_count_; ++k)
      if (same_rows(seen_[k].domain, domain)) {
        double* const bad = seen_[k].bad;
        seen_[k].bad = nullptr;
        if (bad != nullptr) return bad;
      }
    return nullptr;
  }
  void count_bad(const seen_domain& seen) {
    auto pass = detail::count_pass<space>::over(
        {seen.domain.rows, seen.domain.columns, seen.domain.kind, seen.domain.indices, {}});
    const auto mark = arena_.mark();
    pass.partial = allocate<double>(pass.units * pass.size);
    pass.bad = seen.bad;
    pass.arrived = exec_.ticket();
    team(pass.units, pass);
    arena_.release(mark);
  }

  /// A number of the call that is refused if it is not 0, where the result is read from if it can.
  double* refusal_count() {
    if (arena_.figures() > 0) return arena_.result() + arena_.figures() + refusals_;
    return allocate<double>(1);
  }

  /// Lengths, offsets and weights lie where the host cannot read them: counts what is wrong, once
  /// for each domain of the call. What is wrong is a row of length 0 to every primitive.
  void examine(const token_domain<space>& domain) {
    const bool given = weighted(domain) && !arena_.holds(domain.mask.data());
    if (domain.kind == arrangement::padded && !given) return;
    bool rows_seen = domain.kind == arrangement::padded, mask_seen = !given;
    for (int k = 0; k < seen_count_; ++k) {
      rows_seen = rows_seen || same_rows(seen_[k].domain, domain);
      mask_seen = mask_seen || seen_[k].mask == domain.mask.data();
    }
    if (rows_seen && mask_seen) return;
    if (seen_count_ == 8) [[unlikely]]
      detail::fail(function(), "run", "at most 8 domains", "more");
    seen_domain& now = seen_[seen_count_++];
    now = {domain, given ? domain.mask.data() : nullptr, nullptr, nullptr};
    if (!rows_seen) {
      now.bad = refusal_count();
      refuse(now.bad,
             domain.kind == arrangement::lengths ? domain.field_names().lengths
                                                 : domain.field_names().packed,
             domain.kind == arrangement::lengths
                 ? "0 <= length <= columns"
                 : "offsets that begin with 0, do not decrease and end with the number of tokens");
    }
    if (mask_seen) return;
    now.bad_weights = refusal_count();
    refuse(now.bad_weights, domain.field_names().mask, detail::weight_range);
  }

  /// The tree over n rows of figures, in rounds of 64, into `to`. Where only the device knows how
  /// many there are, n is the most there may be and *rows their number.
  void fold_to(const detail::figure_row& row, const double* x, index n, double* to,
               const index* rows = nullptr) {
    const auto mark = arena_.mark();
    index shrunk = 1;
    while (n > detail::fold_width) {
      const index blocks = (n + detail::fold_width - 1) / detail::fold_width;
      auto* const y = allocate<double>(blocks * row.size());
      launch(blocks * row.size(), detail::fold_rows{row, x, n, y, rows, shrunk});
      x = y;
      n = blocks;
      shrunk *= detail::fold_width;
    }
    launch(row.size(), detail::fold_rows{row, x, n, to, rows, shrunk});
    arena_.release(mark);
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE
