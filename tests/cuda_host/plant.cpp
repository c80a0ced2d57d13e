// Which planted bug is switched on: plants.py.
#include <cstdlib>

namespace {
int number() {
  const char* text = std::getenv("FASTCONV_PLANT");
  return text ? std::atoi(text) : 0;
}
}  // namespace

extern "C" {
extern const int fastconv_plant;
const int fastconv_plant = number();
}
