// fastconv._C, continued: what the planner of the CUDA kernels decides, and what that should cost, for a GPU that need not be there.
#include "introspection.h"

#include <pybind11/stl.h>

#include <string>

#include "common/cost_choice.h"
#include "common/plan_measured.h"

namespace py = pybind11;

namespace fastconv {
namespace {

using Quad = std::array<int64_t, 4>;
using Pair = std::array<int64_t, 2>;

// A GPU by name and number; what is not given is an H200's, and rates are those of its kind.
struct Chip {
  cuda::Device device;
  cuda::Rates rates;

  explicit Chip(const py::dict& given) {
    // They say what kind it is, whose rates others then replace.
    if (given.contains("multiprocessors")) device.multiprocessors = given["multiprocessors"].cast<int>();
    if (given.contains("capability")) device.capability = given["capability"].cast<int>();
    rates = cuda::rates_of(device);
    for (const auto& [key, value] : given) {
      const std::string name = py::str(key);
      if (name == "multiprocessors" || name == "capability") continue;
      else if (name == "name") device.table = cuda::measured_device(value.cast<std::string>());
      else if (name == "shared_per_block") device.shared_per_block = value.cast<int>();
      else if (name == "shared_per_multiprocessor") device.shared_per_multiprocessor = value.cast<int>();
      else if (name == "copy") rates.copy = value.cast<double>();
      else if (name == "second_level") rates.second_level = value.cast<double>();
      else if (name == "issue") rates.issue = value.cast<double>();
      else if (name == "product") rates.product = value.cast<double>();
      else if (name == "library_product") rates.library_product = value.cast<double>();
      else throw py::value_error("chip: got the key '" + name + "'; known are name, multiprocessors, capability, shared_per_block, shared_per_multiprocessor, copy, second_level, issue, product, library_product");
    }
  }
};

// Addresses decide about vectors: as torch allocates, aligned.
const void* const kAligned = reinterpret_cast<const void*>(uint64_t(1) << 20);
void* const kAlignedOut = reinterpret_cast<void*>(uint64_t(1) << 20);

template <class View, class Pointer>
View map_of(Pointer data, Layout layout, int64_t c, int64_t h, int64_t w) {
  if (layout == Layout::channels_last) return {data, c * h * w, 1, w * c, c};
  return {data, c * h * w, h * w, w, 1};
}

py::list described(const std::vector<cuda::Cost>& steps) {
  py::list out;
  for (const cuda::Cost& c : steps) {
    py::dict d;
    d["kernel"] = c.kernel, d["tile"] = c.tile, d["programs"] = c.blocks, d["warps"] = c.threads / 32;
    d["registers"] = c.registers, d["spills"] = 0, d["shared_memory"] = c.shared_bytes, d["resident"] = c.resident, d["waves"] = c.waves;
    d["bytes"] = c.bytes, d["second_level_bytes"] = c.second_level_bytes, d["flops"] = c.flops, d["lane_instructions"] = c.instructions;
    d["seconds"] = c.seconds, d["bound"] = c.bound;
    out.append(d);
  }
  return out;
}

DepthwiseForward depthwise_of(const ConvGeometry& g, DType dtype, Layout layout) {
  return {g, dtype, layout, Activation::identity, Activation::identity, map_of<MapView>(kAligned, layout, g.c, g.h, g.w), kAligned, kAligned,
          map_of<MutableMapView>(kAlignedOut, layout, g.out_channels(), g.oh, g.ow)};
}

SeparableForward separable_of(const ConvGeometry& g, int64_t o, DType dtype, Layout layout, bool input_activation, bool residual) {
  return {g, o, dtype, layout, input_activation ? Activation::relu : Activation::identity, Activation::identity, Activation::relu,
          map_of<MapView>(kAligned, layout, g.c, g.h, g.w), kAligned, kAligned, kAligned, kAligned,
          map_of<MapView>(residual ? kAligned : nullptr, layout, o, g.oh, g.ow), map_of<MutableMapView>(kAlignedOut, layout, o, g.oh, g.ow)};
}

}  // namespace

void bind_cuda_plans(py::module_& m) {
  m.def(
      "cost_cuda_depthwise",
      [](const Quad& input, int64_t multiplier, const Pair& kernel, const Pair& stride, const Quad& padding, const Pair& dilation, const std::string& type,
         const std::string& format, bool backward, const py::dict& given) {
        const Chip chip(given);
        const ConvGeometry g = parse_geometry(input, multiplier, kernel, stride, padding, dilation);
        const DepthwiseForward f = depthwise_of(g, parse_dtype_name(type), parse_layout_name(format));
        if (!backward) return described(cuda::cost_depthwise(f, chip.device, chip.rates));
        const DepthwiseBackward b{
            g, f.dtype, f.layout, Activation::identity, f.x, map_of<MapView>(kAligned, f.layout, g.out_channels(), g.oh, g.ow), f.weight,
            map_of<MutableMapView>(kAlignedOut, f.layout, g.c, g.h, g.w), nullptr, nullptr};
        return described(cuda::cost_depthwise_backward(b, true, chip.device, chip.rates));
      },
      py::arg("input"), py::arg("multiplier"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("dtype"), py::arg("layout"),
      py::arg("backward") = false, py::arg("chip") = py::dict(),
      "What the CUDA kernels of a depthwise layer, forward or backward, are predicted to take: one dict a launch.");
  m.def(
      "cost_cuda_separable",
      [](const Quad& input, int64_t out_channels, int64_t multiplier, const Pair& kernel, const Pair& stride, const Quad& padding, const Pair& dilation,
         const std::string& type, const std::string& format, bool input_activation, bool residual, bool tf32, const py::dict& given) {
        const Chip chip(given);
        const ConvGeometry g = parse_geometry(input, multiplier, kernel, stride, padding, dilation);
        const SeparableForward p = separable_of(g, out_channels, parse_dtype_name(type), parse_layout_name(format), input_activation, residual);
        const cuda::FloatProducts products = cuda::float_products(tf32);
        py::dict d;
        d["fused"] = described(cuda::cost_separable(p, products, chip.device, chip.rates));
        d["unfused"] = described(cuda::cost_unfused(p, products, chip.device, chip.rates));
        d["library"] = described(cuda::cost_library(p, products, chip.device, chip.rates));
        d["floor"] = cuda::floor_seconds(p, products, chip.rates);
        const cuda::SeparableChoice choice = cuda::weigh_separable(p, products, chip.device, chip.rates);
        d["chosen"] = choice.library ? "library" : "fused", d["measured"] = choice.measured;
        d["why"] = cuda::describe_choice(p, products, choice);
        return d;
      },
      py::arg("input"), py::arg("out_channels"), py::arg("multiplier"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("dtype"), py::arg("layout"), py::arg("input_activation") = false, py::arg("residual") = false, py::arg("tf32") = true, py::arg("chip") = py::dict(),
      "The same for a fused separable layer, for its parts as separate launches at best, for what the planner's alternative to the fused kernel is (the depthwise "
      "kernel, then the library's product and its elementwise passes), the floor, and which of the two is chosen.");
  m.def("set_measured_tiles", &cuda::set_measured, py::arg("rows"), "Replaces the measured choices of this module's planner; as torch.ops.fastconv.set_measured_tiles.");
  m.def(
      "cuda_shape_class",
      [](const Quad& input, int64_t out_channels, const Pair& kernel, const Pair& stride, const Pair& dilation) {
        return cuda::shape_class(parse_geometry(input, 1, kernel, stride, {kernel[0] * dilation[0], 0, kernel[1] * dilation[1], 0}, dilation), out_channels);
      },
      py::arg("input"), py::arg("out_channels"), py::arg("kernel"), py::arg("stride"), py::arg("dilation"), "The class of a layer in a table of measured choices.");
  m.def(
      "cuda_rates",
      [](const py::dict& given) {
        const cuda::Rates r = Chip(given).rates;
        py::dict d;
        d["copy"] = r.copy, d["second_level"] = r.second_level, d["issue"] = r.issue, d["library_product"] = r.library_product, d["product"] = r.product;
        return d;
      },
      py::arg("chip"), "What the cost model takes a GPU to do in a second.");
  m.def(
      "cuda_compiled",
      [] {
        py::list out;
        for (const cuda::Compiled& c : cuda::compiled_kernels()) out.append(py::make_tuple(c.kernel, c.size, c.instructions, c.registers));
        return out;
      },
      "What the cost model takes the compiled kernels to need at most: (kernel, K, instructions an element or 0, registers).");
  m.def(
      "cuda_tile",
      [](int form, int kernel) {
        const auto f = static_cast<cuda::TileForm>(form);
        return py::make_tuple(cuda::tile_shape(f).threads, cuda::tile_blocks(f, kernel));
      },
      py::arg("form"), py::arg("kernel"), "A tile of the fused kernels by its number: (threads, blocks that plans count on for a multiprocessor).");
}

}  // namespace fastconv
