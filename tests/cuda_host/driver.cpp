#include "driver.h"

#include <sys/mman.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "cuda/ptx.cuh"
#include "runtime.h"

namespace driver {

Case::Case(const std::string& line) {
  std::istringstream in(line);
  std::string word;
  while (in >> word) {
    const size_t at = word.find('=');
    if (at == std::string::npos) throw std::runtime_error("a word without '=': " + word);
    words_[word.substr(0, at)] = word.substr(at + 1);
  }
}
int64_t Case::number(const std::string& key) const {
  const auto found = words_.find(key);
  if (found == words_.end()) throw std::runtime_error("the case has no " + key);
  return std::stoll(found->second);
}
int64_t Case::number(const std::string& key, int64_t otherwise) const { return words_.count(key) ? number(key) : otherwise; }
std::string Case::word(const std::string& key, const std::string& otherwise) const {
  const auto found = words_.find(key);
  return found == words_.end() ? otherwise : found->second;
}
DType Case::dtype() const {
  const std::string s = word("dtype", "f32");
  if (s == "f32") return DType::f32;
  if (s == "f16") return DType::f16;
  if (s == "bf16") return DType::bf16;
  if (s == "f64") return DType::f64;
  throw std::runtime_error("dtype " + s);
}
Layout Case::layout() const { return word("layout", "contiguous") == "channels_last" ? Layout::channels_last : Layout::contiguous; }
Activation Case::activation(const std::string& key) const {
  static const char* const names[] = {"identity", "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish"};
  const std::string s = word(key, "identity");
  for (int i = 0; i < 7; ++i)
    if (s == names[i]) return static_cast<Activation>(i);
  throw std::runtime_error("activation " + s);
}

double element_to_double(DType t, const void* p) {
  if (t == DType::f64) return *static_cast<const double*>(p);
  if (t == DType::f32) return *static_cast<const float*>(p);
  uint16_t u;
  std::memcpy(&u, p, 2);
  return t == DType::bf16 ? fastconv::ptx::bf16_to_float(u) : fastconv::ptx::f16_to_float(u);
}
void double_to_element(DType t, double v, void* p) {
  if (t == DType::f64) {
    *static_cast<double*>(p) = v;
  } else if (t == DType::f32) {
    *static_cast<float*>(p) = static_cast<float>(v);
  } else {
    const float f = static_cast<float>(v);
    const uint16_t u = static_cast<uint16_t>(t == DType::bf16 ? fastconv::ptx::bf16_bits(f) : fastconv::ptx::f16_bits(f));
    std::memcpy(p, &u, 2);
  }
}
double rounded(DType t, double v) {
  double space;
  double_to_element(t, v, &space);
  return element_to_double(t, &space);
}
double unit_roundoff(DType t) { return t == DType::f64 ? 0x1p-53 : t == DType::f32 ? 0x1p-24 : t == DType::f16 ? 0x1p-11 : 0x1p-8; }

uint64_t Random::bits() {
  state_ += 0x9e3779b97f4a7c15ull;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
double Random::normal() {
  // Sum of four uniforms: bounded tails keep tolerances simple.
  double s = 0;
  const uint64_t b = bits();
  for (int i = 0; i < 4; ++i) s += static_cast<double>(b >> 16 * i & 0xffff) / 65536.0;
  return (s - 2.0) * 1.7320508;
}

Memory::Memory(size_t bytes, size_t offset) : base_(nullptr), data_(nullptr), mapped_(0) {
  constexpr size_t kHuge = size_t(1) << 30;
  if (bytes + offset >= kHuge) {
    mapped_ = bytes + offset;
    void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::runtime_error("no address space");
    base_ = static_cast<unsigned char*>(p);
  } else {
    void* p = nullptr;
    if (posix_memalign(&p, 256, std::max<size_t>(bytes + offset, 1))) throw std::runtime_error("no memory");
    base_ = static_cast<unsigned char*>(p);
    std::memset(base_, 0xff, bytes + offset);
  }
  data_ = base_ + offset;
}
Memory::~Memory() {
  if (mapped_) {
    munmap(base_, mapped_);
  } else {
    std::free(base_);
  }
}

Map::Map(DType t, Layout l, int64_t n, int64_t c, int64_t h, int64_t w, int64_t offset_elements, int64_t image_stride)
    : dtype(t), layout(l), n(n), c(c), h(h), w(w) {
  sn = image_stride ? image_stride : c * h * w;
  sc = l == Layout::channels_last ? 1 : h * w;
  sh = l == Layout::channels_last ? w * c : w;
  sw = l == Layout::channels_last ? c : 1;
  const int64_t elements = n ? (n - 1) * sn + c * h * w : 0;
  memory_ = std::make_shared<Memory>(elements * element_bytes(t), offset_elements * element_bytes(t));
}
void Map::fill(Random& random, double scale) {
  fill([&](int64_t) { return random.normal() * scale; });
}
void Map::fill(const std::function<double(int64_t)>& value) {
  int64_t i = 0;
  for (int64_t in = 0; in < n; ++in)
    for (int64_t ic = 0; ic < c; ++ic)
      for (int64_t y = 0; y < h; ++y)
        for (int64_t x = 0; x < w; ++x) set(in, ic, y, x, value(i++));
}

Vector::Vector(DType t, int64_t length, int64_t offset_elements)
    : dtype(t), length(length), memory_(std::make_shared<Memory>(length * element_bytes(t), offset_elements * element_bytes(t))) {}
void Vector::fill(Random& random, double scale) {
  for (int64_t i = 0; i < length; ++i) double_to_element(dtype, random.normal() * scale, memory_->data() + i * element_bytes(dtype));
}

double activate(Activation a, double x) {
  switch (a) {
    case Activation::identity: return x;
    case Activation::relu: return x > 0 ? x : x != x ? x : 0;
    case Activation::relu6: return x > 6 ? 6 : x > 0 ? x : x != x ? x : 0;
    case Activation::silu: return x / (1 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::hardswish: return x * std::min(6.0, std::max(0.0, x + 3)) / 6;
  }
  return x;
}
double derivative(Activation a, double x) {
  switch (a) {
    case Activation::identity: return 1;
    case Activation::relu: return x > 0;
    case Activation::relu6: return x > 0 && x < 6;
    case Activation::silu: {
      const double s = 1 / (1 + std::exp(-x));
      return s * (1 + x * (1 - s));
    }
    case Activation::gelu: return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI);
    case Activation::gelu_tanh: {
      const double k = std::sqrt(2 / M_PI), t = std::tanh(k * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::hardswish: return x <= -3 ? 0 : x < 3 ? x / 3 + 0.5 : 1;
  }
  return 1;
}

void Comparison::near(const char* what, int64_t index, double got, double expected, double absolute, double relative) {
  ++count;
  const bool nan = got != got, expected_nan = expected != expected;
  if (!nan && !expected_nan && std::isfinite(expected)) {
    error2 += (got - expected) * (got - expected);
    reference2 += expected * expected;
  }
  const bool good = nan || expected_nan ? nan && expected_nan
                    : std::isinf(expected) ? got == expected
                                           : std::fabs(got - expected) <= absolute + relative * std::fabs(expected);
  if (good) return;
  if (!bad++) {
    std::ostringstream s;
    s.precision(9);
    s << what << "[" << index << "] is " << got << ", expected " << expected;
    first = s.str();
  }
}
void Comparison::equal(const char* what, int64_t index, double got, double expected) {
  near(what, index, got, expected, 0, 0);
  if (got == expected && std::signbit(got) != std::signbit(expected) && !bad++) first = std::string(what) + "[" + std::to_string(index) + "]: wrong sign of zero";
}
double Comparison::relative_l2() const { return std::sqrt(error2 / std::max(reference2, 1e-300)); }

void finish(const Comparison& c) {
  if (c.bad) throw std::runtime_error(std::to_string(c.bad) + " of " + std::to_string(c.count) + " wrong, relative L2 " + std::to_string(c.relative_l2()) + "; first: " + c.first);
}
void require(bool good, const std::string& message) {
  if (!good) throw std::runtime_error(message);
}

int main_loop(int argc, char** argv, const std::function<void(const Case&)>& run) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string key = argv[i];
    if (key == "--preempt-shared") cuda_host::options.preempt_shared = static_cast<unsigned>(std::atoi(argv[i + 1]));
  }
  int failed = 0;
  std::string line;
  const auto start = std::chrono::steady_clock::now();
  while (std::getline(std::cin, line)) {
    if (line.empty()) continue;
    std::printf("run %s\n", line.c_str());
    std::fflush(stdout);
    try {
      const Case c(line);
      cuda_host::options.seed = static_cast<uint64_t>(c.number("seed", 1));
      run(c);
      std::printf("ok\n");
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAIL %s\n", error.what());
    }
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf(
      "done: %d failed, %lld launches, %lld blocks, %lld threads, %.2f s\n", failed, static_cast<long long>(cuda_host::statistics.launches),
      static_cast<long long>(cuda_host::statistics.blocks), static_cast<long long>(cuda_host::statistics.threads), seconds);
  return failed ? 1 : 0;
}

}  // namespace driver
