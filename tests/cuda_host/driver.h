// What the programs share that run kernels over a list of cases: one case a line on standard input ("op=shift n=2 c=3 ..."), operands of exact
// size filled from the case's seed, comparison with a float64 reference. Nothing here is instrumented.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/params.h"
#include "common/widest_vector.h"

namespace driver {

using fastconv::Activation;
using fastconv::DType;
using fastconv::element_bytes;
using fastconv::Layout;

class Case {
 public:
  explicit Case(const std::string& line);
  int64_t number(const std::string& key) const;
  int64_t number(const std::string& key, int64_t otherwise) const;
  std::string word(const std::string& key, const std::string& otherwise) const;
  DType dtype() const;
  Layout layout() const;
  Activation activation(const std::string& key) const;

 private:
  std::map<std::string, std::string> words_;
};

double element_to_double(DType, const void*);
void double_to_element(DType, double, void*);
double rounded(DType, double);

// The smallest relative step of the dtype: 2^-24, 2^-11, 2^-8.
double unit_roundoff(DType);
// Half the distance of the smallest numbers: what a rounding of a result near zero may be off by.
inline double least_step(DType t) { return t == DType::f16 ? 0x1p-25 : 0; }

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x1234567) {}
  uint64_t bits();
  double normal();

 private:
  uint64_t state_;
};

// Memory of exactly the size asked for, aligned as device allocations are, or shifted off that alignment; every byte 0xff (NaN) at first.
// Very large ones are address space of which only touched pages exist.
class Memory {
 public:
  Memory(size_t bytes, size_t offset);
  ~Memory();
  Memory(const Memory&) = delete;
  unsigned char* data() const { return data_; }

 private:
  unsigned char* base_;
  unsigned char* data_;
  size_t mapped_;
};

// A (n, c, h, w) operand. `image_stride` 0 means dense.
class Map {
 public:
  Map(DType dtype, Layout layout, int64_t n, int64_t c, int64_t h, int64_t w, int64_t offset_elements = 0, int64_t image_stride = 0);
  void fill(Random& random, double scale = 1.0);
  void fill(const std::function<double(int64_t)>& value);  // by logical index
  double get(int64_t n, int64_t c, int64_t y, int64_t x) const { return element_to_double(dtype, at(n, c, y, x)); }
  double get_or_zero(int64_t n, int64_t c, int64_t y, int64_t x) const { return y < 0 || y >= h || x < 0 || x >= w ? 0.0 : get(n, c, y, x); }
  void set(int64_t n, int64_t c, int64_t y, int64_t x, double v) { double_to_element(dtype, v, at(n, c, y, x)); }
  void* data() const { return memory_->data(); }
  fastconv::MapView view() const { return {data(), sn, sc, sh, sw}; }
  fastconv::MutableMapView mutable_view() const { return {data(), sn, sc, sh, sw}; }
  int64_t size() const { return n * c * h * w; }

  DType dtype;
  Layout layout;
  int64_t n, c, h, w;
  int64_t sn, sc, sh, sw;

 private:
  unsigned char* at(int64_t in, int64_t ic, int64_t iy, int64_t ix) const {
    return memory_->data() + (in * sn + ic * sc + iy * sh + ix * sw) * element_bytes(dtype);
  }
  std::shared_ptr<Memory> memory_;
};

// A dense vector of elements; absent operands have length 0 and a null address.
class Vector {
 public:
  Vector(DType dtype, int64_t length, int64_t offset_elements = 0);
  void fill(Random& random, double scale = 1.0);
  double get(int64_t i) const { return element_to_double(dtype, memory_->data() + i * element_bytes(dtype)); }
  double get_or_zero(int64_t i) const { return length ? get(i) : 0.0; }
  void* data() const { return length ? memory_->data() : nullptr; }
  DType dtype;
  int64_t length;

 private:
  std::shared_ptr<Memory> memory_;
};

double activate(Activation, double);
double derivative(Activation, double);

// Collects the comparison of a case; `wrong` explains the first and the worst mismatch.
struct Comparison {
  int64_t count = 0, bad = 0;
  double error2 = 0, reference2 = 0;
  std::string first;
  // |got - expected| <= absolute + relative * |expected|, and NaN only where NaN is expected.
  void near(const char* what, int64_t index, double got, double expected, double absolute, double relative);
  void equal(const char* what, int64_t index, double got, double expected);  // bit for bit, -0 and +0 apart
  double relative_l2() const;
};
// Throws with the case's mismatches, if any.
void finish(const Comparison&);
void require(bool, const std::string& message);

// Reads cases, calls `run` for each, prints "run", then "ok" or "FAIL" lines; the process exit code is 1 if any failed.
int main_loop(int argc, char** argv, const std::function<void(const Case&)>& run);

}  // namespace driver
