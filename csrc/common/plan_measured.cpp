#include "plan_measured.h"

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>

#include "names.h"

namespace fastconv::cuda {
namespace {

struct Tables {
  std::mutex mutex;
  std::map<std::string, int> devices;
  std::map<std::string, std::string> tiles;
  // Most processes have no table: their calls ask no further.
  std::atomic<bool> any{false};
  std::atomic<int64_t> version{0};
};

Tables& tables() {
  static Tables all;
  return all;
}

int device_number(Tables& t, const std::string& name) { return t.devices.emplace(name, static_cast<int>(t.devices.size()) + 1).first->second; }

std::string key_of(int table, const std::string& op, const std::string& dtype, const std::string& layout, const std::string& shape) {
  return std::to_string(table) + '\t' + op + '\t' + dtype + '\t' + layout + '\t' + shape;
}

int64_t least_power_of_two(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

}  // namespace

std::string shape_class(const ConvGeometry& g, int64_t out_channels) {
  std::ostringstream s;
  s << 'k' << g.kh << 'x' << g.kw << " s" << g.sh << 'x' << g.sw << " d" << least_power_of_two(g.dh) << 'x' << least_power_of_two(g.dw) << " c" << least_power_of_two(g.c)
    << " o" << least_power_of_two(out_channels) << " p" << least_power_of_two(g.n * g.h * g.w);
  return s.str();
}

void set_measured(const std::string& rows) {
  Tables& t = tables();
  const std::lock_guard<std::mutex> lock(t.mutex);
  std::map<std::string, std::string> tiles;
  std::istringstream lines(rows);
  for (std::string line; std::getline(lines, line);) {
    std::array<std::string, 6> part;
    std::istringstream parts(line);
    size_t count = 0;
    for (std::string one; std::getline(parts, one, '\t'); ++count)
      if (count < part.size()) part[count] = one;
    if (count != part.size()) throw std::invalid_argument("measured choices: expected device, operator, dtype, layout, class and tile, got '" + line + "'");
    tiles[key_of(device_number(t, part[0]), part[1], part[2], part[3], part[4])] = part[5];
  }
  t.tiles = std::move(tiles);
  t.any = !t.tiles.empty();
  ++t.version;
}

int measured_device(const std::string& name) {
  Tables& t = tables();
  const std::lock_guard<std::mutex> lock(t.mutex);
  return device_number(t, name);
}

int64_t measured_version() { return tables().version; }

std::string measured_tile(int table, const char* op, DType dtype, Layout layout, const ConvGeometry& g, int64_t out_channels) {
  Tables& t = tables();
  if (table == 0 || !t.any) return {};
  const std::string key = key_of(table, op, dtype_name(dtype), layout_name(layout), shape_class(g, out_channels));
  const std::lock_guard<std::mutex> lock(t.mutex);
  const auto found = t.tiles.find(key);
  return found == t.tiles.end() ? std::string() : found->second;
}

std::string measured_tile(int table, const SeparableForward& p) { return measured_tile(table, "depthwise_separable_conv2d", p.dtype, p.layout, p.g, p.o); }

}  // namespace fastconv::cuda
