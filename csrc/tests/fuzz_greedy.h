// The greedy selections. Comparisons alone decide most of them, so their oracles hold for NaN too;
// what is summed is whole numbers, whose sums do not round.
#pragma once

#include <memory>
#include <numeric>

#include "fuzz.h"

namespace ocvtp::test {

using Ids = std::vector<int64_t>;

// Random rows of images, some apart from each other.
template <class T>
struct RandomRows {
  int64_t batch, tokens, width, stride;
  std::vector<T> numbers;

  RandomRows(Run& run, int64_t batch, int64_t tokens, int64_t width, bool whole)
      : batch(batch), tokens(tokens), width(width), stride(width + run.random.between(0, 3)) {
    numbers = run.random.numbers<T>((batch * tokens - 1) * stride + width, whole ? 2 : 1);
    if (whole)
      for (T& x : numbers) x = std::round(x);
    run.prepare(numbers);
  }

  Rows<T> rows() const { return {numbers.data(), tokens * stride, stride}; }
  T at(int64_t image, int64_t row, int64_t column) const {
    return numbers[size_t((image * tokens + row) * stride + column)];
  }
};

template <class T>
T number(T x) {
  return x == x ? x : -std::numeric_limits<T>::infinity();
}

// The first place of the highest score among those not taken.
template <class T>
int64_t best_of(const std::vector<T>& scores, const std::vector<char>& taken) {
  int64_t best = -1;
  for (int64_t n = 0; n < int64_t(scores.size()); ++n)
    if (!taken[n] && (best < 0 || number(scores[n]) > number(scores[best]))) best = n;
  return best;
}

template <class T>
std::vector<Ids> with_order(int64_t batch, int64_t budget) {
  return {Ids(size_t(batch * budget), -7)};
}

inline bool same(const Ids& want, const Ids& got, int64_t image) {
  return std::equal(want.begin(), want.end(), got.begin() + image * int64_t(want.size()));
}

template <class T>
void fuzz_farthest(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 3), tokens = random.size(140);
  const int64_t budget = random.between(1, tokens);
  const bool with_first = random.chance(40), distinct = random.chance(60);
  const RandomRows<T> matrix(run, batch, tokens, tokens, random.chance(50));
  Ids first(static_cast<size_t>(batch));
  for (int64_t& id : first) id = random.between(0, tokens - 1);
  auto running = unwritten<T>(batch * tokens);
  Ids order(static_cast<size_t>(batch * budget));
  const FarthestSelect<T> a{
      matrix.rows(), with_first ? first.data() : nullptr, tokens, budget, distinct, running.data(),
      order.data()};
  const GreedyKernels<T>& greedy = *kernels<T>().greedy;
  const auto made = run.alike("farthest_select divided", batch, [&](const auto& divide) {
    greedy.farthest_nearest(a, 0, batch * token_blocks(tokens));
    divide([&](int64_t begin, int64_t end) { greedy.farthest_select(a, begin, end); });
    return std::vector<Ids>{order};
  });
  run.alike("farthest_nearest divided", batch * token_blocks(tokens), [&](const auto& divide) {
    divide([&](int64_t begin, int64_t end) { greedy.farthest_nearest(a, begin, end); });
    return std::vector<std::vector<T>>{running};
  });
  for (int64_t image = 0; image < batch; ++image) {
    std::vector<char> taken(static_cast<size_t>(tokens));
    std::vector<T> scores(static_cast<size_t>(tokens));
    for (int64_t column = 0; column < tokens; ++column) {
      std::vector<T> others;
      for (int64_t row = 0; row < tokens; ++row)
        others.push_back(number(matrix.at(image, row, column)));
      std::sort(others.begin(), others.end());
      scores[column] = others[size_t(std::min<int64_t>(1, tokens - 1))];
    }
    Ids want{with_first ? first[image] : best_of(scores, taken)};
    std::fill(scores.begin(), scores.end(), std::numeric_limits<T>::infinity());
    while (int64_t(want.size()) < budget) {
      for (int64_t n = 0; n < tokens; ++n)
        scores[n] = std::min(scores[n], number(matrix.at(image, want.back(), n)));
      taken[want.back()] = distinct;
      want.push_back(best_of(scores, taken));
    }
    run.expect(same(want, made[0], image), "farthest_select");
  }
}

template <class T>
void fuzz_pivot(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 3), tokens = random.size(70), width = random.size(140);
  const int64_t budget = random.between(1, tokens);
  const RandomRows<T> points(run, batch, tokens, width, true);
  const GreedyKernels<T>& greedy = *kernels<T>().greedy;
  const auto made = run.alike("pivot_select divided", batch * tokens, [&](const auto& divide) {
    auto running = unwritten<T>(batch * tokens);
    auto out = with_order<T>(batch, budget);
    PivotSelect<T> a{points.rows(), tokens, width, budget, 0, running.data(), out[0].data()};
    divide([&](int64_t begin, int64_t end) { greedy.pivot_norms(a, begin, end); });
    for (; a.step < budget; ++a.step) {
      greedy.pivot_pick(a, 0, batch);
      divide([&](int64_t begin, int64_t end) { greedy.pivot_distances(a, begin, end); });
    }
    return out;
  });
  if (run.spoilt) return;
  for (int64_t image = 0; image < batch; ++image) {
    std::vector<char> taken(static_cast<size_t>(tokens));
    std::vector<double> scores(static_cast<size_t>(tokens));
    for (int64_t n = 0; n < tokens; ++n)
      for (int64_t i = 0; i < width; ++i) scores[n] += std::abs(points.at(image, n, i));
    Ids want{best_of(scores, taken)};
    std::fill(scores.begin(), scores.end(), std::numeric_limits<double>::infinity());
    while (int64_t(want.size()) < budget) {
      for (int64_t n = 0; n < tokens; ++n) {
        double square = 0;
        for (int64_t i = 0; i < width; ++i)
          square += std::pow(points.at(image, n, i) - points.at(image, want.back(), i), 2);
        scores[n] = std::min(scores[n], square);
      }
      taken[want.back()] = true;
      want.push_back(best_of(scores, taken));
    }
    run.expect(same(want, made[0], image), "pivot_select");
  }
}

// Every pick has, as nearly as T can tell, the largest variance that the picks before it leave.
template <class T>
void fuzz_dpp(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 2), tokens = random.size(70);
  const int64_t budget = random.between(1, tokens);
  // Diagonally dominant, and symmetric where it is judged.
  RandomRows<T> matrix(run, batch, tokens, tokens, false);
  if (!run.spoilt)
    for (int64_t row = 0; row < batch * tokens; ++row)
      for (int64_t column = 0; column < tokens; ++column) {
        T& x = matrix.numbers[size_t(row * matrix.stride + column)];
        const int64_t twin = (row / tokens * tokens + column) * matrix.stride + row % tokens;
        x = row % tokens == column  ? T(1 + std::abs(x) / 8)
            : row % tokens < column ? T(std::tanh(x) / T(tokens))
                                    : matrix.numbers[size_t(twin)];
      }
  auto quality = random.numbers<T>(batch * tokens, 0.2, 1);
  run.prepare(quality);
  const GreedyKernels<T>& greedy = *kernels<T>().greedy;
  const int64_t blocks = batch * token_blocks(tokens);
  const auto made = run.alike("dpp_select divided", blocks, [&](const auto& divide) {
    auto left = unwritten<T>(batch * tokens), own = unwritten<T>(batch * budget);
    auto components = unwritten<T>(batch * budget * whole_vectors(tokens));
    auto least = unwritten<T>(batch), root = unwritten<T>(batch);
    auto out = with_order<T>(batch, budget);
    DppSelect<T> a{matrix.rows(), quality.data(),    tokens,     budget,       0,
                   left.data(),   components.data(), own.data(), least.data(), root.data(),
                   out[0].data()};
    for (; a.step < budget; ++a.step) {
      greedy.dpp_pick(a, 0, batch);
      divide([&](int64_t begin, int64_t end) { greedy.dpp_explain(a, begin, end); });
    }
    return out;
  });
  for (int64_t image = 0; image < batch; ++image) {
    const int64_t* order = &made[0][size_t(image * budget)];
    std::vector<char> taken(static_cast<size_t>(tokens));
    std::vector<std::vector<double>> components;
    std::vector<double> left(static_cast<size_t>(tokens));
    const auto kernel = [&](int64_t i, int64_t j) {
      return double(quality[image * tokens + i]) * matrix.at(image, i, j) *
             quality[image * tokens + j];
    };
    for (int64_t n = 0; n < tokens; ++n) left[n] = kernel(n, n);
    for (int64_t step = 0; step < budget; ++step) {
      const int64_t pick = order[step];
      run.expect(pick >= 0 && pick < tokens && !taken[pick], "dpp_select: distinct ids");
      if (run.failures) return;
      const double best = left[best_of(left, taken)];
      run.near("dpp_select", left[pick], best, 64 * double(tokens) * epsilon<T> * (1 + best));
      taken[pick] = true;
      std::vector<double> explained(static_cast<size_t>(tokens));
      for (int64_t n = 0; n < tokens; ++n) {
        double rest = kernel(pick, n);
        for (const auto& component : components) rest -= component[pick] * component[n];
        explained[n] = rest / std::sqrt(left[pick]);
      }
      for (int64_t n = 0; n < tokens; ++n) left[n] -= explained[n] * explained[n];
      components.push_back(explained);
    }
  }
}

// Of whole numbers, whose sums do not round: the mean and the last division alone do.
template <class T>
void fuzz_variance(Run& run) {
  Random& random = run.random;
  const int64_t batch = random.between(1, 3), tokens = random.between(2, 70);
  const int64_t width = random.between(1, 600);
  const RandomRows<T> x(run, batch, tokens, width, true);
  const int64_t parts = batch * channel_blocks(width);
  const auto made = run.alike("channel_variance divided", parts, [&](const auto& divide) {
    std::vector<std::vector<T>> out{unwritten<T>(batch * width)};
    const ChannelVariance<T> a{x.rows(), tokens, width, out[0].data()};
    divide(
        [&](int64_t begin, int64_t end) { kernels<T>().greedy->channel_variance(a, begin, end); });
    return out;
  });
  if (run.spoilt) return;
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t c = 0; c < width; ++c) {
      Real sum = 0, squares = 0;
      for (int64_t n = 0; n < tokens; ++n) {
        sum += x.at(image, n, c);
        squares += Real(x.at(image, n, c)) * x.at(image, n, c);
      }
      const Real want = (squares - sum * sum / Real(tokens)) / Real(tokens - 1);
      run.near("channel_variance", made[0][image * width + c], want,
               Real(tokens) * std::numeric_limits<T>::epsilon() * (want + 1));
    }
}

}  // namespace ocvtp::test
