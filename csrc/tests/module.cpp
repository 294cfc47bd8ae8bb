// _csrc_tests: the CPU kernels as they are, on NumPy arrays, for tests/csrc. No oracle is here.
// A kernel takes its argument struct as a tuple, in the order of the fields: arrays for pointers
// (None for null), scalars, a tuple for a nested struct; then the part [begin, end).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "attention_from_rows/attention_from_rows.h"
#include "bipartite_merge/bipartite_merge.h"
#include "centrifugal_select/centrifugal_select.h"
#include "channel_variance/channel_variance.h"
#include "dpp_select/dpp_select.h"
#include "facility_select/facility_select.h"
#include "farthest_select/farthest_select.h"
#include "gru_cell/gru_gates.h"
#include "match_select/match_select.h"
#include "merge/slot_assignment.h"
#include "mmr_select/mmr_select.h"
#include "pivot_select/pivot_select.h"
#include "prune/bias_gelu.h"
#include "prune/layer_norm.h"
#include "prune/norm_slots.h"
#include "resolve_picks/resolve_picks.h"
#include "scatter_merge/scatter_merge.h"
#include "slot_argmax/slot_argmax.h"
#include "slot_attention/slot_attention.h"

namespace py = pybind11;

#define OCVTP_DECLARE(isa)                                                   \
  namespace ocvtp::isa {                                                     \
  void maths(const char* name, const float* x, float* out, int64_t count);   \
  void maths(const char* name, const double* x, double* out, int64_t count); \
  }

OCVTP_DECLARE(portable)
#ifdef OCVTP_X86
OCVTP_DECLARE(avx2)
OCVTP_DECLARE(avx512)
#endif

namespace ocvtp::test {

template <class A>
A struct_of(const py::tuple& fields);

// NumPy has no bfloat16: half precision comes as its bits.
template <class E>
using Stored =
    std::conditional_t<std::is_same_v<E, Float16> || std::is_same_v<E, BFloat16>, uint16_t, E>;

// A Python value that converts to the type of any field.
struct Field {
  py::handle value;

  template <class F>
  operator F() const {
    if constexpr (std::is_pointer_v<F>) {
      using Element = std::remove_const_t<std::remove_pointer_t<F>>;
      if (value.is_none()) return nullptr;
      using Array = py::array_t<Stored<Element>, py::array::c_style>;
      if (!Array::check_(value)) throw py::type_error("an array of another dtype, or not dense");
      auto array = py::reinterpret_borrow<Array>(value);
      if constexpr (std::is_same_v<F, const Element*>)
        return reinterpret_cast<F>(array.data());
      else
        return reinterpret_cast<F>(array.mutable_data());
    } else if constexpr (std::is_arithmetic_v<F>) {
      return value.cast<F>();
    } else {
      return struct_of<F>(value.cast<py::tuple>());
    }
  }
};

template <class A, class Indices, class = void>
constexpr bool takes = false;
template <class A, size_t... i>
constexpr bool
    takes<A, std::index_sequence<i...>, std::void_t<decltype(A{((void)i, Field{})...})>> = true;

// The elements of an array in a struct count one by one.
template <class A, size_t count = 1>
constexpr size_t fields_of() {
  if constexpr (takes<A, std::make_index_sequence<count + 1>>)
    return fields_of<A, count + 1>();
  else
    return count;
}

template <class A, size_t... i>
A filled(const py::tuple& fields, std::index_sequence<i...>) {
  return A{Field{fields[i]}...};
}

template <class A>
A struct_of(const py::tuple& fields) {
  constexpr size_t count = fields_of<A>();
  if (fields.size() != count) throw py::value_error(std::to_string(count) + " fields expected");
  return filled<A>(fields, std::make_index_sequence<count>{});
}

template <class A>
void add(py::module_& module, const char* name, void (*kernel)(const A&, int64_t, int64_t)) {
  module.def(name, [kernel](const py::tuple& fields, int64_t begin, int64_t end) {
    kernel(struct_of<A>(fields), begin, end);
  });
}

#define OCVTP_ADD(name) add(module, #name, kernels::name<T>)

template <class T>
void add_half(py::module_ module) {
  OCVTP_ADD(attention_from_rows);
  if constexpr (std::is_same_v<T, BFloat16>) {
    OCVTP_ADD(layer_norm);
    OCVTP_ADD(slot_softmax);
    OCVTP_ADD(slot_mass);
    OCVTP_ADD(per_mass);
    OCVTP_ADD(slot_softmax_backward);
  }
}

template <class T>
void add_kernels(py::module_ module) {
  OCVTP_ADD(layer_norm);
  OCVTP_ADD(norm_slots);
  OCVTP_ADD(bias_gelu);
  OCVTP_ADD(slot_softmax);
  OCVTP_ADD(slot_mass);
  OCVTP_ADD(per_mass);
  OCVTP_ADD(slot_softmax_backward);
  OCVTP_ADD(gru_gates);
  OCVTP_ADD(slot_scores);
  OCVTP_ADD(slot_best);
  OCVTP_ADD(slot_assignment);
  OCVTP_ADD(attention_from_rows);
  OCVTP_ADD(attention_mean);
  OCVTP_ADD(merge_lists);
  OCVTP_ADD(merge_sums);
  OCVTP_ADD(bipartite_units);
  OCVTP_ADD(bipartite_scores);
  OCVTP_ADD(bipartite_groups);
  OCVTP_ADD(bipartite_rows);
  OCVTP_ADD(farthest_nearest);
  OCVTP_ADD(farthest_select);
  OCVTP_ADD(pivot_norms);
  OCVTP_ADD(pivot_pick);
  OCVTP_ADD(pivot_distances);
  OCVTP_ADD(dpp_pick);
  OCVTP_ADD(dpp_explain);
  OCVTP_ADD(facility_gains);
  OCVTP_ADD(facility_select);
  OCVTP_ADD(match_select);
  OCVTP_ADD(mmr_select);
  OCVTP_ADD(centrifugal_select);
  OCVTP_ADD(channel_variance);
  module.def("maths", [](const char* name, const py::array_t<T, py::array::c_style>& x) {
    py::array_t<T> out(x.size());
    auto maths = static_cast<void (*)(const char*, const T*, T*, int64_t)>(portable::maths);
#ifdef OCVTP_X86
    if (isa() == Isa::avx2) maths = avx2::maths;
    if (isa() >= Isa::avx512) maths = avx512::maths;
#endif
    maths(name, x.data(), out.mutable_data(), x.size());
    return out;
  });
}

// A copy in memory of exactly its size, so that AddressSanitizer sees an access past either end;
// NumPy may allocate from a cache.
py::array exact(const py::array& given) {
  const auto dense = py::array::ensure(given, py::array::c_style);
  const auto bytes = static_cast<size_t>(dense.nbytes());
  char* memory = new char[bytes];
  std::memcpy(memory, dense.data(), bytes);
  const py::capsule owner(memory, [](void* owned) { delete[] static_cast<char*>(owned); });
  return py::array(dense.dtype(), std::vector(dense.shape(), dense.shape() + dense.ndim()), memory,
                   owner);
}

}  // namespace ocvtp::test

PYBIND11_MODULE(_csrc_tests, module) {
  using namespace ocvtp;
  module.def("use_isa", &use_isa);
  module.def("exact", &test::exact);
  module.def("attention_scratch", &attention_scratch);
  module.def("softmax_scratch", &softmax_scratch<BFloat16>);
  test::add_kernels<float>(module.def_submodule("float32"));
  test::add_kernels<double>(module.def_submodule("float64"));
  test::add_half<Float16>(module.def_submodule("float16"));
  test::add_half<BFloat16>(module.def_submodule("bfloat16"));
  test::add(module, "resolve_picks", resolve_picks);
  test::add(module, "gather_rows", gather_rows);
}
