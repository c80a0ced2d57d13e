// Between the two halves of fastconv._C: names to parameters, and what the second half adds to the module.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <string>

#include "common/params.h"

namespace fastconv {

DType parse_dtype_name(const std::string& name);
Layout parse_layout_name(const std::string& name);
ConvGeometry parse_geometry(
    const std::array<int64_t, 4>& input, int64_t multiplier, const std::array<int64_t, 2>& kernel, const std::array<int64_t, 2>& stride,
    const std::array<int64_t, 4>& padding, const std::array<int64_t, 2>& dilation);

void bind_cuda_plans(pybind11::module_& m);

}  // namespace fastconv
