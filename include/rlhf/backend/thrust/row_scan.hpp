#pragma once

#include "rlhf/backend/host/reverse_scan.hpp"
#include "rlhf/backend/thrust/scan_map.hpp"
#include "rlhf/backend/thrust/token_pass.hpp"

// reverse_scan on a device: a block of threads takes a segment of rows, or a piece of a long one,
// in rounds of up to 1,024 time steps that it keeps in shared memory: a tile of a row, or many short
// rows. A thread has 8 steps; from block to block the arithmetic is that of the host's scan in the
// same order.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// What a tile gives to the tiles before it, but for what comes from behind it.
struct scan_link {
  double chain;  // x of its first step, from 0
  double scale;  // what x behind it is multiplied by on the way; 0 where an episode ends
  RLHF_HOST_DEVICE double through(double x) const {
    return scale > 0 ? math::fma(scale, x, chain) : chain;
  }
};

/// Blocks that work on pieces of one row tell each other how far they are: a block numbers itself,
/// so all before it have begun, publishes the links of its tiles, and looks back for the nearest
/// piece whose x is known. The sums are those of one walk along the row, whoever comes first.
struct scan_board {
  index* ticket;
  int* state;       // of each slot, see below
  scan_link* link;  // moment_piece_tiles of each slot
  double* first_x;  // x of the first step of each slot

  static constexpr int linked = 1, known = 2;

  /// Clears what must be clear; i in [0, slots].
  struct clear {
    index* ticket;
    int* state;
    RLHF_HOST_DEVICE void operator()(index i) const {
      if (i == 0)
        *ticket = 0;
      else
        state[i - 1] = 0;
    }
  };
};

/// Where a block's shared memory has what: from the kernel alone.
template <class K>
struct scan_plan {
  using T = typename K::scalar_type;
  static constexpr int threads = 128;        // blocks of 8 steps in a round
  static constexpr int pitch = threads + 4;  // neither steps nor blocks meet in one bank
  static constexpr int steps = static_cast<int>(scan_block_tokens);
  static constexpr int arrays = K::inputs > K::outputs ? K::inputs : K::outputs;
  static constexpr int most_parts = static_cast<int>(moment_group_rows);

  /// A row of a round, or a tile of a longer one.
  struct part {
    index row, begin, end;  // the last time step is before `end`, where no holes are left out
    index length;           // of the row: what lies behind is no token
    int count;              // time steps
    int first_unit;         // a unit: 8 steps, a thread
    T after;                // the shifted input behind the last step
    double carry;           // x behind it
    // Where the row begins in each tensor.
    index in[at_least_one(K::inputs)], flag[at_least_one(K::flags)], out[at_least_one(K::outputs)];
    index mask;
  };
  struct round_state {
    // The next round's begin.
    index row, tile;
    index scanned;  // where a row with holes goes on
    T after;
    double carry;
    // This round.
    index part_length;  // the longest
    int parts, units;
    bool in_tiles, fresh;
    index anchor;  // the nearest slot whose x is known
    double positions;
    double shift[at_least_one(K::outputs)];
  };

  std::size_t x = 0, flag = 0, counted = 0, head = 0, whole = 0, chain = 0, reach = 0, dead = 0,
              full = 0, owner = 0, round = 0, parts = 0, place = 0, count = 0, found = 0, sums = 0,
              ticket = 0;
  block_shape shape = {threads, 0};

  static scan_plan over(bool skips) {
    scan_plan p;
    shared_plan plan;
    p.x = plan.take(arrays * steps * pitch, sizeof(T));
    p.flag = plan.take(K::flags * steps * pitch, 1);
    p.counted = plan.take(steps * pitch, 1);
    p.head = plan.take(threads, sizeof(T));
    p.whole = plan.take(threads, sizeof(T));
    p.chain = plan.take(threads, sizeof(T));
    p.reach = plan.take(threads, sizeof(T));
    p.dead = plan.take(threads, 1);
    p.full = plan.take(threads, 1);
    p.owner = plan.take(threads, 1);
    p.round = plan.take(1, sizeof(round_state));
    p.parts = plan.take(most_parts, sizeof(part));
    p.place = plan.take(skips ? threads * steps : 0, sizeof(index));
    p.count = plan.take(threads, sizeof(int));
    p.found = plan.take(most_parts, sizeof(int));
    p.sums = plan.take(2 * threads, sizeof(double));
    p.ticket = plan.take(1, sizeof(index));
    p.shape.shared_bytes = plan.used;
    return p;
  }
};

template <class K, class Space>
struct scan_pass {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;
  using lanes = scan_lanes<V, K>;
  using plan_type = scan_plan<K>;
  using part = typename plan_type::part;
  using round_state = typename plan_type::round_state;
  static constexpr int steps = static_cast<int>(scan_block_tokens);
  static constexpr int pitch = plan_type::pitch;
  static constexpr int threads = plan_type::threads;
  static constexpr int outputs = K::outputs;
  static constexpr bool varying = has_varying_decay<K>();
  static_assert(outputs <= 4, "threads of a block are set aside for the moments of 4 outputs");

  static constexpr int most_threads = threads;
  static constexpr unsigned least_blocks = sizeof(T) == sizeof(float) ? 5 : 4;

  K kernel;
  scan_arguments<K, Space> a;
  decay_powers<T> power;
  scan_map<Space> map;
  plan_type plan;
  scan_sums<K::outputs>* partial;
  scan_board board;  // its ticket null: a row is walked by one block

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index job) const {
    index slot = job;
    if (shares_rows()) {
      auto* const ticket = block.template shared<index>(plan.ticket);
      block.each([&](int t) {
        if (t == 0) *ticket = Block::take(board.ticket);
      });
      slot = *ticket;
    }
    const scan_slot s = map.at(slot);
    // What no later piece waits for is known too: offsets that are no offsets may leave a piece of a
    // row behind a slot that is none, and it must not wait for ever.
    if (shares_rows() && s.piece + 1 >= s.pieces)
      block.each([&](int t) {
        if (t != 0) return;
        board.first_x[slot] = 0;
        Block::publish(board.state + slot, scan_board::known);
      });
    if (s.first == s.last) {
      block.each([&](int t) {
        if (t == 0) partial[slot] = {};
      });
      return;
    }
    if (!shares_rows() && s.piece != 0) return;
    pass_of<Block> pass{*this, block, slot, s};
    pass.run();
  }

 private:
  /// What a thread keeps of its block between phases: b, then x; where decays vary their products.
  struct eight {
    T x[steps];
    T c[varying ? steps : 1];
  };
  struct moments {
    double sum, square;
  };

  RLHF_HOST_DEVICE static V lane_of(T x) { return math::constant<V>(x); }
  RLHF_HOST_DEVICE static T fused(T x, T y, T z) {
    return math::first(math::fma(lane_of(x), lane_of(y), lane_of(z)));
  }
  RLHF_HOST_DEVICE static bool flagged(const lanes& t) {
    bool any = false;
    for (int k = 0; k < K::flags; ++k) any = any || t.flag[k];
    return any;
  }
  RLHF_HOST_DEVICE T of_row(const token_input<T>& x, index i) const {
    return x.data == nullptr ? x.absent : x.data[i * x.per_row + a.domain.begin(i) * x.per_begin];
  }
  RLHF_HOST_DEVICE bool shares_rows() const { return board.ticket != nullptr; }
  RLHF_HOST_DEVICE bool decays() const {
    if constexpr (varying)
      return true;
    else
      return kernel.decay > 0;
  }
  /// x of one step after its b, from the x that follows it.
  RLHF_HOST_DEVICE void advance(lanes& t, T later) const {
    bool stops = flagged(t);
    V decay = lane_of(power.one);
    if constexpr (varying) {
      decay = t.a;
      stops = stops || math::first(t.a) == T(0);
    } else {
      stops = stops || !(kernel.decay > 0);
    }
    t.x = stops ? t.b : math::fma(decay, lane_of(later), t.b);
    kernel.emit(t);
  }

  template <class Block>
  struct pass_of {
    const scan_pass& pass;
    const Block& block;
    const index slot;
    const scan_slot segment;

    const scan_arguments<K, Space>& a = pass.a;
    const bool masked = a.domain.mask.kind() != mask_kind::none;
    const bool skips = masked && a.holes == hole_mode::skip;
    const bool blanks = masked && a.holes == hole_mode::zero;
    T* const x = block.template shared<T>(pass.plan.x);
    std::uint8_t* const flag = block.template shared<std::uint8_t>(pass.plan.flag);
    std::uint8_t* const counted = block.template shared<std::uint8_t>(pass.plan.counted);
    T* const head = block.template shared<T>(pass.plan.head);
    T* const whole = block.template shared<T>(pass.plan.whole);
    T* const chain = block.template shared<T>(pass.plan.chain);
    T* const reach = block.template shared<T>(pass.plan.reach);
    std::uint8_t* const dead = block.template shared<std::uint8_t>(pass.plan.dead);
    std::uint8_t* const full = block.template shared<std::uint8_t>(pass.plan.full);
    std::uint8_t* const owner = block.template shared<std::uint8_t>(pass.plan.owner);
    round_state* const round = block.template shared<round_state>(pass.plan.round);
    part* const parts = block.template shared<part>(pass.plan.parts);
    index* const place = block.template shared<index>(pass.plan.place);
    int* const count = block.template shared<int>(pass.plan.count);
    int* const found = block.template shared<int>(pass.plan.found);
    double* const sums = block.template shared<double>(pass.plan.sums);

    typename Block::template own<eight> mine = {};
    typename Block::template own<moments> moment = {};

    RLHF_HOST_DEVICE void run() {
      double carry = 0;
      if (pass.shares_rows() && segment.pieces > 1) carry = link_up();
      begin(false, carry);
      index piece = segment.piece;
      for (;;) {
        plan_round();
        if (round->parts == 0) break;
        if (skips) find_places();
        load();
        step();
        connect(false);
        apply();
        block.each([&](int t) {  // neither writes what the other reads
          add_moments(t);
          store(t);
        });
        if (round->in_tiles && round->tile % moment_piece_tiles == 0 &&
            piece + 1 < segment.pieces && !pass.shares_rows())
          end_piece(piece++);
      }
      end_piece(piece);
    }

   private:
    RLHF_HOST_DEVICE bool is_counted(int l, int u) const {
      return !masked || skips || counted[l * pitch + u] != 0;
    }

    /// The links of this piece for those that follow, and x behind it from those before.
    RLHF_HOST_DEVICE double link_up() {
      const bool last = segment.piece + 1 == segment.pieces;
      if (!last) {
        begin(true, 0);
        for (;;) {
          plan_round();
          if (round->parts == 0) break;
          load();
          step();
          connect(true);
        }
        if (segment.piece > 0)
          block.each([&](int t) {
            if (t == 0) Block::publish(pass.board.state + slot, scan_board::linked);
          });
      }
      const double behind = segment.piece > 0
                                ? look_back()
                                : static_cast<double>(pass.of_row(a.end, segment.last - 1));
      block.each([&](int t) {
        if (t != 0 || last) return;
        double y = behind;
        for (int k = 0; k < moment_piece_tiles; ++k)
          y = pass.board.link[slot * moment_piece_tiles + k].through(y);
        pass.board.first_x[slot] = y;
        Block::publish(pass.board.state + slot, scan_board::known);
      });
      return behind;
    }

    RLHF_HOST_DEVICE double look_back() const {
      constexpr int width = 32;
      const index none = -1, row_begins = slot - segment.piece;
      block.each([&](int t) {
        if (t == 0) round->anchor = none, round->scanned = slot;
      });
      while (round->anchor == none) {
        block.each([&](int t) {
          const index at = round->scanned - 1 - t;
          if (t < width) count[t] = at >= row_begins ? Block::observe(pass.board.state + at) : 0;
        });
        block.each([&](int t) {
          if (t != 0) return;
          int k = 0;
          while (k < width && count[k] == scan_board::linked) ++k;
          if (k == width)
            round->scanned -= width;
          else if (count[k] == scan_board::known)
            round->anchor = round->scanned - 1 - k;
        });
      }
      // From there on along the row, 32 pieces at a time.
      const index anchor = round->anchor;
      auto* const link = reinterpret_cast<scan_link*>(x);
      static_assert(width * moment_piece_tiles * sizeof(scan_link) <= steps * pitch * sizeof(T));
      block.each([&](int t) {
        if (t == 0) round->carry = Block::published(pass.board.first_x + anchor);
      });
      for (index from = anchor + 1; from < slot; from += width) {
        const index left = (slot - from < width ? slot - from : width) * moment_piece_tiles;
        block.each([&](int t) {
          for (index k = t; k < left; k += threads) {
            const scan_link* const at = pass.board.link + from * moment_piece_tiles + k;
            link[k] = {Block::published(&at->chain), Block::published(&at->scale)};
          }
        });
        block.each([&](int t) {
          if (t != 0) return;
          double y = round->carry;
          for (index k = 0; k < left; ++k) y = link[k].through(y);
          round->carry = y;
        });
      }
      return round->carry;
    }

    RLHF_HOST_DEVICE void begin(bool linking, double carry) {
      block.each([&](int t) {
        moment[t] = {0, 0};
        if (t != 0) return;
        round_state r = {};
        r.fresh = !linking;
        r.row = segment.piece == 0 && !linking ? segment.first : segment.last - 1;
        r.tile = segment.piece * moment_piece_tiles;
        if (segment.piece > 0) {
          // Its moments are about the last token of the segment's first row, as in piece 0.
          const index i = segment.last - 1, end = pass.map.steps(i) - r.tile * scan_tile_tokens;
          if constexpr (K::shifted >= 0) {
            const token_input<T>& next = a.in[K::shifted];
            if (next.data == nullptr)
              r.after = next.absent;
            else if (blanks && !valid(i, end))
              r.after = T(0);
            else
              r.after = next.data[i * next.per_row + a.domain.begin(i) * next.per_begin +
                                  end * next.stride];
          }
          r.carry = carry;
          if (!linking) choose_shift(r);
        }
        *round = r;
      });
    }
    RLHF_HOST_DEVICE bool valid(index i, index j) const {
      return a.domain.mask.at(a.domain.mask_offset(i) + j * a.domain.mask_stride()) > 0;
    }
    RLHF_HOST_DEVICE bool valid(const part& p, index j) const {
      return a.domain.mask.at(p.mask + j * a.domain.mask_stride()) > 0;
    }
    /// As the segment's first piece chose it. No row here has holes that are left out.
    RLHF_HOST_DEVICE void choose_shift(round_state& r) const {
      index i = segment.first;
      while (i + 1 < segment.last && pass.map.steps(i) == 0) ++i;
      const index j = pass.map.steps(i) - 1, begin = a.domain.begin(i);
      lanes t = {};
      for (int k = 0; k < K::inputs; ++k) {
        const token_input<T>& in = a.in[k];
        t.in[k] = lane_of(in.data == nullptr
                              ? in.absent
                              : in.data[i * in.per_row + begin * in.per_begin + j * in.stride]);
      }
      for (int k = 0; k < K::flags; ++k) {
        const token_flags& f = a.flag[k];
        t.flag[k] =
            f.data != nullptr && f.data[i * f.per_row + begin * f.per_begin + j * f.stride] != 0;
      }
      if constexpr (K::shifted >= 0) t.next = lane_of(pass.of_row(a.after, i));
      pass.kernel.step(t);
      pass.advance(t, pass.of_row(a.end, i));
      for (int k = 0; k < outputs; ++k) r.shift[k] = static_cast<double>(math::first(t.out[k]));
      r.fresh = false;
    }

    /// The rows that the next round takes, or the tile.
    RLHF_HOST_DEVICE void plan_round() const {
      if (pass.map.uniform())
        plan_equal_rows();
      else
        plan_any_rows();
      const int n = round->parts;
      block.each([&](int t) {
        for (int q = t; q < n; q += threads) {
          const part& p = parts[q];
          for (int u = 0; u * steps < p.count; ++u) {
            owner[p.first_unit + u] = static_cast<std::uint8_t>(q);
            full[p.first_unit + u] = (u + 1) * steps <= p.count ? 1 : 0;
          }
        }
      });
    }
    RLHF_HOST_DEVICE void plan_equal_rows() const {
      block.each([&](int t) {
        const index row = round->row, left = segment.last - row, n = a.domain.columns;
        const auto units = static_cast<int>(n <= scan_tile_tokens ? (n + steps - 1) / steps : 0);
        index fit = plan_type::most_parts;
        if (units > 0 && threads / units < fit) fit = threads / units;
        if (left < fit) fit = left;
        const auto number = static_cast<int>(fit > 0 ? fit : 0);
        if (n > scan_tile_tokens) {
          if (t == 0) take_tile(left > 0);
          return;
        }
        if (t < number) open(t, row + t, t * units, static_cast<int>(n));
        if (t != threads - 1) return;
        round->in_tiles = false;
        round->parts = number;
        round->units = number * units;
      });
    }
    RLHF_HOST_DEVICE void plan_any_rows() const {
      constexpr int most = plan_type::most_parts;
      block.each([&](int t) {
        if (t >= most) return;
        const index i = round->row + t;
        const index n = i < segment.last ? pass.map.steps(i) : -1;
        count[t] =
            n > scan_tile_tokens ? static_cast<int>(scan_tile_tokens) + 1 : static_cast<int>(n);
      });
      block.each([&](int t) {
        if (t >= most) return;
        int units = 0, q = 0;
        for (; q < most; ++q) {
          if (count[q] < 0 || count[q] > scan_tile_tokens) break;
          const int more = (count[q] + steps - 1) / steps;
          if (units + more > threads) break;
          if (q == t) open(t, round->row + t, units, count[t]);
          units += more;
          if (q == t && t != 0) return;
        }
        // Thread 0 has seen them all; for the first that does not fit there may be a tile.
        if (t != 0) return;
        if (q == 0 && count[0] > scan_tile_tokens) {
          take_tile(true);
          return;
        }
        round->in_tiles = false;
        round->parts = q;
        round->units = units;
      });
    }
    /// A tile of the row where the round begins; one thread.
    RLHF_HOST_DEVICE void take_tile(bool there) const {
      round_state& r = *round;
      r.in_tiles = true;
      r.parts = there ? 1 : 0;
      if (!there) return;
      const index left = pass.map.steps(r.row) - r.tile * scan_tile_tokens;
      const index n = left < scan_tile_tokens ? left : scan_tile_tokens;
      open(0, r.row, 0, static_cast<int>(n));
      part& p = parts[0];
      p.end = left;
      if (r.tile > 0) {
        p.after = r.after;
        p.carry = r.carry;
      } else {
        r.scanned = p.length;
      }
      r.units = static_cast<int>((n + steps - 1) / steps);
    }
    RLHF_HOST_DEVICE void open(int q, index row, int first_unit, int n) const {
      part p = {};
      p.row = row;
      p.begin = a.domain.begin(p.row);
      p.count = n;
      p.end = p.count;
      p.length = a.domain.length(p.row);
      p.first_unit = first_unit;
      p.after = pass.of_row(a.after, p.row);
      p.carry = static_cast<double>(pass.of_row(a.end, p.row));
      for (int k = 0; k < K::inputs; ++k)
        p.in[k] = p.row * a.in[k].per_row + p.begin * a.in[k].per_begin;
      for (int k = 0; k < K::flags; ++k)
        p.flag[k] = p.row * a.flag[k].per_row + p.begin * a.flag[k].per_begin;
      for (int k = 0; k < outputs; ++k)
        p.out[k] = p.row * a.out[k].per_row + p.begin * a.out[k].per_begin;
      if (masked) p.mask = a.domain.mask_offset(p.row);
      parts[q] = p;
    }

    /// +0 where no token is, unless the output is added to.
    RLHF_HOST_DEVICE void clear(const part& p, index j) const {
      for (int k = 0; k < outputs; ++k) {
        const token_output<T>& y = a.out[k];
        if (y.data == nullptr || y.accumulate) continue;
        y.data[p.out[k] + j * y.stride] = T(0);
      }
    }

    /// Where the valid tokens of rows with holes are, from their ends; holes are cleared on the
    /// way. As many threads for each row as there are.
    RLHF_HOST_DEVICE void find_places() const {
      const int n = round->parts;
      int team = threads;
      while (team > 1 && team * n > threads) team /= 2;
      const int reach_of_team = team * steps;
      const bool in_tiles = round->in_tiles;
      block.each([&](int t) {
        for (int q = t; q < n; q += threads) found[q] = 0;
        if (t != 0) return;
        index most = 0;
        for (int q = 0; q < n; ++q) {
          const index from = in_tiles ? round->scanned : parts[q].length;
          most = from > most ? from : most;
        }
        round->part_length = most;
      });
      const index longest = round->part_length;
      for (index done = 0; done < longest; done += reach_of_team) {
        if (in_tiles && found[0] >= parts[0].count && parts[0].end > parts[0].count) break;
        block.each([&](int t) {
          const int q = t / team;
          if (q >= n) return;
          const part& p = parts[q];
          const index from = (in_tiles ? round->scanned : p.length) - done - (t % team) * steps;
          int number = 0;
          for (int b = 1; b <= steps && from - b >= 0; ++b) number += valid(p, from - b) ? 1 : 0;
          count[t] = number;
        });
        block.each([&](int t) {
          const int q = t / team;
          if (q >= n) return;
          const part& p = parts[q];
          const index from = (in_tiles ? round->scanned : p.length) - done - (t % team) * steps;
          int e = found[q];
          for (int other = t / team * team; other < t; ++other) e += count[other];
          for (int b = 1; b <= steps && from - b >= 0; ++b) {
            if (!valid(p, from - b)) {
              clear(p, from - b);
              continue;
            }
            if (e < p.count) place[p.first_unit * steps + e] = from - b;
            ++e;
          }
        });
        block.each([&](int t) {
          const int q = t / team;
          if (t % team != 0 || q >= n) return;
          int all = found[q];
          for (int other = t; other < t + team; ++other) all += count[other];
          found[q] = all;
        });
      }
      block.each([&](int t) {
        if (t == 0 && in_tiles && parts[0].count > 0) round->scanned = place[parts[0].count - 1];
      });
    }

    /// Step e of a part, from its end, in memory.
    RLHF_HOST_DEVICE index position(const part& p, int e) const {
      return skips ? place[p.first_unit * steps + e] : p.end - 1 - e;
    }

    RLHF_HOST_DEVICE void load() const {
      constexpr int ahead = 4;
      const int n = round->units * steps;
      block.each([&](int t) {
        for (int s = t; s < n; s += threads * ahead) {
          T value[ahead][static_cast<std::size_t>(at_least_one(K::inputs))];
          std::uint8_t flags[ahead][static_cast<std::size_t>(at_least_one(K::flags))];
          bool here[ahead];
          for (int h = 0; h < ahead; ++h) {
            const int at = s + h * threads;
            here[h] = false;
            for (int k = 0; k < K::inputs; ++k) value[h][k] = T(0);
            for (int k = 0; k < K::flags; ++k) flags[h][k] = 0;
            if (at >= n) continue;
            const int u = at / steps;
            const part& p = parts[owner[u]];
            const int e = at - p.first_unit * steps;
            if (e >= p.count) continue;
            const index j = position(p, e);
            here[h] = !masked || skips || valid(p, j);
            const bool blank = blanks && !here[h];
            for (int k = 0; k < K::inputs; ++k) {
              const token_input<T>& in = a.in[k];
              value[h][k] = in.data == nullptr ? in.absent
                            : blank            ? T(0)
                                               : in.data[p.in[k] + j * in.stride];
            }
            for (int k = 0; k < K::flags; ++k) {
              const token_flags& f = a.flag[k];
              flags[h][k] =
                  f.data != nullptr && !blank && f.data[p.flag[k] + j * f.stride] != 0 ? 1 : 0;
            }
          }
          for (int h = 0; h < ahead; ++h) {
            const int at = s + h * threads;
            if (at >= n) continue;
            const int to = (steps - 1 - at % steps) * pitch + at / steps;
            for (int k = 0; k < K::inputs; ++k) x[k * steps * pitch + to] = value[h][k];
            for (int k = 0; k < K::flags; ++k) flag[k * steps * pitch + to] = flags[h][k];
            if (masked && !skips) counted[to] = here[h] ? 1 : 0;
          }
        }
      });
    }

    RLHF_HOST_DEVICE void read(lanes& t, int l, int u) const {
      for (int k = 0; k < K::inputs; ++k) t.in[k] = lane_of(x[(k * steps + l) * pitch + u]);
      for (int k = 0; k < K::flags; ++k) t.flag[k] = is_flagged(k, l, u);
    }
    RLHF_HOST_DEVICE bool is_flagged(int k, int l, int u) const {
      return flag[(k * steps + l) * pitch + u] != 0;
    }
    RLHF_HOST_DEVICE bool stops_at(int l, int u) const {
      bool any = false;
      for (int k = 0; k < K::flags; ++k) any = any || is_flagged(k, l, u);
      return any;
    }

    /// b of each step, x of whole blocks as if nothing came after them.
    RLHF_HOST_DEVICE void step() {
      const int n = round->units;
      block.each([&](int t) {
        if (t >= n) return;
        eight& my = mine[t];
        const part& p = parts[owner[t]];
        const bool first = t == p.first_unit;
        if constexpr (K::shifted >= 0) {
          // Of the part's first step: what a tile before it needs.
          if (round->in_tiles && t + 1 == n)
            round->after = x[(K::shifted * steps + (n * steps - p.count)) * pitch + t];
        }
        for (int l = steps; l-- > 0;) {
          lanes now;
          read(now, l, t);
          if constexpr (K::shifted >= 0) {
            const T* const row = x + K::shifted * steps * pitch;
            now.next = lane_of(l + 1 < steps ? row[(l + 1 < steps ? l + 1 : 0) * pitch + t]
                               : first       ? p.after
                                             : row[t - 1]);
          }
          pass.kernel.step(now);
          my.x[l] = math::first(now.b);
          if constexpr (varying) my.c[l] = math::first(now.a);
          // The moments of a segment are about the outputs of its first row's last token.
          if (l + 1 == steps && first && round->fresh && earlier_are_empty(owner[t])) {
            pass.advance(now, static_cast<T>(p.carry));
            for (int k = 0; k < outputs; ++k)
              round->shift[k] = static_cast<double>(math::first(now.out[k]));
          }
        }
        if (full[t] != 0) solve(my, t);
      });
    }
    RLHF_HOST_DEVICE void solve(eight& my, int t) const {
      T* const y = my.x;
      if constexpr (varying) {
        T* const c = my.c;
        const auto combine = [&](int l, T later, T later_c) {
          y[l] = fused(c[l], c[l] == T(0) ? T(0) : later, y[l]);
          c[l] = math::first(lane_of(c[l]) * lane_of(later_c));
        };
        for (int d = 1; d <= 2; ++d)
          for (int l = 0; l < steps; ++l)
            combine(l, l % 4 + d < 4 ? y[l + d] : T(0), l % 4 + d < 4 ? c[l + d] : T(1));
        const T middle = y[4], middle_c = c[4];
        for (int l = 0; l < steps; ++l) combine(l, l < 4 ? middle : T(0), l < 4 ? middle_c : T(1));
        whole[t] = c[0];
        dead[t] = 0;
      } else if (pass.decays()) {
        bool stops = false;
        if constexpr (K::flags > 0)
          for (int l = 0; l < steps; ++l) stops = stops || stops_at(l, t);
        dead[t] = stops ? 1 : 0;
        if (stops) {
          // Behind the last end of an episode comes what does not count; `head` is right.
          T next = T(0);
          for (int l = steps; l-- > 0;)
            next = stops_at(l, t) ? y[l] : fused(pass.power.one, next, y[l]);
          head[t] = next;
          return;
        }
        for (int l = 0; l < steps; ++l)
          y[l] = fused(pass.power.one, l % 4 + 1 < 4 ? y[l + 1] : T(0), y[l]);
        for (int l = 0; l < steps; ++l)
          y[l] = fused(pass.power.two, l % 4 + 2 < 4 ? y[l + 2] : T(0), y[l]);
        const T middle = y[4];
        for (int l = 0; l < steps; ++l)
          y[l] = fused(pass.power.to_middle[l], l < 4 ? middle : T(0), y[l]);
      }
      head[t] = y[0];
    }

    /// From block to block of each part. `chain` becomes what comes from behind a block, `reach`
    /// the power of the decay that takes the carry there, `dead` whether an episode's end is
    /// between.
    RLHF_HOST_DEVICE void connect(bool linking) const {
      const int n = round->parts;
      block.each([&](int q) {
        if (q >= n) return;
        const part& p = parts[q];
        const int blocks = p.count / steps;
        const bool rest = p.count % steps != 0;
        constexpr int batch = 8;
        T from = T(0);
        [[maybe_unused]] T far = T(1);
        bool ended = false;
        for (int m = 0; m < blocks; m += batch) {
          const int size = blocks - m < batch ? blocks - m : batch;
          const int u = p.first_unit + m;
          T h[batch], to[batch], w[batch], r[batch];
          bool stops[batch], before[batch];
          for (int k = 0; k < batch; ++k) {
            const int at = k < size ? u + k : u;
            h[k] = head[at];
            if constexpr (varying) w[k] = whole[at];
            stops[k] = pass.decays() && dead[at] != 0;
          }
          for (int k = 0; k < batch; ++k) {
            if (k >= size) break;
            to[k] = from;
            before[k] = ended;
            if constexpr (varying) {
              r[k] = far;
              from = fused(w[k], w[k] == T(0) ? T(0) : from, h[k]);
              far = math::first(lane_of(far) * lane_of(w[k]));
            } else if (stops[k]) {
              from = h[k];
              ended = true;
            } else if (pass.decays()) {
              from = fused(pass.power.eight, from, h[k]);
            }
          }
          for (int k = 0; k < batch; ++k) {
            if (k >= size) break;
            chain[u + k] = to[k];
            if constexpr (varying) reach[u + k] = r[k];
            dead[u + k] = static_cast<std::uint8_t>((before[k] ? 1 : 0) + (stops[k] ? 2 : 0));
          }
        }
        if (rest) {
          chain[p.first_unit + blocks] = from;
          if constexpr (varying) reach[p.first_unit + blocks] = far;
          dead[p.first_unit + blocks] = ended ? 1 : 0;
        }
        if (!round->in_tiles) {
          if (q == 0) round->row += n;
          return;
        }
        round_state& r = *round;
        if (!rest) {
          double scale = pass.power.tile;
          if constexpr (varying) scale = static_cast<double>(far);
          if (ended) scale = 0;
          const auto x_of_first = static_cast<double>(from);
          const scan_link link{x_of_first, scale};
          if (linking)
            pass.board.link[slot * moment_piece_tiles + r.tile % moment_piece_tiles] = link;
          r.carry = link.through(p.carry);
        }
        ++r.tile;
        const bool to_piece_end = pass.shares_rows() && r.tile % moment_piece_tiles == 0;
        if (p.end <= p.count || to_piece_end) ++r.row;
      });
    }

    RLHF_HOST_DEVICE void apply() {
      const int n = round->units;
      block.each([&](int t) {
        if (t >= n) return;
        eight& my = mine[t];
        const part& p = parts[owner[t]];
        const int m = t - p.first_unit;
        const bool ended = (dead[t] & 1) != 0, stops = (dead[t] & 2) != 0;
        const T outer = ended ? T(0) : static_cast<T>(p.carry);
        T* const y = my.x;
        if (full[t] != 0) {
          if constexpr (varying) {
            const T total = fused(reach[t], reach[t] == T(0) ? T(0) : outer, chain[t]);
            for (int l = 0; l < steps; ++l)
              y[l] = fused(my.c[l], my.c[l] == T(0) ? T(0) : total, y[l]);
          } else if (pass.decays()) {
            const T total = fused(pass.power.block[m], outer, chain[t]);
            if (!stops) {
              for (int l = 0; l < steps; ++l) y[l] = fused(pass.power.to_end[l], total, y[l]);
            } else {
              T next = total;
              for (int l = steps; l-- > 0;) {
                if (!stops_at(l, t)) y[l] = fused(pass.power.one, next, y[l]);
                next = y[l];
              }
            }
          }
        } else {
          // The row begins inside this block: one by one.
          T reached = pass.power.block[m];
          if constexpr (varying) reached = reach[t];
          T later = reached > T(0) ? fused(reached, outer, chain[t]) : chain[t];
          const int begins = steps - p.count % steps;
          for (int l = steps; l-- > 0;) {
            if (l < begins) continue;
            T decay = pass.power.one;
            if constexpr (varying) decay = my.c[l];
            const bool alone = stops_at(l, t) || !pass.decays() || (varying && decay == T(0));
            if (!alone) y[l] = fused(decay, later, y[l]);
            later = y[l];
          }
        }
        for (int l = 0; l < steps; ++l) {
          lanes now;
          read(now, l, t);
          now.x = lane_of(y[l]);
          pass.kernel.emit(now);
          for (int k = 0; k < outputs; ++k)
            x[(k * steps + l) * pitch + t] = math::first(now.out[k]) + T(0);  // never −0
        }
      });
    }
    RLHF_HOST_DEVICE bool earlier_are_empty(int q) const {
      for (int k = 0; k < q; ++k)
        if (parts[k].count > 0) return false;
      return true;
    }

    /// 8 lanes for each output, and what is left beside whole blocks.
    RLHF_HOST_DEVICE void add_moments(int t) {
      const int n = round->units;
      if (t < outputs * steps) {
        const T* const y = x + t * pitch;
        const int l = t % steps;
        const double shift = round->shift[t / steps];
        double sum = moment[t].sum, square = moment[t].square;
        for (int u = 0; u < n; ++u) {
          if (full[u] == 0 || !is_counted(l, u)) continue;
          const double d = static_cast<double>(y[u]) - shift;
          sum = sum + d;
          square = math::fma(d, d, square);
        }
        moment[t] = {sum, square};
      } else if (t >= 32 && t < 32 + outputs) {
        const T* const y = x + (t - 32) * steps * pitch;
        const double shift = round->shift[t - 32];
        double sum = moment[t].sum, square = moment[t].square;
        for (int q = 0; q < round->parts; ++q) {
          const int rest = parts[q].count % steps;
          const int u = parts[q].first_unit + parts[q].count / steps;
          for (int l = steps; l-- > steps - rest;) {
            if (!is_counted(l, u)) continue;
            const double d = static_cast<double>(y[l * pitch + u]) - shift;
            sum += d;
            square = math::fma(d, d, square);
          }
        }
        moment[t] = {sum, square};
      } else if (t == 64) {
        round_state& r = *round;
        for (int q = 0; q < r.parts; ++q) {
          if (parts[q].count > 0) r.fresh = false;
          if (!masked || skips) r.positions += parts[q].count;
        }
      } else if (t >= 96 && masked && !skips) {
        int valid_here = 0;
        for (int s = t - 96; s < steps * n; s += 32) {
          const int l = s / n, u = s % n;
          const part& p = parts[owner[u]];
          const bool step_of_row = steps - 1 - l + (u - p.first_unit) * steps < p.count;
          valid_here += step_of_row && counted[l * pitch + u] != 0 ? 1 : 0;
        }
        moment[t].sum += valid_here;
      }
    }

    RLHF_HOST_DEVICE void store(int t) const {
      const int n = round->units * steps, number = round->parts;
      const bool in_tiles = round->in_tiles;
      for (int at = t; at < n; at += threads) {
        const int u = at / steps, l = steps - 1 - at % steps;
        const part& p = parts[owner[u]];
        const int e = at - p.first_unit * steps;
        if (e >= p.count) continue;
        const index j = position(p, e);
        const bool here = is_counted(l, u);
        for (int k = 0; k < outputs; ++k) {
          const token_output<T>& y = a.out[k];
          if (y.data == nullptr || (!here && y.accumulate)) continue;
          const T value = here ? x[(k * steps + l) * pitch + u] : T(0);
          T& to = y.data[p.out[k] + j * y.stride];
          to = y.accumulate ? to + value : value;
        }
      }
      // Behind the last step, and where a row has none. Holes have been cleared on the way.
      for (int q = 0; q < number; ++q) {
        const part& p = parts[q];
        if (in_tiles && p.end != pass.map.steps(p.row)) continue;
        const index slots = a.domain.slots(p.row);
        const index from = skips ? p.length : p.end;
        for (index j = from + t; j < slots; j += threads) clear(p, j);
      }
    }

    /// The moments of a piece to where they belong, and on with the next.
    RLHF_HOST_DEVICE void end_piece(index piece) {
      block.each([&](int t) {
        sums[t] = moment[t].sum;
        sums[threads + t] = moment[t].square;
        moment[t] = {0, 0};
      });
      block.each([&](int t) {
        if (t != 0) return;
        scan_sums<K::outputs> r;
        r.positions = round->positions;
        if (masked && !skips)
          for (int l = 96; l < threads; ++l) r.positions += sums[l];
        for (int k = 0; k < outputs; ++k) {
          r.shift[k] = round->shift[k];
          r.sum[k] = add_block(sums + k * steps) + sums[32 + k];
          r.square[k] = add_block(sums + threads + k * steps) + sums[threads + 32 + k];
        }
        const index to = slot + piece - segment.piece;
        if (to < pass.map.slots) pass.partial[to] = r;
        round->positions = 0;
      });
    }
    RLHF_HOST_DEVICE static double add_block(const double* from) {
      double lane[scan_block_tokens];
      for (int l = 0; l < steps; ++l) lane[l] = from[l];
      for (int half = steps / 2; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
      return lane[0];
    }
  };
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
