#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace fastconv {

#define DECLARE(isa) \
  namespace isa {    \
  const Kernels& table(); \
  }
DECLARE(baseline)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
DECLARE(avx512_bf16)
#endif
#undef DECLARE

namespace {

struct Candidate {
  const char* name;
  bool runs;
  const Kernels& (*table)();
};

struct Candidates {
  Candidate list[4];
  int count = 0;
  Candidates() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl");
    list[count++] = {"avx512_bf16", has_avx512 && __builtin_cpu_supports("avx512bf16"), &avx512_bf16::table};
    list[count++] = {"avx512", has_avx512, &avx512::table};
    list[count++] = {"avx2", has_avx2, &avx2::table};
#endif
    list[count++] = {"baseline", true, &baseline::table};
  }
};

const Candidates& candidates() {
  static const Candidates c;
  return c;
}

struct Choice {
  const Kernels* kernels;
  std::string refused;  // what FASTCONV_CPU_ISA asked for and could not have
};

Choice choose() {
  const Candidates& c = candidates();
  const char* wanted = std::getenv("FASTCONV_CPU_ISA");
  const Kernels* best = nullptr;
  std::string refused;
  if (wanted && *wanted) {
    for (int i = 0; i < c.count; ++i)
      if (!std::strcmp(wanted, c.list[i].name) && c.list[i].runs) best = &c.list[i].table();
    if (!best) refused = wanted;
  }
  for (int i = 0; i < c.count && !best; ++i)
    if (c.list[i].runs) best = &c.list[i].table();
  return {best, refused};
}

const Choice& choice() {
  static const Choice c = choose();
  return c;
}

}  // namespace

const Kernels& kernels() { return *choice().kernels; }
const std::string& refused_isa() { return choice().refused; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  const Candidates& c = candidates();
  for (int i = 0; i < c.count; ++i)
    if (c.list[i].runs) names.push_back(c.list[i].name);
  return names;
}

}  // namespace fastconv
