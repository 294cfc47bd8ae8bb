// The kernels of maps of slots or queries by tokens: slots, selection and importance.
#pragma once

#include <memory>
#include <numeric>
#include <set>

#include "fuzz.h"

namespace ocvtp::test {

struct Shape {
  int64_t batch, slots, tokens;
  int64_t size() const { return batch * slots * tokens; }
  int64_t at(int64_t image, int64_t slot, int64_t token) const {
    return (image * slots + slot) * tokens + token;
  }
};

inline Shape any_shape(Random& random) {
  return {random.between(1, 3), random.size(40), random.size(140)};
}

template <class T>
void fuzz_slot_softmax(Run& run) {
  Random& random = run.random;
  const Shape shape = any_shape(random);
  const auto& [batch, slots, tokens] = shape;
  const bool with_constant = random.chance(50), with_mask = random.chance(50);
  const T scale = T(random.normal());
  auto x = random.numbers<T>(shape.size(), random.chance(20) ? 50 : 3);
  auto constant = random.numbers<T>(batch * slots);
  run.prepare(x, constant);
  std::unique_ptr<bool[]> mask(new bool[static_cast<size_t>(batch * slots)]);
  for (int64_t i = 0; i < batch * slots; ++i) mask[i] = i % slots == 0 || random.chance(70);
  const auto out =
      run.alike("slot_softmax divided", batch * token_blocks(tokens), [&](const auto& divide) {
        std::vector<std::vector<T>> made{x};
        const SlotSoftmax<T> a{made[0].data(),
                               with_constant ? constant.data() : nullptr,
                               with_mask ? mask.get() : nullptr,
                               slots,
                               tokens,
                               scale};
        divide([&](int64_t begin, int64_t end) { kernels<T>().slot_softmax(a, begin, end); });
        return made;
      });
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t n = 0; n < tokens; ++n) {
      std::vector<Real> logits;
      Real most = -std::numeric_limits<Real>::infinity(), total = 0, size = 1;
      for (int64_t k = 0; k < slots; ++k) {
        const Real shift = with_constant ? constant[image * slots + k] : 0;
        const bool live = !with_mask || mask[image * slots + k];
        const Real logit = Real(x[shape.at(image, k, n)]) * scale + shift;
        logits.push_back(live ? logit : -std::numeric_limits<Real>::infinity());
        most = std::max(most, logits.back());
        size = std::max(size, std::abs(logit) + std::abs(shift));
      }
      for (Real& logit : logits) total += logit = std::exp(logit - most);
      for (int64_t k = 0; k < slots; ++k)
        run.near(
            "slot_softmax", out[0][shape.at(image, k, n)], logits[k] / total,
            8 * epsilon<T> * (size + 4) * logits[k] / total + std::numeric_limits<T>::min() * 8);
    }
}

template <class T>
void fuzz_slot_softmax_backward(Run& run) {
  Random& random = run.random;
  const Shape shape = any_shape(random);
  const auto& [batch, slots, tokens] = shape;
  const bool with_given = random.chance(50);
  const T scale = T(random.normal());
  auto attention = random.numbers<T>(shape.size()), given = random.numbers<T>(shape.size());
  auto grad = random.numbers<T>(shape.size());
  auto delta = random.numbers<T>(batch * slots), mass = random.numbers<T>(batch * slots);
  run.prepare(attention, given, grad, delta, mass);
  const auto out = run.alike(
      "slot_softmax_backward divided", batch * token_blocks(tokens), [&](const auto& divide) {
        std::vector<std::vector<T>> made{grad};
        const SlotSoftmaxBackward<T> a{attention.data(),
                                       delta.data(),
                                       mass.data(),
                                       with_given ? given.data() : nullptr,
                                       slots,
                                       tokens,
                                       scale,
                                       made[0].data()};
        divide([&](int64_t b, int64_t e) { kernels<T>().slot_softmax_backward(a, b, e); });
        return made;
      });
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t n = 0; n < tokens; ++n) {
      std::vector<Real> whole;
      Real shared = 0, size = 0;
      for (int64_t k = 0; k < slots; ++k) {
        const int64_t at = shape.at(image, k, n), slot = image * slots + k;
        whole.push_back(Real(grad[at]) - delta[slot] + mass[slot] + (with_given ? given[at] : 0));
        shared += attention[at] * whole[k];
        const Real parts =
            std::abs(grad[at]) + std::abs(delta[slot]) + std::abs(mass[slot]) + std::abs(given[at]);
        size += (1 + std::abs(attention[at])) * parts;
      }
      for (int64_t k = 0; k < slots; ++k) {
        const Real factor = Real(scale) * attention[shape.at(image, k, n)];
        run.near("slot_softmax_backward", out[0][shape.at(image, k, n)],
                 factor * (whole[k] - shared), 16 * epsilon<T> * size * std::abs(factor));
      }
    }
}

// scores[k] of a token's logits, as ocvtp_kernels/slots/reference.py::log_attention.
inline std::vector<Real> log_attention(const std::vector<Real>& logits) {
  const auto leader = std::max_element(logits.begin(), logits.end());
  Real others = 0;
  for (auto x = logits.begin(); x != logits.end(); ++x)
    if (x != leader) others += std::exp(*x - *leader);
  std::vector<Real> scores;
  for (const Real x : logits) scores.push_back(x - *leader - std::log1p(others));
  return scores;
}

template <class T>
void fuzz_slot_argmax(Run& run) {
  Random& random = run.random;
  const Shape shape = any_shape(random);
  const auto& [batch, slots, tokens] = shape;
  const int64_t top_k = random.chance(60) ? 1 : random.between(1, std::min<int64_t>(tokens, 4));
  const bool with_constant = random.chance(50), with_evidence = random.chance(50);
  const T scale = T(random.normal());
  auto x = random.numbers<T>(shape.size(), 2), constant = random.numbers<T>(batch * slots);
  run.prepare(x, constant);
  // Some tokens are copies of earlier ones: an earlier one must win.
  std::vector<int64_t> original(static_cast<size_t>(tokens));
  std::iota(original.begin(), original.end(), 0);
  for (int64_t n = 1; n < tokens; ++n) {
    if (!random.chance(40)) continue;
    original[n] = original[random.between(0, n - 1)];
    for (int64_t row = 0; row < batch * slots; ++row)
      x[row * tokens + n] = x[row * tokens + original[n]];
  }
  std::vector<int64_t> picks;
  const auto made = [&](const auto& divide_blocks, const auto& divide_rows) {
    std::vector<std::vector<T>> out{unwritten<T>(batch * slots),
                                    unwritten<T>(with_evidence ? batch * tokens : 0)};
    auto dots = x, top = unwritten<T>(batch * tokens), rest = top;
    auto best = unwritten<T>(top_k == 1 ? batch * slots * token_blocks(tokens) : 0);
    picks.assign(static_cast<size_t>(batch * slots * top_k), -1);
    const SlotArgmax<T> a{dots.data(),
                          with_constant ? constant.data() : nullptr,
                          slots,
                          tokens,
                          top_k,
                          scale,
                          top.data(),
                          rest.data(),
                          top_k == 1 ? best.data() : nullptr,
                          with_evidence ? out[1].data() : nullptr,
                          picks.data(),
                          out[0].data()};
    divide_blocks([&](int64_t begin, int64_t end) { kernels<T>().slot_scores(a, begin, end); });
    divide_rows([&](int64_t begin, int64_t end) { kernels<T>().slot_best(a, begin, end); });
    out.emplace_back(picks.begin(), picks.end());
    return out;
  };
  const auto whole_rows = [&](const auto& part) { part(int64_t{0}, batch * slots); };
  const auto out = run.alike("slot_scores divided", batch * token_blocks(tokens),
                             [&](const auto& divide) { return made(divide, whole_rows); });
  const auto again = run.alike("slot_best divided", batch * slots, [&](const auto& divide) {
    return made([&](const auto& part) { part(int64_t{0}, batch * token_blocks(tokens)); }, divide);
  });
  run.expect(run.spoilt || out == again, "slot_argmax repeated");
  for (int64_t row = 0; row < batch * slots; ++row) {
    const std::set<int64_t> ids(&picks[row * top_k], &picks[row * top_k] + top_k);
    run.expect(int64_t(ids.size()) == top_k && *ids.begin() >= 0 && *ids.rbegin() < tokens,
               "slot_argmax ids");
    run.expect(original[picks[row * top_k]] == picks[row * top_k], "slot_argmax tie");
  }
  if (run.spoilt) return;
  for (int64_t image = 0; image < batch; ++image) {
    std::vector<std::vector<Real>> scores;
    Real size = 8;
    for (int64_t n = 0; n < tokens; ++n) {
      std::vector<Real> logits;
      for (int64_t k = 0; k < slots; ++k) {
        const Real shift = with_constant ? constant[image * slots + k] : 0;
        logits.push_back(Real(x[shape.at(image, k, n)]) * scale + shift);
        size = std::max(size, std::abs(logits.back()) + std::abs(shift));
      }
      scores.push_back(log_attention(logits));
      if (with_evidence)
        run.near("slot_scores evidence", out[1][image * tokens + n],
                 *std::max_element(scores[n].begin(), scores[n].end()), 16 * epsilon<T> * size);
    }
    for (int64_t k = 0; k < slots; ++k) {
      std::vector<Real> row;
      for (int64_t n = 0; n < tokens; ++n) row.push_back(scores[n][k]);
      std::sort(row.begin(), row.end(), std::greater<Real>());
      const int64_t at = image * slots + k;
      run.near("slot_best peak", out[0][at], row[0], 16 * epsilon<T> * size);
      for (int64_t i = 0; i < top_k; ++i)
        run.near("slot_best pick", scores[picks[at * top_k + i]][k], row[i],
                 32 * epsilon<T> * size);
    }
  }
}

}  // namespace ocvtp::test
