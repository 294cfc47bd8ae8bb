// Importance, and from picks to ids to rows.
#pragma once

#include <memory>
#include <numeric>

#include "fuzz.h"
#include "selection/resolve_picks.h"

namespace ocvtp::test {

template <class T>
void fuzz_attention_received(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 2), heads = random.between(1, 3);
  const int64_t queries = random.chance(30) ? 1 : random.size(140), keys = random.size(140);
  const int64_t width = random.size(40), gap = random.between(0, 2);
  const T scale = T(random.normal() * (random.chance(20) ? 10 : 0.5));
  // [B, M, H, d] seen as [B, H, M, d], rows `gap` apart.
  const int64_t row = width + gap, across = heads * row;
  auto q = random.numbers<T>(batch * queries * across - gap);
  auto k = random.numbers<T>(batch * keys * across - gap);
  run.prepare(q, k);
  const int64_t blocks = query_blocks(queries), parts = heads * blocks;
  const auto out = run.alike("attention_received divided", batch * parts, [&](const auto& divide) {
    std::vector<std::vector<T>> made{unwritten<T>(batch * parts * keys)};
    AttentionReceived<T> a{q.data(),
                           k.data(),
                           {queries * across, row, across},
                           {keys * across, row, across},
                           heads,
                           queries,
                           keys,
                           width,
                           scale,
                           nullptr,
                           made[0].data()};
    divide([&](int64_t begin, int64_t end) {
      auto scratch = unwritten<T>(attention_scratch(keys, width));
      a.scratch = scratch.data();
      kernels<T>().attention_received(a, begin, end);
    });
    return made;
  });
  const auto mean =
      run.alike("attention_mean divided", batch * token_blocks(keys), [&](const auto& divide) {
        std::vector<std::vector<T>> made{unwritten<T>(batch * keys)};
        const AttentionMean<T> a{out[0].data(), parts, keys, heads * queries, made[0].data()};
        divide([&](int64_t begin, int64_t end) { kernels<T>().attention_mean(a, begin, end); });
        return made;
      });
  if (run.spoilt) return;
  for (int64_t image = 0; image < batch; ++image) {
    std::vector<double> want(static_cast<size_t>(keys));
    double size = 8;
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t m = 0; m < queries; ++m) {
        std::vector<double> logits(static_cast<size_t>(keys));
        for (int64_t n = 0; n < keys; ++n) {
          const T* query = &q[(image * queries + m) * across + head * row];
          const T* key = &k[(image * keys + n) * across + head * row];
          double parts_of = 0;
          for (int64_t i = 0; i < width; ++i) {
            logits[n] += double(query[i]) * key[i] * scale;
            parts_of += std::abs(double(query[i]) * key[i] * scale);
          }
          size = std::max(size, parts_of);
        }
        const double most = *std::max_element(logits.begin(), logits.end());
        double total = 0;
        for (double& x : logits) total += x = std::exp(x - most);
        for (int64_t n = 0; n < keys; ++n) want[n] += logits[n] / total;
      }
    for (int64_t n = 0; n < keys; ++n) {
      const double share = want[n] / double(heads * queries);
      run.near("attention_received", mean[0][image * keys + n], share,
               16 * epsilon<T> * size * share + 8 * std::numeric_limits<T>::min());
    }
  }
}

// The rule of resolve_picks, token by token: best slots first, then the most important.
inline std::vector<int64_t> expected_ids(const ResolvePicks& a, int64_t image) {
  const double none = -std::numeric_limits<double>::infinity();
  const auto number = [&](double x) { return std::isnan(x) ? none : x; };
  std::vector<int64_t> ids;
  const auto keep = [&](int64_t id) {
    if (int64_t(ids.size()) < a.budget && std::count(ids.begin(), ids.end(), id) == 0)
      ids.push_back(id);
  };
  std::vector<std::vector<double>> order;
  for (int64_t slot = 0; slot < a.slots; ++slot)
    for (int64_t rank = 0; rank < a.top_k; ++rank)
      order.push_back({-number(a.peak[image * a.slots + slot]), double(rank),
                       double(a.picks[(image * a.slots + slot) * a.top_k + rank])});
  std::sort(order.begin(), order.end());
  for (const auto& pick : order) keep(int64_t(pick[2]));
  std::vector<std::pair<double, int64_t>> others;
  for (int64_t n = 0; n < a.tokens; ++n)
    others.emplace_back(a.importance ? -number(a.importance[image * a.tokens + n]) : 0.0, n);
  std::sort(others.begin(), others.end());
  for (const auto& other : others) keep(other.second);
  std::sort(ids.begin(), ids.end());
  return ids;
}

inline void fuzz_resolve(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 3), slots = random.size(40), tokens = random.size(140);
  const int64_t top_k = random.between(1, 3), budget = random.between(1, tokens);
  const bool with_importance = random.chance(60);
  auto peak = random.numbers<double>(batch * slots);
  auto importance = random.numbers<double>(batch * tokens);
  // Halves and whole numbers alone: many ties.
  if (random.chance(50)) {
    for (double& x : peak) x = std::round(2 * x) / 2;
    for (double& x : importance) x = std::round(2 * x) / 2;
  }
  run.prepare(peak, importance);
  std::vector<int64_t> picks(static_cast<size_t>(batch * slots * top_k));
  const int64_t most = random.chance(50) ? tokens : random.between(1, tokens);
  for (int64_t& id : picks) id = random.between(0, most - 1);
  ResolvePicks a{picks.data(), peak.data(), with_importance ? importance.data() : nullptr,
                 slots,        top_k,       tokens,
                 budget,       nullptr,     nullptr,
                 nullptr,      nullptr};
  const auto ids = run.alike("resolve_picks divided", batch, [&](const auto& divide) {
    std::vector<std::vector<int64_t>> made{std::vector<int64_t>(size_t(batch * budget), -1)};
    std::unique_ptr<bool[]> kept(new bool[size_t(batch * tokens)]);
    auto spare = unwritten<double>(with_importance ? batch * tokens : 0);
    std::vector<int64_t> order(picks.size());
    a.kept = kept.get(), a.spare = spare.data(), a.order = order.data(), a.ids = made[0].data();
    divide([&](int64_t begin, int64_t end) { resolve_picks(a, begin, end); });
    return made;
  });
  for (int64_t image = 0; image < batch; ++image) {
    const std::vector<int64_t> want = expected_ids(a, image);
    run.expect(std::equal(want.begin(), want.end(), &ids[0][image * budget]), "resolve_picks");
  }

  const int64_t size = random.size(40), row = size + random.between(0, 3);
  std::vector<char> final(static_cast<size_t>((batch * tokens - 1) * row + size));
  for (char& x : final) x = char(random.between(0, 100));
  const auto rows = run.alike("gather_rows divided", batch * budget, [&](const auto& divide) {
    std::vector<std::vector<char>> made{std::vector<char>(size_t(batch * budget * size))};
    const GatherRows gather{final.data(),  tokens * row, row,           size,
                            ids[0].data(), budget,       made[0].data()};
    divide([&](int64_t begin, int64_t end) { gather_rows(gather, begin, end); });
    return made;
  });
  for (int64_t i = 0; i < batch * budget; ++i) {
    const char* from = &final[(i / budget * tokens + ids[0][i]) * row];
    run.expect(std::equal(from, from + size, &rows[0][i * size]), "gather_rows");
  }
}

}  // namespace ocvtp::test
