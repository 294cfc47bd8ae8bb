// The greedy selections that weigh sets: facility location, matching, centrifugal expansion, and
// the merge.
#pragma once

#include "fuzz_greedy.h"

namespace ocvtp::test {

template <class T>
void fuzz_facility(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 3), tokens = random.size(100);
  const int64_t budget = random.between(1, tokens);
  const RandomRows<T> matrix(run, batch, tokens, tokens, true);
  auto saliency = random.numbers<T>(batch * tokens, 2, 3 * double(random.between(-1, 1)));
  for (T& x : saliency) x = std::round(x);
  run.prepare(saliency);
  Ids known(static_cast<size_t>(batch * tokens)), revived(known);
  const GreedyKernels<T>& greedy = *kernels<T>().greedy;
  const auto made = run.alike("facility_gains divided", batch * tokens, [&](const auto& divide) {
    auto bound = unwritten<T>(batch * tokens), covered = unwritten<T>(batch * tokens);
    auto out = with_order<T>(batch, budget);
    const FacilitySelect<T> a{matrix.rows(), saliency.data(), tokens,
                              budget,        bound.data(),    covered.data(),
                              known.data(),  revived.data(),  out[0].data()};
    divide([&](int64_t begin, int64_t end) { greedy.facility_gains(a, begin, end); });
    for (int64_t image = batch; image-- > 0;) greedy.facility_select(a, image, image + 1);
    return out;
  });
  if (run.spoilt) return;
  for (int64_t image = 0; image < batch; ++image) {
    std::vector<char> taken(static_cast<size_t>(tokens));
    std::vector<double> covered(static_cast<size_t>(tokens));
    Ids want;
    while (int64_t(want.size()) < budget) {
      std::vector<double> gains(static_cast<size_t>(tokens));
      for (int64_t n = 0; n < tokens; ++n) {
        for (int64_t i = 0; i < tokens; ++i)
          gains[n] += std::max(0.0, matrix.at(image, n, i) - covered[i]);
        gains[n] *= saliency[image * tokens + n];
      }
      want.push_back(best_of(gains, taken));
      taken[want.back()] = true;
      for (int64_t i = 0; i < tokens; ++i)
        covered[i] = std::max(covered[i], double(matrix.at(image, want.back(), i)));
    }
    run.expect(same(want, made[0], image), "facility_select");
  }
}

// Distinct ids of an image.
inline Ids some_ids(Random& random, int64_t tokens, int64_t count) {
  Ids ids(static_cast<size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  for (int64_t i = 0; i < count; ++i) std::swap(ids[i], ids[random.between(i, tokens - 1)]);
  ids.resize(static_cast<size_t>(count));
  return ids;
}

template <class T>
void fuzz_match(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 3), tokens = random.size(100);
  const int64_t places = random.between(1, tokens), budget = random.between(1, places);
  const int64_t drop = random.between(1, 12);
  const RandomRows<T> matrix(run, batch, tokens, tokens, random.chance(50));
  Ids ranked;
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t id : some_ids(random, tokens, places)) ranked.push_back(id);
  const auto made = run.alike("match_select divided", batch, [&](const auto& divide) {
    auto mask = unwritten<T>(batch * tokens), likeness = unwritten<T>(batch * places);
    Ids list(ranked.size()), next(ranked.size()), sorted(ranked.size());
    auto out = with_order<T>(batch, budget);
    const MatchSelect<T> a{matrix.rows(), ranked.data(), tokens,        places,
                           budget,        drop,          mask.data(),   likeness.data(),
                           list.data(),   next.data(),   sorted.data(), out[0].data()};
    divide([&](int64_t begin, int64_t end) { kernels<T>().greedy->match_select(a, begin, end); });
    return out;
  });
  for (int64_t image = 0; image < batch; ++image) {
    Ids list(ranked.begin() + image * places, ranked.begin() + (image + 1) * places);
    while (int64_t(list.size()) > budget) {
      std::vector<std::pair<T, int64_t>> first;
      Ids second;
      for (size_t i = 1; i < list.size(); i += 2) second.push_back(list[i]);
      for (size_t i = 0; i < list.size(); i += 2) {
        T likeness = -std::numeric_limits<T>::infinity();
        for (int64_t id : second)
          likeness = std::max(likeness, number(matrix.at(image, list[i], id)));
        first.emplace_back(likeness, list[i]);
      }
      std::stable_sort(first.begin(), first.end(),
                       [](const auto& x, const auto& y) { return x.first > y.first; });
      const size_t many = list.size() - size_t(budget);
      const size_t gone = std::min({size_t(drop), many, first.size()});
      list.clear();
      for (size_t i = gone; i < first.size(); ++i) list.push_back(first[i].second);
      list.insert(list.end(), second.begin(), second.end());
    }
    run.expect(same(list, made[0], image), "match_select");
  }
}

// What a token's nearest picks say of it, found anew from the picks so far.
template <class T>
struct Standing {
  T closeness = -std::numeric_limits<T>::infinity(), redundancy = 0;
  int64_t owner = 0;
};

template <class T>
Standing<T> standing(const RandomRows<T>& matrix, int64_t image, const CentrifugalSelect<T>& a,
                     const Ids& order, int64_t token) {
  Standing<T> now;
  int64_t nearest = 2 * matrix.tokens * matrix.tokens;
  for (int64_t place = 0; place < int64_t(order.size()); ++place) {
    const T x = number(matrix.at(image, order[place], token));
    if (x > now.closeness) now.closeness = x, now.owner = place;
    const int64_t down = token / a.width - order[place] / a.width;
    const int64_t across = token % a.width - order[place] % a.width;
    nearest = std::min(nearest, down * down + across * across);
  }
  // Each operation rounds on its own.
  const volatile T distance =
      std::sqrt(T(nearest)) / T(std::hypot(double(a.height), double(a.width)));
  const volatile T spread = T(a.spread) * distance;
  const volatile T factor = T(1) + spread;
  now.redundancy = now.closeness * factor;
  return now;
}

template <class T>
void fuzz_centrifugal(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 2), height = random.between(1, 9);
  const int64_t grid_width = random.between(1, 9), tokens = height * grid_width;
  const int64_t budget = random.between(1, tokens), num_pivots = random.between(1, tokens);
  RandomRows<T> matrix(run, batch, tokens, tokens, random.chance(30));
  // The cosines of a token that is NaN are.
  if (random.chance(40))
    for (int64_t image = 0; image < batch; ++image)
      for (int64_t id : some_ids(random, tokens, random.between(1, std::min<int64_t>(tokens, 5))))
        for (int64_t n = 0; n < tokens; ++n)
          for (int64_t at : {id * matrix.stride + n, n * matrix.stride + id})
            matrix.numbers[size_t(image * tokens * matrix.stride + at)] =
                std::numeric_limits<T>::quiet_NaN();
  const auto is_nan = [&](int64_t image, int64_t n) { return std::isnan(matrix.at(image, n, n)); };
  Ids pivots;
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t id : some_ids(random, tokens, num_pivots)) pivots.push_back(id);
  CentrifugalSelect<T> a{};
  a.similarity = matrix.rows(), a.pivots = pivots.data(), a.num_pivots = num_pivots;
  a.height = height, a.width = grid_width, a.budget = budget;
  a.spread = random.chance(20) ? 0 : 0.5, a.threshold = 2 * random.normal();
  a.step = random.chance(20) ? 0 : 0.2,
  a.chunk = random.between(1, random.chance(50) ? tokens : std::min<int64_t>(tokens, 9));
  a.pad = random.chance(50);
  std::vector<T> closeness;
  const auto made = run.alike("centrifugal_select divided", batch, [&](const auto& divide) {
    auto place = unwritten<T>(batch * tokens), merit = unwritten<T>(batch * tokens);
    closeness = unwritten<T>(batch * tokens);
    Ids nearest(place.size()), ranking(place.size()), accepted(place.size());
    std::unique_ptr<bool[]> taken(new bool[place.size()]);
    std::vector<Ids> out{Ids(size_t(batch * budget)), Ids(size_t(batch)), Ids(place.size())};
    a.place = place.data(), a.merit = merit.data(), a.nearest = nearest.data();
    a.ranking = ranking.data(), a.accepted = accepted.data(), a.taken = taken.get();
    a.order = out[0].data(), a.count = out[1].data(), a.owner = out[2].data();
    a.closeness = closeness.data();
    divide([&](int64_t begin, int64_t end) {
      kernels<T>().greedy->centrifugal_select(a, begin, end);
    });
    return out;
  });
  for (int64_t image = 0; image < batch; ++image) {
    Ids order(pivots.begin() + image * num_pivots,
              pivots.begin() + image * num_pivots + std::min(num_pivots, budget));
    const auto merit_of = [&](int64_t token) {
      return T(1) - standing(matrix, image, a, order, token).redundancy;
    };
    const auto ranked = [&] {
      std::vector<std::pair<T, int64_t>> left;
      for (int64_t n = 0; n < tokens; ++n)
        if (std::count(order.begin(), order.end(), n) == 0 && !is_nan(image, n))
          left.emplace_back(number(merit_of(n)), n);
      std::stable_sort(left.begin(), left.end(),
                       [](const auto& x, const auto& y) { return x.first > y.first; });
      return left;
    };
    double limit = a.threshold;
    for (size_t before = ~size_t{0}; before != order.size() && int64_t(order.size()) < budget;
         limit += a.step) {
      before = order.size();
      const auto ranking = ranked();
      for (size_t start = 0; start < ranking.size() && int64_t(order.size()) < budget;
           start += size_t(a.chunk)) {
        if (start == size_t(a.chunk) && order.size() == before) break;
        std::vector<std::pair<T, size_t>> accepted;
        for (size_t i = start; i < std::min(start + size_t(a.chunk), ranking.size()); ++i) {
          const T redundancy = standing(matrix, image, a, order, ranking[i].second).redundancy;
          if (redundancy < T(limit)) accepted.emplace_back(redundancy - T(1), i);
        }
        std::stable_sort(accepted.begin(), accepted.end(),
                         [](const auto& x, const auto& y) { return x.first < y.first; });
        accepted.resize(std::min(accepted.size(), size_t(budget) - order.size()));
        std::sort(accepted.begin(), accepted.end(),
                  [](const auto& x, const auto& y) { return x.second < y.second; });
        for (const auto& one : accepted) order.push_back(ranking[one.second].second);
      }
    }
    run.expect(made[1][image] == int64_t(order.size()), "centrifugal_select: count");
    if (a.pad) {
      for (const auto& one : ranked())
        if (int64_t(order.size()) < budget) order.push_back(one.second);
      for (int64_t n = 0; n < tokens; ++n)
        if (int64_t(order.size()) < budget && std::count(order.begin(), order.end(), n) == 0)
          order.push_back(n);
    }
    for (int64_t n = 0; n < tokens; ++n) {
      const bool alone = is_nan(image, n) || std::count(order.begin(), order.end(), n) > 0;
      const Standing<T> now = standing(matrix, image, a, order, n);
      run.expect(made[2][image * tokens + n] == (alone ? -1 : now.owner),
                 "centrifugal_select: owner");
      run.expect(closeness[image * tokens + n] == (alone ? T(0) : now.closeness),
                 "centrifugal_select: closeness");
    }
    order.resize(size_t(budget), -1);
    run.expect(same(order, made[0], image), "centrifugal_select: order");
  }
}

template <class T>
void fuzz_merge(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 3), tokens = random.size(70), width = random.size(140);
  const int64_t owners = random.size(40);
  const RandomRows<T> x(run, batch, tokens, width, true);
  auto weight = random.numbers<T>(batch * tokens, 3);
  for (T& w : weight) w = std::round(w);
  run.prepare(weight);
  Ids owner(static_cast<size_t>(batch * tokens));
  // Past both ends there is no owner.
  for (int64_t& id : owner) id = random.between(-2, owners);
  const auto made = run.alike("scatter_merge divided", batch * owners, [&](const auto& divide) {
    std::vector<std::vector<T>> out{unwritten<T>(batch * owners * width),
                                    unwritten<T>(batch * owners)};
    Ids starts(static_cast<size_t>(batch * (owners + 1))), members(owner.size());
    const ScatterMerge<T> a{x.rows(), weight.data(), owner.data(),   tokens,        width,
                            owners,   starts.data(), members.data(), out[0].data(), out[1].data()};
    for (int64_t image = batch; image-- > 0;) kernels<T>().merge_lists(a, image, image + 1);
    divide([&](int64_t begin, int64_t end) { kernels<T>().merge_sums(a, begin, end); });
    return out;
  });
  if (run.spoilt) return;
  for (int64_t row = 0; row < batch * owners; ++row) {
    std::vector<Real> sums(static_cast<size_t>(width + 1));
    for (int64_t n = 0; n < tokens; ++n) {
      const int64_t token = row / owners * tokens + n;
      if (owner[token] != row % owners) continue;
      for (int64_t i = 0; i < width; ++i) sums[i] += Real(weight[token]) * x.at(row / owners, n, i);
      sums[width] += weight[token];
    }
    for (int64_t i = 0; i < width; ++i)
      run.near("scatter_merge: sums", made[0][row * width + i], sums[i], 0);
    run.near("scatter_merge: mass", made[1][row], sums[width], 0);
  }
}

}  // namespace ocvtp::test
