// fastconv._C: facts about the build, the active instruction set, plans and the machine's measured ceilings. Nothing that computes a result
// goes through here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, plans and machine ceilings of fastconv.";
  m.def(
      "build_info",
      [] {
        py::dict d;
        d["version"] = FASTCONV_VERSION;
        d["compiler"] = __VERSION__;
        d["cuda_architectures"] = FASTCONV_CUDA_ARCHITECTURES;
        return d;
      },
      "Version, compiler and the CUDA architectures this build was configured for.");
  m.def(
      "isa",
      [] {
        py::dict d;
        d["active"] = fastconv::kernels().name;
        d["lanes"] = fastconv::kernels().lanes;
        d["bf16_dot"] = fastconv::kernels().bf16_dot;
        d["available"] = fastconv::available_isas();
        d["refused"] = fastconv::refused_isa();
        return d;
      },
      "The instruction set of the CPU kernels, those this machine can run (best first), and a refused FASTCONV_CPU_ISA.");
  m.def(
      "fma_flops", [](int64_t rounds) { py::gil_scoped_release release; return fastconv::kernels().fma_peak(rounds); }, py::arg("rounds"),
      "Runs `rounds` rounds of independent float32 multiply-adds on the calling thread; returns the floating-point operations done.");
  m.def(
      "bf16_dot_flops", [](int64_t rounds) { py::gil_scoped_release release; return fastconv::kernels().bf16_peak(rounds); }, py::arg("rounds"),
      "The same on bfloat16 dot products, or float32 where the machine has none.");
}
