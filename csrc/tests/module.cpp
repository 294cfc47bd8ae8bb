// _csrc_tests: the CPU kernels as they are, on NumPy arrays, for tests/csrc. No oracle is here.
// A kernel takes its argument struct as a tuple, in the order of the fields: arrays for pointers
// (None for null), numbers, a tuple for a struct within; then the part [begin, end).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/kernels.h"
#include "selection/resolve_picks.h"

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

// A Python value on its way to be whatever field of a struct it stands for.
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

// Numbers of an array within a struct count one by one.
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

// `find` gives the function when it is called: that of the instruction set then in use.
template <class A, class Find>
void add(py::module_& module, const char* name, void (*)(const A&, int64_t, int64_t),
         const Find& find) {
  module.def(name, [find](const py::tuple& fields, int64_t begin, int64_t end) {
    find()(struct_of<A>(fields), begin, end);
  });
}

#define OCVTP_KERNEL(name) add(module, #name, kernels<T>().name, [] { return kernels<T>().name; })

template <class T>
void add_half(py::module_ module) {
  OCVTP_KERNEL(attention_received);
  if constexpr (std::is_same_v<T, BFloat16>) {
    OCVTP_KERNEL(layer_norm);
    OCVTP_KERNEL(slot_softmax);
    OCVTP_KERNEL(slot_mass);
    OCVTP_KERNEL(per_mass);
    OCVTP_KERNEL(slot_softmax_backward);
  }
}

template <class T>
void add_kernels(py::module_ module) {
#define OCVTP_GREEDY(name) \
  add(module, #name, kernels<T>().greedy->name, [] { return kernels<T>().greedy->name; })
  OCVTP_KERNEL(layer_norm);
  OCVTP_KERNEL(norm_slots);
  OCVTP_KERNEL(bias_gelu);
  OCVTP_KERNEL(slot_softmax);
  OCVTP_KERNEL(slot_mass);
  OCVTP_KERNEL(per_mass);
  OCVTP_KERNEL(slot_softmax_backward);
  OCVTP_KERNEL(gru_gates);
  OCVTP_KERNEL(slot_scores);
  OCVTP_KERNEL(slot_best);
  OCVTP_KERNEL(slot_owners);
  OCVTP_KERNEL(attention_received);
  OCVTP_KERNEL(attention_mean);
  OCVTP_KERNEL(merge_lists);
  OCVTP_KERNEL(merge_sums);
  OCVTP_GREEDY(farthest_nearest);
  OCVTP_GREEDY(farthest_select);
  OCVTP_GREEDY(pivot_norms);
  OCVTP_GREEDY(pivot_pick);
  OCVTP_GREEDY(pivot_distances);
  OCVTP_GREEDY(dpp_pick);
  OCVTP_GREEDY(dpp_explain);
  OCVTP_GREEDY(facility_gains);
  OCVTP_GREEDY(facility_select);
  OCVTP_GREEDY(match_select);
  OCVTP_GREEDY(centrifugal_select);
  OCVTP_GREEDY(channel_variance);
#undef OCVTP_KERNEL
#undef OCVTP_GREEDY
  module.def("maths", [](const char* name, const py::array_t<T, py::array::c_style>& x) {
    py::array_t<T> out(x.size());
    auto maths = static_cast<void (*)(const char*, const T*, T*, int64_t)>(portable::maths);
#ifdef OCVTP_X86
    if (std::strcmp(isa().name, "avx2") == 0) maths = avx2::maths;
    if (std::strncmp(isa().name, "avx512", 6) == 0) maths = avx512::maths;
#endif
    maths(name, x.data(), out.mutable_data(), x.size());
    return out;
  });
}

// A copy whose memory is exactly its own, where AddressSanitizer sees a step past either end: that
// of NumPy may come from a cache.
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
  test::add(module, "resolve_picks", resolve_picks, [] { return resolve_picks; });
  test::add(module, "gather_rows", gather_rows, [] { return gather_rows; });
}
