// Measured choices of kernels and tiles: what fastconv/tuning/<device>.json holds for the CUDA kernels. They override the model. Plain C++, as plan.h.
#pragma once
#include <string>

#include "params.h"

namespace fastconv::cuda {

// What the layers of a convolution are told apart by, written as fastconv.tuning.shape_class writes it; a test holds the two equal.
std::string shape_class(const ConvGeometry& g, int64_t out_channels);

// Replaces all tables by `rows`: lines of device, operator, dtype, layout, class and tile, with tabs between. Throws std::invalid_argument.
void set_measured(const std::string& rows);

// What Device::table holds for a GPU of this name; the same for as long as the process lives, whatever tables are set.
int measured_device(const std::string& name);

// Counts the calls of set_measured, for whoever remembers choices.
int64_t measured_version();

// The tile measured best for a layer, or nothing where none was. `table` is that of its device.
std::string measured_tile(int table, const char* op, DType dtype, Layout layout, const ConvGeometry& g, int64_t out_channels);
std::string measured_tile(int table, const SeparableForward& p);

}  // namespace fastconv::cuda
