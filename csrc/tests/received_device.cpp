// attention_received on the emulator, against the formula in double.
#include <algorithm>

#include "check.h"
#include "importance/attention_received.cuh"

namespace ocvtp::test {
namespace {

struct Shape {
  int images, heads, queries, keys, width;
};

// [B,H,n,d] with rows apart by more than d and, where loads may be wide, by 16 bytes.
template <class T>
struct Heads {
  std::vector<T> data;
  HeadRows<T> rows;

  Heads(Random& random, int images, int heads, int n, int width, bool wide, int outlier) {
    const int step = wide ? 16 / static_cast<int>(sizeof(T)) : 1;
    const int stride = ceil_div(width, step) * step + step;
    data = random_rows<T>(random, images * heads * n, width, stride, 0.0, outlier);
    const int64 head = static_cast<int64>(n) * stride;
    rows = {data.data(), head * heads, head, stride, n, wide};
  }
  double at(int image, int head, int row, int i) const {
    return value(rows.head(image, head)[row * rows.row_stride + i]);
  }
};

// [B,N]: the mean over heads and over queries [first, last) of the softmax over keys.
template <class T>
std::vector<double> oracle(const Shape& s, const Heads<T>& q, const Heads<T>& k, double scale,
                           int first, int last) {
  std::vector<double> received(s.images * s.keys, 0.0), p(s.keys);
  for (int image = 0; image < s.images; ++image)
    for (int head = 0; head < s.heads; ++head)
      for (int query = first; query < last; ++query) {
        double top = -kInfinity, sum = 0.0;
        for (int key = 0; key < s.keys; ++key) {
          double dot = 0.0;
          for (int i = 0; i < s.width; ++i)
            dot += q.at(image, head, query, i) * k.at(image, head, key, i);
          p[key] = dot * scale;
          top = std::max(top, p[key]);
        }
        for (double& x : p) sum += (x = std::exp(x - top));
        for (int key = 0; key < s.keys; ++key)
          received[image * s.keys + key] += p[key] / sum / (s.heads * (last - first));
      }
  return received;
}

template <class T>
std::vector<float> received(const Shape& s, ReceivedArguments<T> a, int row, int images) {
  a.tiles = row < 0 ? ceil_div(s.queries, kReceivedTile) : 1;
  const int parts = s.heads * a.tiles;
  std::vector<float> partial = poison<float>(static_cast<std::size_t>(images) * parts * s.keys);
  std::vector<float> out = poison<float>(images * s.keys);
  a.partial = partial.data();
  if (row < 0) {
    emulate(images * parts, kReceivedThreads, received_shared_bytes<T>(),
            [&] { attention_received_kernel<T>(a); });
  } else {
    a.q.data += row * a.q.row_stride;
    emulate(images * parts, kSumThreads, 0, [&] { attention_row_kernel<T>(a); });
  }
  const float share = 1.0f / (s.heads * (row < 0 ? s.queries : 1));
  emulate(images * ceil_div(s.keys, kWarpSize), kSumThreads, 0,
          [&] { sum_parts_kernel<float>(partial.data(), out.data(), parts, s.keys, share); });
  return out;
}

template <class T>
void received_case(const Shape& s, bool wide, int outlier) {
  Random random(s.queries * 3 + s.keys + s.width);
  const Heads<T> q(random, s.images, s.heads, s.queries, s.width, wide, outlier);
  const Heads<T> k(random, s.images, s.heads, s.keys, s.width, wide, outlier);
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.width));
  const ReceivedArguments<T> a{
      q.rows, k.rows, nullptr, s.heads, 1, s.width, static_cast<float>(scale)};
  // A logit is a float sum of d products of about their size each; p changes by p times its error.
  const double size = outlier ? 6400.0 : 1.0;
  const double relative = 0x1p-23 * (8.0 + s.width * size * scale * 4.0);
  for (int row : {-1, 0, s.queries - 1}) {
    const int first = row < 0 ? 0 : row, last = row < 0 ? s.queries : row + 1;
    const std::vector<double> expected = oracle(s, q, k, scale, first, last);
    const std::vector<float> got = received(s, a, row, s.images);
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT(std::abs(got[i] - expected[i]) <= relative * expected[i] + 1e-30,
             "%s H %d M %d N %d d %d row %d at %zu: %.9g, expected %.9g", name<T>(), s.heads,
             s.queries, s.keys, s.width, row, i, got[i], expected[i]);
    EXPECT(same_bits(got, received(s, a, row, s.images)), "two runs differ");
    const std::vector<float> alone = received(s, a, row, 1);
    EXPECT(same_bits(alone, std::vector<float>(got.begin(), got.begin() + s.keys)),
           "an image alone differs");
  }
}

// A NaN key makes NaN all of its head's queries, as a softmax does, and no other image's.
void not_a_number() {
  const Shape s{2, 1, 3, 70, 16};
  Random random(5);
  Heads<float> q(random, 2, 1, s.queries, s.width, false, 0);
  Heads<float> k(random, 2, 1, s.keys, s.width, false, 0);
  k.data[40 * k.rows.row_stride] = static_cast<float>(kNaN);
  const ReceivedArguments<float> a{q.rows, k.rows, nullptr, 1, 1, s.width, 0.25f};
  for (int row : {-1, 2}) {
    const std::vector<float> got = received(s, a, row, s.images);
    for (int i = 0; i < s.images * s.keys; ++i)
      EXPECT(std::isnan(got[i]) == (i < s.keys), "row %d at %d: %g", row, i, got[i]);
  }
}

template <class T>
void all_of() {
  for (bool wide : {false, true}) {
    received_case<T>({2, 1, 1, 1, 8}, wide, 0);
    received_case<T>({2, 3, 5, 33, 24}, wide, 0);
    received_case<T>({1, 2, 70, 65, 64}, wide, 0);
    received_case<T>({1, 1, 64, 128, 72}, wide, 0);
    received_case<T>({1, 2, 20, 200, 256}, wide, 50);
  }
  received_case<T>({1, 1, 65, 3, 1}, false, 0);
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  using namespace ocvtp;
  test::all_of<float>();
  test::all_of<half>();
  test::all_of<bfloat16>();
  test::not_a_number();
  return test::result("received_device");
}
