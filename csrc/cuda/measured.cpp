// set_measured_tiles: hands the planner of this library its measured choices.
#include "common/plan_measured.h"

#include <torch/csrc/stable/library.h>

namespace fastconv::cuda {
namespace {

void set_measured_tiles(std::string rows) { set_measured(rows); }

}  // namespace
}  // namespace fastconv::cuda

STABLE_TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) { m.impl("set_measured_tiles", TORCH_BOX(&fastconv::cuda::set_measured_tiles)); }
