// slot_argmax on the emulator, against the formula in double.
#include "competition.h"
#include "selection/slot_argmax_launch.cuh"

namespace ocvtp::test {
namespace {

struct Outputs {
  std::vector<int64> ids;
  std::vector<float> peak, evidence;
  bool operator==(const Outputs& other) const {
    return ids == other.ids && same_bits(peak, other.peak) && same_bits(evidence, other.evidence);
  }
};

template <class T>
Outputs run(const Slots<T>& c, int first_image, int images, int top_k) {
  const int rows = images * c.in.slots;
  Outputs o{std::vector<int64>(rows * top_k, -1), poison<float>(rows),
            poison<float>(images * c.in.tokens)};
  const std::size_t none = ~std::size_t{0};
  std::vector<uint64> picks(rows * ceil_div(c.in.tokens, kTokens), none), best(rows, none);
  std::vector<Standing> standings(images * c.in.tokens, Standing{NAN, NAN});
  launch_slot_argmax(Emulated{}, SlotArgmaxJob<T>{c.competition(first_image), images, top_k,
                                                  o.ids.data(), o.peak.data(), o.evidence.data(),
                                                  picks.data(), best.data(), standings.data()});
  return o;
}

// The picks have the highest scores, best first and distinct, but for what rounding may confuse.
template <class T>
void check_image(const Slots<T>& c, const Outputs& o, int image, int top_k) {
  double error = 0.0;
  const std::vector<double> scores = c.log_attention(c.logits(image, error));
  const int tokens = c.in.tokens;
  const auto slack = [&](double score) { return 2.0 * error + 0x1p-22 * std::abs(score); };
  for (int slot = 0; slot < c.in.slots; ++slot) {
    const double* const score = scores.data() + slot * tokens;
    std::vector<double> ranked(score, score + tokens);
    std::sort(ranked.rbegin(), ranked.rend());
    const int row = image * c.in.slots + slot;
    EXPECT(std::abs(o.peak[row] - ranked[0]) <= slack(ranked[0]),
           "%s K %d N %d: peak %.9g, expected %.9g", name<T>(), c.in.slots, tokens,
           static_cast<double>(o.peak[row]), ranked[0]);
    std::vector<bool> taken(tokens, false);
    for (int rank = 0; rank < top_k; ++rank) {
      const int64 id = o.ids[row * top_k + rank];
      const bool fresh = id >= 0 && id < tokens && !taken[id];
      EXPECT(fresh, "%s rank %d: id %lld", name<T>(), rank, id);
      if (!fresh) return;
      taken[id] = true;
      EXPECT(score[id] >= ranked[rank] - 2.0 * slack(ranked[rank]),
             "%s K %d N %d slot %d rank %d: token %lld scores %.9g, the best %.9g", name<T>(),
             c.in.slots, tokens, slot, rank, id, score[id], ranked[rank]);
    }
  }
  for (int token = 0; token < tokens; ++token) {
    double largest = -kInfinity;
    for (int slot = 0; slot < c.in.slots; ++slot)
      largest = std::max(largest, scores[slot * tokens + token]);
    EXPECT(std::abs(o.evidence[image * tokens + token] - largest) <= slack(largest),
           "%s K %d N %d: evidence %.9g, expected %.9g", name<T>(), c.in.slots, tokens,
           static_cast<double>(o.evidence[image * tokens + token]), largest);
  }
}

template <class T>
void check(const Sizes& sizes, int top_k) {
  const Slots<T> c(sizes);
  const Outputs together = run(c, 0, sizes.batch, top_k);
  for (int image = 0; image < sizes.batch; ++image) check_image(c, together, image, top_k);
  EXPECT(together == run(c, 0, sizes.batch, top_k), "%s: two runs differ", name<T>());
  const int last = sizes.batch - 1;
  const Outputs alone = run(c, last, 1, top_k);
  const int rows = sizes.slots * last;
  const Outputs part{{together.ids.begin() + rows * top_k, together.ids.end()},
                     {together.peak.begin() + rows, together.peak.end()},
                     {together.evidence.begin() + last * sizes.tokens, together.evidence.end()}};
  EXPECT(alone == part, "%s: an image alone differs from itself in a batch", name<T>());
}

// Every token three times: ids of equal rows come in ascending order.
template <class T>
void check_ties(int slots) {
  Slots<T> c({1, slots, 96, 24, 8, false, false, 0});
  for (int token = 32; token < 96; ++token)
    std::copy_n(c.k.x.begin() + token % 32 * c.k.row_stride, c.k.row_stride,
                c.k.x.begin() + token * c.k.row_stride);
  const Outputs o = run(c, 0, 1, 5);
  check_image(c, o, 0, 5);
  for (int slot = 0; slot < slots; ++slot) {
    const int64* const ids = o.ids.data() + slot * 5;
    EXPECT(ids[0] < 32 && ids[1] == ids[0] + 32 && ids[2] == ids[0] + 64, "%s: %lld %lld %lld",
           name<T>(), ids[0], ids[1], ids[2]);
    EXPECT(ids[3] < 32 && ids[4] == ids[3] + 32, "%s: %lld %lld", name<T>(), ids[3], ids[4]);
  }
}

// A token with a NaN wins nothing; where all have one the lowest ids do, at -inf.
template <class T>
void check_nan(int slots) {
  Slots<T> c({1, slots, 6, 24, 8, false, false, 0});
  const auto spoil = [&](int token) {
    c.k.x[token * c.k.row_stride] = from_float<T>(static_cast<float>(kNaN));
  };
  const Outputs clean = run(c, 0, 1, 1);
  const int best = static_cast<int>(clean.ids[0]);
  spoil(best);
  const Outputs o = run(c, 0, 1, 6);
  for (int slot = 0; slot < slots; ++slot)
    EXPECT(o.ids[slot * 6 + 5] == best && o.ids[slot * 6] != best, "a NaN is not last");
  EXPECT(std::isnan(o.evidence[best]), "the evidence of a NaN is a number");
  for (int token = 0; token < 6; ++token) spoil(token);
  const Outputs all = run(c, 0, 1, 2);
  for (int slot = 0; slot < slots; ++slot)
    EXPECT(all.ids[slot * 2] == 0 && all.ids[slot * 2 + 1] == 1 && all.peak[slot] == -kInfinity,
           "all NaN: %lld %lld", all.ids[slot * 2], all.ids[slot * 2 + 1]);
}

template <class T>
void check_all() {
  check<T>({1, 1, 1, 8, 8, false, false, 0}, 1);
  check<T>({2, 7, 31, 19, 8, true, false, 0}, 3);
  check<T>({1, 16, 100, 64, 8, false, false, 24}, 1);
  check<T>({2, 64, 50, 72, 8, true, false, 0}, 2);
  check<T>({1, 65, 50, 136, 8, false, false, 36}, 1);
  check<T>({1, 128, 33, 24, 8, true, false, 0}, 1);
  check<T>({2, 130, 50, 61, 8, true, false, 0}, 2);
  check<T>({1, 200, 31, 8, 8, false, false, 0}, 1);
  check_ties<T>(9);
  check_ties<T>(140);
  check_nan<T>(9);
  check_nan<T>(140);
}

// Log-attention tells winners apart whose attention rounds to 1.
void check_confident() {
  Slots<float> c({1, 4, 40, 8, 8, false, false, 0});
  std::fill(c.q.x.begin(), c.q.x.end(), 0.0f);
  for (int slot = 0; slot < 4; ++slot) c.q.x[slot * c.q.row_stride + slot] = 8.0f;
  for (int token = 0; token < 40; ++token)
    for (int i = 0; i < 8; ++i)
      c.k.x[token * c.k.row_stride + i] = i == token % 4 ? 8.0f + 0.25f * (token * 7 % 40) : 0.0f;
  const Outputs o = run(c, 0, 1, 1);
  for (int slot = 0; slot < 4; ++slot) {
    int best = slot;
    for (int token = slot; token < 40; token += 4)
      if (token * 7 % 40 > best * 7 % 40) best = token;
    EXPECT(o.ids[slot] == best && o.peak[slot] < 0.0f, "slot %d: %lld, expected %d", slot,
           o.ids[slot], best);
  }
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  ocvtp::test::check_all<float>();
  ocvtp::test::check_all<ocvtp::half>();
  ocvtp::test::check_all<ocvtp::bfloat16>();
  ocvtp::test::check_confident();
  return ocvtp::test::result("slot_argmax");
}
