// resolve_picks and resolve_gather on the emulator: ids and bytes exactly those of the rule.
#include <algorithm>
#include <array>
#include <tuple>

#include "check.h"
#include "selection/resolve_picks.cuh"

namespace ocvtp::test {
namespace {

enum class Type { half, bfloat16, single, twice };

// [images, n] scores as a tensor of one dtype holds them, and what it then holds, in double.
struct Stored {
  std::vector<unsigned char> bytes;
  std::vector<double> values;
  Scores scores;

  Stored(Type type, int images, int n, const std::function<double(int)>& at) {
    const int size = type == Type::twice ? 8 : type == Type::single ? 4 : 2;
    const int stride = n + 3;
    bytes.assign(static_cast<std::size_t>(images) * stride * size, 0xff);
    for (int image = 0; image < images; ++image)
      for (int i = 0; i < n; ++i) {
        unsigned char* to = &bytes[static_cast<std::size_t>(image * stride + i) * size];
        const double x = at(image * n + i);
        const auto single = static_cast<float>(x);
        double held = x;
        if (type == Type::half) held = put(to, from_float<half>(single));
        if (type == Type::bfloat16) held = put(to, from_float<bfloat16>(single));
        if (type == Type::single) held = put(to, single);
        if (type == Type::twice) std::memcpy(to, &x, 8);
        values.push_back(std::isnan(held) ? -kInfinity : held);
      }
    scores = {bytes.data(), stride, size,
              type == Type::half       ? 0x7c00u
              : type == Type::bfloat16 ? 0x7f80u
              : type == Type::single   ? 0x7f800000u
                                       : 0x7ff0000000000000u};
  }

  template <class T>
  static double put(unsigned char* to, T x) {
    std::memcpy(to, &x, sizeof x);
    return value(x);
  }
};

struct Problem {
  int images, num_tokens, num_slots, top_k, budget;
  std::vector<int64> picks;
  const Stored* peak;
  const Stored* importance;
};

std::vector<int64> rule(const Problem& p) {
  std::vector<int64> ids;
  for (int image = 0; image < p.images; ++image) {
    std::vector<std::tuple<double, int, int64>> order;
    for (int slot = 0; slot < p.num_slots; ++slot)
      for (int rank = 0; rank < p.top_k; ++rank)
        order.emplace_back(-p.peak->values[image * p.num_slots + slot], rank,
                           p.picks[(image * p.num_slots + slot) * p.top_k + rank]);
    std::sort(order.begin(), order.end());
    std::vector<std::pair<double, int64>> rest;
    for (int token = 0; token < p.num_tokens; ++token)
      rest.emplace_back(p.importance ? -p.importance->values[image * p.num_tokens + token] : 0.0,
                        token);
    std::sort(rest.begin(), rest.end());
    std::vector<int64> chosen;
    const auto take = [&](int64 token) {
      if (static_cast<int>(chosen.size()) < p.budget &&
          std::find(chosen.begin(), chosen.end(), token) == chosen.end())
        chosen.push_back(token);
    };
    for (const auto& pick : order) take(std::get<2>(pick));
    for (const auto& token : rest) take(token.second);
    std::sort(chosen.begin(), chosen.end());
    ids.insert(ids.end(), chosen.begin(), chosen.end());
  }
  return ids;
}

ResolveArguments arguments(const Problem& p, std::vector<int64>& ids, int parts) {
  ResolveArguments a{};
  a.picks = p.picks.data();
  a.peak = p.peak->scores;
  if (p.importance) a.importance = p.importance->scores;
  a.ids = ids.data();
  a.num_slots = p.num_slots;
  a.top_k = p.top_k;
  a.num_tokens = p.num_tokens;
  a.budget = p.budget;
  a.parts = parts;
  return a;
}

void check(const Problem& p, const char* what) {
  const std::vector<int64> expected = rule(p);
  std::vector<int64> ids(p.images * p.budget, -1);
  const ResolveArguments a = arguments(p, ids, 1);
  emulate(p.images, kResolveThreads, resolve_shared_bytes(p.num_tokens, 0),
          [&] { resolve_kernel<false>(a); });
  EXPECT(ids == expected, "%s: N %d K %d top_k %d budget %d", what, p.num_tokens, p.num_slots,
         p.top_k, p.budget);
}

// Rows of `row_bytes` bytes at a start `offset` bytes past alignment.
void check_gather(const Problem& p, int row_bytes, int unit, int parts) {
  const std::vector<int64> expected = rule(p);
  std::vector<int64> ids(p.images * p.budget, -1);
  ResolveArguments a = arguments(p, ids, parts);
  a.row_bytes = row_bytes;
  a.final_row_stride = row_bytes + unit;
  a.final_image_stride = a.final_row_stride * (p.num_tokens + 1);
  a.unit = unit;
  Random random(row_bytes);
  std::vector<uint4> storage(a.final_image_stride * p.images / 16 + 2);
  unsigned char* final = reinterpret_cast<unsigned char*>(storage.data()) + (unit < 16 ? unit : 0);
  for (int64 i = 0; i < a.final_image_stride * p.images; ++i)
    final[i] = static_cast<unsigned char>(random.next() >> 40);
  std::vector<uint4> target(p.images * p.budget * row_bytes / 16 + 2);
  a.final = final;
  a.tokens = reinterpret_cast<unsigned char*>(target.data());
  emulate(p.images * parts, kResolveThreads,
          resolve_shared_bytes(p.num_tokens, rows_per_part(p.budget, parts)),
          [&] { resolve_kernel<true>(a); });
  EXPECT(ids == expected, "gather of %d bytes", row_bytes);
  for (int row = 0; row < p.images * p.budget; ++row) {
    const int64 image = row / p.budget;
    EXPECT(std::memcmp(a.tokens + static_cast<int64>(row) * row_bytes,
                       final + image * a.final_image_stride + expected[row] * a.final_row_stride,
                       row_bytes) == 0,
           "row %d of %d bytes, unit %d, %d parts", row, row_bytes, unit, parts);
  }
}

struct Maker {
  Random random{11};

  // A slot's picks are distinct; `crowd` tokens share all of them, so that slots collide.
  Problem problem(int images, int num_tokens, int num_slots, int top_k, int budget, int crowd) {
    Problem p{images, num_tokens, num_slots, top_k, budget, {}, nullptr, nullptr};
    for (int slot = 0; slot < images * num_slots; ++slot) {
      std::vector<int64> own;
      while (static_cast<int>(own.size()) < top_k) {
        const int64 token = num_tokens - 1 - random.below(std::max(top_k, crowd));
        if (std::find(own.begin(), own.end(), token) == own.end()) own.push_back(token);
      }
      p.picks.insert(p.picks.end(), own.begin(), own.end());
    }
    return p;
  }

  double score(int kind) {
    switch (kind) {
      case 0:
        return random.normal();
      // Few values, so ties, both zeros among them; NaN and infinities.
      case 1:
        return std::array{0.0, -0.0, 1.0, -1.0, 0.5, 2.0}[random.below(6)];
      case 2:
        return std::array{kNaN, -kInfinity, kInfinity, -5e-8, 5e-8, 1.0}[random.below(6)];
      // Apart by less than a float can hold.
      case 3:
        return 1.0 + random.below(50) * 0x1p-52;
      default:
        return 0.25;
    }
  }

  void run(Problem p, Type peaks, Type importances, int kind) {
    const Stored peak(peaks, p.images, p.num_slots, [&](int) { return score(kind); });
    const Stored importance(importances, p.images, p.num_tokens, [&](int) { return score(kind); });
    p.peak = &peak;
    p.importance = &importance;
    check(p, "with importance");
    p.importance = nullptr;
    check(p, "without importance");
  }
};

void selections() {
  Maker make;
  const Type types[] = {Type::half, Type::bfloat16, Type::single, Type::twice};
  const int shapes[][5] = {{1, 1, 1, 1, 1},        {2, 1, 1, 1, 2},       {7, 3, 2, 7, 7},
                           {50, 16, 1, 8, 40},     {50, 16, 3, 20, 50},   {50, 16, 3, 50, 50},
                           {577, 64, 1, 64, 577},  {577, 64, 2, 64, 200}, {577, 40, 3, 64, 30},
                           {1100, 70, 1, 64, 1100}};
  int turn = 0;
  for (const auto& [tokens, slots, top_k, budget, crowd] : shapes)
    for (int kind = 0; kind < 5; ++kind, ++turn)
      make.run(make.problem(2, tokens, slots, top_k, budget, crowd), types[turn % 4],
               types[(turn / 4 + turn) % 4], kind);
  for (Type type : types)
    for (int kind = 0; kind < 5; ++kind)
      make.run(make.problem(1, 60, 30, 2, 20, 60), type, type, kind);
}

void large() {
  Maker make;
  make.run(make.problem(1, 16384, 640, 3, 640, 16384), Type::single, Type::single, 1);
  make.run(make.problem(1, 16384, 64, 1, 16384, 100), Type::twice, Type::half, 0);
}

void gathers() {
  Maker make;
  const Stored peak(Type::single, 2, 30, [&](int) { return make.score(0); });
  const Stored importance(Type::half, 2, 90, [&](int) { return make.score(1); });
  for (const auto& [row_bytes, unit, parts] : {std::array{2048, 16, 1},
                                               {2048, 16, 7},
                                               {4112, 16, 20},
                                               {40, 8, 3},
                                               {12, 4, 40},
                                               {1026, 2, 6},
                                               {7, 1, 2},
                                               {1, 1, 1},
                                               {16, 16, 13}}) {
    Problem p = make.problem(2, 90, 30, 1, 20, 25);
    p.peak = &peak;
    p.importance = &importance;
    check_gather(p, row_bytes, unit, parts);
  }
}

// An image resolves alike alone and among others, and run after run.
void image_alone() {
  Maker make;
  Problem p = make.problem(3, 200, 24, 2, 30, 60);
  const Stored peak(Type::single, 3, 24, [&](int) { return make.score(1); });
  p.peak = &peak;
  std::vector<int64> together(3 * 30), alone(30);
  const ResolveArguments a = arguments(p, together, 1);
  ResolveArguments last = arguments(p, alone, 1);
  last.picks += 2 * 24 * 2;
  last.peak.data = peak.bytes.data() + 2 * 27 * sizeof(float);
  emulate(3, kResolveThreads, resolve_shared_bytes(200, 0), [&] { resolve_kernel<false>(a); });
  emulate(1, kResolveThreads, resolve_shared_bytes(200, 0), [&] { resolve_kernel<false>(last); });
  EXPECT(std::equal(alone.begin(), alone.end(), together.begin() + 60), "image alone");
}

}  // namespace
}  // namespace ocvtp::test

int main() {
  using namespace ocvtp::test;
  selections();
  large();
  gathers();
  image_alone();
  return result("resolve_device");
}
