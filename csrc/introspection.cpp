// fastconv._C: facts about the build, the active instruction set, plans and the machine's measured ceilings. Nothing that computes a result
// goes through here.
#include "introspection.h"

#include <pybind11/stl.h>

#include "common/names.h"
#include "common/shape.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace fastconv {

DType parse_dtype_name(const std::string& name) {
  for (const DType t : {DType::f32, DType::f16, DType::bf16, DType::f64})
    if (name == dtype_name(t)) return t;
  throw py::value_error("dtype: expected float32, float16, bfloat16 or float64, got '" + name + "'");
}

Layout parse_layout_name(const std::string& name) {
  for (const Layout l : {Layout::contiguous, Layout::channels_last})
    if (name == layout_name(l)) return l;
  throw py::value_error("layout: expected contiguous or channels_last, got '" + name + "'");
}

ConvGeometry parse_geometry(
    const std::array<int64_t, 4>& input, int64_t multiplier, const std::array<int64_t, 2>& kernel, const std::array<int64_t, 2>& stride,
    const std::array<int64_t, 4>& padding, const std::array<int64_t, 2>& dilation) {
  ConvGeometry g;
  g.n = input[0], g.c = input[1], g.h = input[2], g.w = input[3], g.multiplier = multiplier;
  g.kh = kernel[0], g.kw = kernel[1], g.sh = stride[0], g.sw = stride[1], g.dh = dilation[0], g.dw = dilation[1];
  g.pt = padding[0], g.pb = padding[1], g.pl = padding[2], g.pr = padding[3];
  g.oh = conv_out(g.h, g.pt, g.pb, g.dh, g.kh, g.sh);
  g.ow = conv_out(g.w, g.pl, g.pr, g.dw, g.kw, g.sw);
  for (int64_t v : {g.n, g.c, g.h, g.w, g.multiplier, g.kh, g.kw, g.sh, g.sw, g.dh, g.dw, g.oh, g.ow})
    if (v < 1) throw py::value_error("the plan of an empty or ill-formed convolution was asked for");
  return g;
}

}  // namespace fastconv

namespace {

using fastconv::ConvGeometry;

py::dict separable_plan(
    const ConvGeometry& g, int64_t out_channels, const std::string& type, const std::string& format, const std::string& input_activation, int threads) {
  fastconv::SeparableForward p = {};
  p.g = g, p.o = out_channels, p.dtype = fastconv::parse_dtype_name(type), p.layout = fastconv::parse_layout_name(format);
  // A plan depends on whether there is one, not on which.
  // All that the plan asks: a ReLU may be applied as taps are read, anything else is staged.
  using fastconv::Activation;
  p.input_activation = input_activation == "identity" ? Activation::identity : input_activation == "relu" ? Activation::relu : Activation::silu;
  const fastconv::SeparablePlan s = fastconv::kernels().separable_plan(p, threads);
  const bool last = p.layout == fastconv::Layout::channels_last;
  py::dict d;
  d["kernel"] = std::string("fused separable, ") + (s.bf16_dot ? "bf16 dot products" : "float32 products") +
      (last ? "" : s.flat ? ", taps read in place" : ", rows staged as float32");
  d["isa"] = fastconv::kernels().name;
  d["tile_pixels"] = s.tile_pixels;
  d["tiles"] = s.tiles;
  d["output_channel_splits"] = s.splits;
  d["work_items"] = s.items;
  d["register_block"] = std::to_string(s.panel_rows) + (last ? " pixels x " : " output channels x ") + std::to_string(s.panel_vectors * fastconv::kernels().lanes) +
      (last ? " output channels" : " pixels");
  d["scratch_bytes_per_thread"] = s.scratch_bytes;
  d["packed_weight_bytes"] = s.packed_bytes;
  d["output_bypasses_cache"] = s.streaming;
  return d;
}

py::dict depthwise_plan(const ConvGeometry& g, const std::string& type, const std::string& format, int threads) {
  fastconv::DepthwiseForward p = {};
  p.g = g, p.dtype = fastconv::parse_dtype_name(type), p.layout = fastconv::parse_layout_name(format);
  const fastconv::DepthwisePlan s = fastconv::kernels().depthwise_plan(p, threads);
  const bool last = p.layout == fastconv::Layout::channels_last;
  py::dict d;
  const bool blocks = !last && s.rows_per_item > 0;
  d["kernel"] = std::string("depthwise") + (last ? "" : blocks ? ", channels transposed to lanes" : s.flat ? ", taps read in place" : ", rows staged as float32");
  d["isa"] = fastconv::kernels().name;
  if (last || blocks) {
    d["rows_per_item"] = s.rows_per_item;
  } else {
    d["tile_pixels"] = s.tile_pixels;
    d["tiles"] = s.tiles;
    d["channels_per_item"] = s.channels_per_item;
  }
  d["work_items"] = s.items;
  d["scratch_bytes_per_thread"] = s.scratch_bytes;
  d["packed_weight_bytes"] = s.packed_bytes;
  return d;
}

py::dict pool_plan(
    bool max, const std::array<int64_t, 4>& input, const std::array<int64_t, 2>& kernel, const std::array<int64_t, 2>& stride,
    const std::array<int64_t, 2>& padding, const std::array<int64_t, 2>& dilation, const std::string& type, const std::string& format, int threads) {
  fastconv::PoolGeometry g = {};
  g.n = input[0], g.c = input[1], g.h = input[2], g.w = input[3];
  g.kh = kernel[0], g.kw = kernel[1], g.sh = stride[0], g.sw = stride[1];
  g.ph = padding[0], g.pw = padding[1], g.dh = dilation[0], g.dw = dilation[1];
  g.dense_h = fastconv::dense_length(g.h, g.ph, g.dh, g.kh, g.sh, false);
  g.dense_w = fastconv::dense_length(g.w, g.pw, g.dw, g.kw, g.sw, false);
  for (int64_t v : {g.n, g.c, g.h, g.w, g.kh, g.kw, g.sh, g.sw, g.dh, g.dw, g.dense_h, g.dense_w})
    if (v < 1) throw py::value_error("the plan of an empty or ill-formed pool was asked for");
  g.frag_h = fastconv::ceil_div(g.dense_h, g.sh), g.frag_w = fastconv::ceil_div(g.dense_w, g.sw);
  fastconv::MaxPool m = {};
  fastconv::AvgPool a = {};
  m.g = a.g = g, m.dtype = a.dtype = fastconv::parse_dtype_name(type), m.layout = a.layout = fastconv::parse_layout_name(format);
  const fastconv::PoolPlan s = max ? fastconv::kernels().max_pool_plan(m, threads) : fastconv::kernels().avg_pool_plan(a, threads);
  py::dict d;
  d["kernel"] = max ? "separable maximum, all offsets in one pass" : "separable sum, all offsets in one pass";
  d["isa"] = fastconv::kernels().name;
  d["strip_channels"] = s.channels;
  d["strip_columns"] = s.columns;
  d["strip_rows"] = s.rows;
  d["work_items"] = s.items;
  d["scratch_bytes_per_thread"] = s.scratch_bytes;
  return d;
}

}  // namespace

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
      "plan_separable",
      [](const std::array<int64_t, 4>& input, int64_t out_channels, int64_t multiplier, const std::array<int64_t, 2>& kernel, const std::array<int64_t, 2>& stride,
         const std::array<int64_t, 4>& padding, const std::array<int64_t, 2>& dilation, const std::string& dtype, const std::string& layout,
         const std::string& input_activation, int threads) {
        return separable_plan(fastconv::parse_geometry(input, multiplier, kernel, stride, padding, dilation), out_channels, dtype, layout, input_activation, threads);
      },
      py::arg("input"), py::arg("out_channels"), py::arg("multiplier"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("dtype"), py::arg("layout"), py::arg("input_activation"), py::arg("threads"),
      "What the CPU kernel decides for one fused separable layer; padding is (top, bottom, left, right).");
  m.def(
      "plan_depthwise",
      [](const std::array<int64_t, 4>& input, int64_t multiplier, const std::array<int64_t, 2>& kernel, const std::array<int64_t, 2>& stride,
         const std::array<int64_t, 4>& padding, const std::array<int64_t, 2>& dilation, const std::string& dtype, const std::string& layout, int threads) {
        return depthwise_plan(fastconv::parse_geometry(input, multiplier, kernel, stride, padding, dilation), dtype, layout, threads);
      },
      py::arg("input"), py::arg("multiplier"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("dtype"), py::arg("layout"),
      py::arg("threads"), "The same for a depthwise layer.");
  m.def(
      "plan_pool", &pool_plan, py::arg("max"), py::arg("input"), py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
      py::arg("dtype"), py::arg("layout"), py::arg("threads"), "The same for a stitched max or average pool; padding is (vertical, horizontal).");
  m.def(
      "fma_flops", [](int64_t rounds) { py::gil_scoped_release release; return fastconv::kernels().fma_peak(rounds); }, py::arg("rounds"),
      "Runs `rounds` rounds of independent float32 multiply-adds on the calling thread; returns the floating-point operations done.");
  m.def(
      "bf16_dot_flops", [](int64_t rounds) { py::gil_scoped_release release; return fastconv::kernels().bf16_peak(rounds); }, py::arg("rounds"),
      "The same on bfloat16 dot products, or float32 where the machine has none.");
  fastconv::bind_cuda_plans(m);
}
