// ocvtp_native's greedy selections on the CPU.
#include "greedy/checks.h"
#include "greedy/merge_tensor.h"

namespace ocvtp {
namespace {

// Steps of an image wait for each other: threads take images of about `elements` elements, or,
// where images are fewer than they, share each step. body(image) does an image's steps by
// `run_share`.
template <class Body>
void each_image(int64_t batch, int64_t elements, const Body& body) {
  const auto images = [](const Body& each, int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) each(image);
  };
  if (batch < static_cast<int64_t>(torch::stable::get_num_threads()))
    images(body, 0, batch);
  else
    run(images, body, batch, elements);
}

// As `run`, on the parts of one image; within a thread's image it takes that thread alone.
template <class Kernel, class Arguments>
void run_share(const Kernel& kernel, const Arguments& arguments, int64_t image, int64_t count,
               int64_t elements) {
  const int64_t first = image * count;
  run([&](const Arguments& a, int64_t begin,
          int64_t end) { kernel(a, first + begin, first + end); },
      arguments, count, elements);
}

Tensor farthest_select(Tensor distances, std::optional<Tensor> first, int64_t budget,
                       bool distinct) {
  check_farthest(distances, first, budget, kernel_dtypes);
  distances = with_unit_stride(distances);
  first = dense(first);
  const int64_t batch = distances.size(0), tokens = distances.size(1);
  if (first) require_ids("first", *first, tokens);
  const Tensor running = empty(distances, {batch, tokens});
  const Tensor order = empty(distances, {batch, budget}, ScalarType::Long);
  by_dtype(distances, [&](auto kind) {
    using T = decltype(kind);
    const GreedyKernels<T>& greedy = *kernels<T>().greedy;
    const FarthestSelect<T> arguments{
        rows<T>(distances), data<int64_t>(first), tokens, budget, distinct,
        out<T>(running),    out<int64_t>(order)};
    if (!first)
      run(greedy.farthest_nearest, arguments, batch * token_blocks(tokens), tokens * token_block);
    run(greedy.farthest_select, arguments, batch, budget * tokens);
  });
  return order;
}

Tensor pivot_select(Tensor points, int64_t budget) {
  check_pivot(points, budget, kernel_dtypes);
  points = with_unit_stride(points);
  const int64_t batch = points.size(0), tokens = points.size(1), width = points.size(2);
  const Tensor running = empty(points, {batch, tokens});
  const Tensor order = empty(points, {batch, budget}, ScalarType::Long);
  by_dtype(points, [&](auto kind) {
    using T = decltype(kind);
    const GreedyKernels<T>& greedy = *kernels<T>().greedy;
    each_image(batch, budget * tokens * width, [&](int64_t image) {
      PivotSelect<T> a{rows<T>(points),    tokens, width, budget, 0, out<T>(running),
                       out<int64_t>(order)};
      run_share(greedy.pivot_norms, a, image, tokens, width);
      for (; a.step < budget; ++a.step) {
        greedy.pivot_pick(a, image, image + 1);
        if (a.step + 1 < budget) run_share(greedy.pivot_distances, a, image, tokens, width);
      }
    });
  });
  return order;
}

Tensor dpp_select(Tensor similarity, Tensor quality, int64_t budget) {
  check_scored(similarity, "quality", quality, budget, kernel_dtypes);
  similarity = with_unit_stride(similarity);
  quality = dense(quality);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1);
  const Tensor left = empty(similarity, {batch, tokens}), own = empty(similarity, {batch, budget});
  const Tensor components = empty(similarity, {batch, budget, whole_vectors(tokens)});
  const Tensor least = empty(similarity, {batch}), root = empty(similarity, {batch});
  const Tensor order = empty(similarity, {batch, budget}, ScalarType::Long);
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    const GreedyKernels<T>& greedy = *kernels<T>().greedy;
    each_image(batch, budget * budget * tokens / 8, [&](int64_t image) {
      DppSelect<T> a{
          rows<T>(similarity), data<T>(quality),   tokens,      budget,        0,
          out<T>(left),        out<T>(components), out<T>(own), out<T>(least), out<T>(root),
          out<int64_t>(order)};
      for (; a.step < budget; ++a.step) {
        greedy.dpp_pick(a, image, image + 1);
        // A multiply-add of a component in cache is little beside waking a thread.
        if (a.step + 1 < budget)
          run_share(greedy.dpp_explain, a, image, token_blocks(tokens),
                    (a.step + 1) * token_block / 16);
      }
    });
  });
  return order;
}

Tensor facility_select(Tensor similarity, Tensor saliency, int64_t budget) {
  check_scored(similarity, "saliency", saliency, budget, kernel_dtypes);
  similarity = with_unit_stride(similarity);
  saliency = dense(saliency);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1);
  const Tensor bound = empty(similarity, {batch, tokens});
  const Tensor covered = empty(similarity, {batch, tokens});
  const Tensor known = empty(similarity, {batch, tokens}, ScalarType::Long);
  const Tensor revived = empty(known, {batch, tokens}), order = empty(known, {batch, budget});
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    const GreedyKernels<T>& greedy = *kernels<T>().greedy;
    const FacilitySelect<T> arguments{rows<T>(similarity),
                                      data<T>(saliency),
                                      tokens,
                                      budget,
                                      out<T>(bound),
                                      out<T>(covered),
                                      out<int64_t>(known),
                                      out<int64_t>(revived),
                                      out<int64_t>(order)};
    run(greedy.facility_gains, arguments, batch * tokens, tokens);
    run(greedy.facility_select, arguments, batch, budget * tokens);
  });
  return order;
}

Tensor match_select(Tensor similarity, Tensor ranked, int64_t budget, int64_t drop) {
  check_match(similarity, ranked, budget, drop, kernel_dtypes);
  similarity = with_unit_stride(similarity);
  ranked = dense(ranked);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1), places = ranked.size(1);
  require_ids("ranked", ranked, tokens);
  const Tensor mask = empty(similarity, {batch, tokens});
  const Tensor likeness = empty(similarity, {batch, places});
  const Tensor lists = empty(ranked, {3, batch, places}), order = empty(ranked, {batch, budget});
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    int64_t* list = out<int64_t>(lists);
    const MatchSelect<T> arguments{rows<T>(similarity),
                                   data<int64_t>(ranked),
                                   tokens,
                                   places,
                                   budget,
                                   drop,
                                   out<T>(mask),
                                   out<T>(likeness),
                                   list,
                                   list + batch * places,
                                   list + 2 * batch * places,
                                   out<int64_t>(order)};
    run(kernels<T>().greedy->match_select, arguments, batch, places * tokens);
  });
  return order;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> centrifugal_select(Tensor similarity, Tensor pivots,
                                                              int64_t height, int64_t width,
                                                              int64_t budget, double spread,
                                                              double threshold, double step,
                                                              int64_t chunk, bool pad) {
  check_centrifugal(similarity, pivots, height, width, budget, chunk, kernel_dtypes);
  similarity = with_unit_stride(similarity);
  pivots = dense(pivots);
  const int64_t batch = similarity.size(0), tokens = similarity.size(1);
  require_ids("pivots", pivots, tokens);
  const Tensor closeness = empty(similarity, {batch, tokens});
  const Tensor place = empty(similarity, {batch, tokens});
  const Tensor merit = empty(similarity, {batch, tokens});
  const Tensor lists = empty(pivots, {3, batch, tokens}), owner = empty(pivots, {batch, tokens});
  const Tensor order = empty(pivots, {batch, budget}), count = empty(pivots, {batch});
  const Tensor taken = empty(pivots, {batch, tokens}, ScalarType::Bool);
  by_dtype(similarity, [&](auto kind) {
    using T = decltype(kind);
    int64_t* list = out<int64_t>(lists);
    const CentrifugalSelect<T> arguments{rows<T>(similarity),
                                         data<int64_t>(pivots),
                                         pivots.size(1),
                                         height,
                                         width,
                                         budget,
                                         spread,
                                         threshold,
                                         step,
                                         std::min(chunk, tokens),
                                         pad,
                                         out<T>(place),
                                         out<T>(merit),
                                         list,
                                         list + batch * tokens,
                                         list + 2 * batch * tokens,
                                         out<bool>(taken),
                                         out<int64_t>(order),
                                         out<int64_t>(count),
                                         out<int64_t>(owner),
                                         out<T>(closeness)};
    run(kernels<T>().greedy->centrifugal_select, arguments, batch, budget * tokens);
  });
  return {order, count, owner, closeness};
}

std::tuple<Tensor, Tensor> scatter_merge(Tensor tokens, Tensor weight, Tensor owner,
                                         int64_t num_owners) {
  check_scatter_merge(tokens, weight, owner, num_owners, kernel_dtypes);
  return sums_of_owners(with_unit_stride(tokens), dense(weight), dense(owner), num_owners);
}

Tensor channel_variance(Tensor tokens) {
  check_channel_variance(tokens, kernel_dtypes);
  tokens = with_unit_stride(tokens);
  const int64_t batch = tokens.size(0), num_tokens = tokens.size(1), width = tokens.size(2);
  const Tensor variance = empty(tokens, {batch, width});
  by_dtype(tokens, [&](auto kind) {
    using T = decltype(kind);
    run(kernels<T>().greedy->channel_variance,
        ChannelVariance<T>{rows<T>(tokens), num_tokens, width, out<T>(variance)},
        batch * channel_blocks(width), 2 * num_tokens * channel_block);
  });
  return variance;
}

STABLE_TORCH_LIBRARY_IMPL(ocvtp_native, CPU, m) {
  m.impl("farthest_select", TORCH_BOX(&farthest_select));
  m.impl("pivot_select", TORCH_BOX(&pivot_select));
  m.impl("dpp_select", TORCH_BOX(&dpp_select));
  m.impl("facility_select", TORCH_BOX(&facility_select));
  m.impl("match_select", TORCH_BOX(&match_select));
  m.impl("centrifugal_select", TORCH_BOX(&centrifugal_select));
  m.impl("scatter_merge", TORCH_BOX(&scatter_merge));
  m.impl("channel_variance", TORCH_BOX(&channel_variance));
}

}  // namespace
}  // namespace ocvtp
