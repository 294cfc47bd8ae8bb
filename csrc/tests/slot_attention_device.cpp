// slot_attention on the emulator, against the formula in double.
#include "competition.h"
#include "slots/slot_attention_launch.cuh"

namespace ocvtp::test {
namespace {

constexpr double kEps = 1e-5;
constexpr bool kWhole = true;  // blocks take all groups

// Device memory starts where WMMA can load; a vector of floats need not.
struct alignas(32) Aligned {
  float x[8];
};

template <class T>
struct Outputs {
  std::vector<T> updates, attention;
  std::vector<float> mass;
};

template <class T>
struct Case : Slots<T> {
  using Slots<T>::in;
  Padded<T> v;

  explicit Case(const Sizes& sizes)
      : Slots<T>(sizes), v(this->random, in.batch, in.tokens, in.width, in.outlier) {}

  Outputs<T> run(int first_image, int images, bool whole, bool with_attention) const {
    Outputs<T> o{poison<T>(images * in.slots * in.width), poison<T>(images * in.slots * in.tokens),
                 poison<float>(images * in.slots)};
    const SlotAttentionJob<T> job{this->competition(first_image),
                                  v.rows(first_image),
                                  images,
                                  in.width,
                                  static_cast<float>(kEps),
                                  o.updates.data(),
                                  o.mass.data(),
                                  with_attention ? o.attention.data() : nullptr};
    Cut cut = cut_of(job, 1);
    cut.whole = whole;
    const Workspace sizes = workspace_of(job, cut);
    std::vector<Aligned> partial(sizes.partial / 8);
    std::memset(static_cast<void*>(partial.data()), 0xFF, sizes.partial * sizeof(float));  // NaN
    std::vector<float> mass = poison<float>(sizes.mass);
    std::vector<Standing> standings(sizes.standings, Standing{NAN, NAN});
    launch_slot_attention(Emulated{}, job, cut, partial.data()->x, mass.data(), standings.data());
    return o;
  }

  void check_image(const Outputs<T>& o, int image) const {
    double error = 0.0;
    const std::vector<double> a = this->log_attention(this->logits(image, error));
    for (int slot = 0; slot < in.slots; ++slot) {
      const int row = image * in.slots + slot;
      double mass = 0.0;
      for (int token = 0; token < in.tokens; ++token) {
        const double share = std::exp(a[slot * in.tokens + token]);
        mass += share;
        const T got = o.attention[static_cast<std::size_t>(row) * in.tokens + token];
        EXPECT(near(got, share, share * 2.0 * error + 1e-37), "%s K %d N %d: %.9g, expected %.9g",
               name<T>(), in.slots, in.tokens, value(got), share);
      }
      EXPECT(std::abs(o.mass[row] - mass) <= mass * (2.0 * error + 0x1p-20) + 1e-30,
             "%s K %d N %d: mass %.9g, expected %.9g", name<T>(), in.slots, in.tokens,
             static_cast<double>(o.mass[row]), mass);
      // A weight is rounded to T on its way to the product; half's last step is 2^-25 / 2^14.
      const double last_step = sizeof(T) == 2 ? 0x1p-39 : 0.0;
      for (int column = 0; column < in.width; ++column) {
        double sum = 0.0, slack = 0.0;
        for (int token = 0; token < in.tokens; ++token) {
          const double share = std::exp(a[slot * in.tokens + token]);
          const double here = v.at(image, token, column);
          sum += share * here;
          slack += std::abs(here) * (share * (4.0 * error + rounding<T>() + 0x1p-20) + last_step);
        }
        const T got = o.updates[static_cast<std::size_t>(row) * in.width + column];
        EXPECT(near(got, sum / (mass + kEps), slack / (mass + kEps) + 1e-30),
               "%s K %d N %d D %d E %d slot %d channel %d: %.9g, expected %.9g", name<T>(),
               in.slots, in.tokens, in.depth, in.width, slot, column, value(got),
               sum / (mass + kEps));
      }
    }
  }
};

template <class T>
void check(const Sizes& sizes) {
  const Case<T> c(sizes);
  const Outputs<T> together = c.run(0, sizes.batch, kWhole, true);
  for (int image = 0; image < sizes.batch; ++image) c.check_image(together, image);
  // The last image alone, its groups of tokens shared among blocks.
  const int last = sizes.batch - 1;
  const Outputs<T> alone = c.run(last, 1, !kWhole, false);
  const std::size_t updates = sizes.slots * sizes.width;
  const bool same = std::memcmp(alone.updates.data(), together.updates.data() + last * updates,
                                updates * sizeof(T)) == 0 &&
                    std::memcmp(alone.mass.data(), together.mass.data() + last * sizes.slots,
                                sizes.slots * sizeof(float)) == 0;
  EXPECT(same, "%s K %d N %d: an image alone differs from itself in a batch", name<T>(),
         sizes.slots, sizes.tokens);
  EXPECT(std::isnan(value(alone.attention[0])), "%s: attention written unasked", name<T>());
}

template <class T>
void check_repeat() {
  const Case<T> c({2, 130, 50, 24, 72, true, true, 0});
  const Outputs<T> a = c.run(0, 2, !kWhole, true);
  const Outputs<T> b = c.run(0, 2, !kWhole, true);
  EXPECT(same_bits(a.updates, b.updates) && same_bits(a.mass, b.mass) &&
             same_bits(a.attention, b.attention),
         "%s: two runs differ", name<T>());
}

// A NaN among the keys spoils that token's shares, as a softmax does; one in a slot that is masked
// spoils nothing.
void check_nan() {
  Case<float> c({1, 7, 40, 24, 8, false, true, 0});
  c.mask.assign(7, 1);
  c.mask[3] = 0;
  c.q.x[3 * c.q.row_stride] = NAN;
  c.check_image(c.run(0, 1, kWhole, true), 0);
  c.k.x[5 * c.k.row_stride] = NAN;
  const Outputs<float> o = c.run(0, 1, kWhole, true);
  for (int token = 0; token < 40; ++token)
    EXPECT(std::isnan(o.attention[token]) == (token == 5), "token %d", token);
  EXPECT(std::isnan(o.mass[0]) && std::isnan(o.updates[0]), "a NaN is lost");
}

template <class T>
void check_all() {
  check<T>({1, 1, 1, 8, 8, false, false, 0});
  check<T>({2, 7, 31, 19, 70, true, true, 0});
  check<T>({1, 16, 100, 64, 24, false, true, 24});
  check<T>({2, 64, 50, 72, 64, true, false, 0});
  check<T>({1, 64, 31, 136, 264, false, false, 36});
  check<T>({1, 65, 50, 72, 72, true, true, 0});
  check<T>({2, 128, 33, 24, 136, false, false, 0});
  check<T>({1, 130, 50, 64, 24, true, true, 0});
  check<T>({2, 200, 31, 8, 72, false, false, 0});
  check<T>({1, 3, 1200, 8, 8, true, false, 0});  // groups of several tiles
  check_repeat<T>();
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  ocvtp::test::check_all<float>();
  ocvtp::test::check_all<ocvtp::half>();
  ocvtp::test::check_all<ocvtp::bfloat16>();
  ocvtp::test::check_nan();
  return ocvtp::test::result("slot_attention");
}
