// Which instruction set the CPU kernels run on. Chosen once, when the library is loaded; FASTCONV_CPU_ISA overrides it.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

#define FASTCONV_EXPORT __attribute__((visibility("default")))

namespace fastconv {

FASTCONV_EXPORT const Kernels& kernels();
// What FASTCONV_CPU_ISA asked for when this machine cannot run it, else empty. Python turns it into an error at import.
FASTCONV_EXPORT const std::string& refused_isa();
// Best first.
FASTCONV_EXPORT std::vector<std::string> available_isas();

}  // namespace fastconv
