// Shared memory of the running block. In the address-sanitizer build the gaps between arrays and copies in flight are poisoned. In the race
// build every access of plain kernel code arrives here (kernels are compiled with -fsanitize=thread, and this file stands in for its
// library) and is held against a shadow of each byte: who wrote it last, who read it since, was it ever written, is a copy in flight.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

namespace cuda_host::memory {
namespace {

constexpr size_t kArena = 512 * 1024;

struct Access {
  int16_t thread;
  uint16_t epoch;
};
constexpr int kReaders = 4;

// Entries of an older generation (before the last barrier of the block) are ordered before everything now.
struct Shadow {
  uint64_t write_generation, read_generation;
  uint64_t written_in_block;
  Access writer;
  Access reader[kReaders];
  int8_t readers;
  int16_t in_flight;  // thread + 1 of the copy's owner
};

unsigned char* memory_block = nullptr;
size_t taken_end = 0;  // of the block's arrays so far
bool watch = false;
std::vector<Shadow> shadow;
uint64_t generation = 1, block_serial = 0;

// Vector clocks within one generation, made when a thread first meets others short of the whole block.
int threads_now = 0;
std::vector<uint16_t> clocks;
std::vector<uint64_t> clock_generation;

uint16_t* clock_of(int t) {
  uint16_t* c = &clocks[static_cast<size_t>(t) * threads_now];
  if (clock_generation[t] != generation) {
    clock_generation[t] = generation;
    std::fill(c, c + threads_now, 0);
    c[t] = 1;
  }
  return c;
}

bool ordered(const Access& before, const uint16_t* clock, int me) { return before.thread == me || clock[before.thread] >= before.epoch; }

[[noreturn]] void report(const char* what, const void* p, int bytes, int other) {
  fail("%s: %d bytes at shared offset %td (physical), with thread %d", what, bytes, static_cast<const unsigned char*>(p) - memory_block, other);
}

}  // namespace

unsigned char* arena() {
  if (!memory_block) {
    void* p = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) fail("no memory for the shared arena");
    memory_block = static_cast<unsigned char*>(p);
  }
  return memory_block;
}

bool in_arena(const void* p) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p), begin = reinterpret_cast<uintptr_t>(memory_block);
  return at >= begin && at < begin + kArena;
}

void begin_block(int threads) {
  unsigned char* a = arena();
  UNPOISON(a, kArena);
  std::memset(a, 0xff, kArena);
  POISON(a, kArena);
  taken_end = 0;
  ++generation, ++block_serial;
  if (!watch) return;
  if (shadow.empty()) shadow.resize(kArena);
  threads_now = threads;
  clocks.resize(static_cast<size_t>(threads) * threads);
  clock_generation.assign(threads, 0);
}

void* take(size_t physical, size_t bytes) {
  if (physical + bytes > kArena) fail("the host's shared arena is too small for its gaps");
  // Only the first thread of a block opens an array: a later one would open copies in flight as well.
  if (physical >= taken_end) {
    UNPOISON(arena() + physical, bytes);
    taken_end = physical + bytes;
  }
  return arena() + physical;
}

void join_block() { ++generation; }

void join(const int* threads, int count) {
  if (!watch) return;
  Meeting meeting;
  for (int i = 0; i < count; ++i) bring(meeting, threads[i]);
  for (int i = 0; i < count; ++i) learn(meeting, threads[i]);
}

void bring(Meeting& meeting, int thread) {
  if (!watch) return;
  // What was known in an older generation is known to all.
  if (meeting.generation != generation) meeting.generation = generation, meeting.known.assign(threads_now, 0);
  uint16_t* c = clock_of(thread);
  for (int t = 0; t < threads_now; ++t) meeting.known[t] = std::max(meeting.known[t], c[t]);
  ++c[thread];
}

void learn(const Meeting& meeting, int thread) {
  if (!watch || meeting.generation != generation) return;
  uint16_t* c = clock_of(thread);
  for (int t = 0; t < threads_now; ++t) c[t] = std::max(c[t], meeting.known[t]);
}

void access(const void* p, int bytes, bool write) {
  const int me = running_thread();
  if (!watch || me < 0 || !in_arena(p)) return;
  const uint16_t* clock = clock_of(me);
  const size_t at = static_cast<const unsigned char*>(p) - memory_block;
  for (size_t i = at; i < at + bytes; ++i) {
    Shadow& s = shadow[i];
    if (s.in_flight) report(write ? "write over an asynchronous copy in flight" : "read of an asynchronous copy in flight", p, bytes, s.in_flight - 1);
    if (s.write_generation == generation && !ordered(s.writer, clock, me))
      report(write ? "race: write after an unordered write" : "race: read after an unordered write", p, bytes, s.writer.thread);
    const Access now{static_cast<int16_t>(me), clock[me]};
    if (write) {
      if (s.read_generation == generation)
        for (int r = 0; r < s.readers; ++r)
          if (!ordered(s.reader[r], clock, me)) report("race: write after an unordered read", p, bytes, s.reader[r].thread);
      s.writer = now;
      s.write_generation = generation;
      s.written_in_block = block_serial;
      s.readers = 0;
    } else {
      if (s.written_in_block != block_serial) report("read of shared memory that nobody wrote", p, bytes, me);
      if (s.read_generation != generation) s.read_generation = generation, s.readers = 0;
      int slot = 0;
      while (slot < s.readers && s.reader[slot].thread != me) ++slot;
      if (slot == kReaders) slot = static_cast<int>(random_below(kReaders));
      if (slot == s.readers) ++s.readers;
      s.reader[slot] = now;
    }
  }
  maybe_preempt(options.preempt_shared);
}

void begin_flight(void* p, int bytes) {
  if (bytes >= 8) POISON(p, bytes);
  if (!watch) return;
  const size_t at = static_cast<unsigned char*>(p) - memory_block;
  for (size_t i = at; i < at + bytes; ++i) shadow[i].in_flight = static_cast<int16_t>(running_thread() + 1);
}

void end_flight(void* p, int bytes) {
  UNPOISON(p, bytes);
  if (!watch) return;
  const size_t at = static_cast<unsigned char*>(p) - memory_block;
  for (size_t i = at; i < at + bytes; ++i) shadow[i].in_flight = 0;
  access(p, bytes, true);
}

}  // namespace cuda_host::memory

// ---- what -fsanitize=thread calls ------------------------------------------------------------------------------------------------
namespace {
inline void on_read(void* p, int n) { cuda_host::memory::access(p, n, false); }
inline void on_write(void* p, int n) { cuda_host::memory::access(p, n, true); }
}  // namespace

extern "C" {
void __tsan_init() { cuda_host::memory::watch = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read1(void* p) { on_read(p, 1); }
void __tsan_read2(void* p) { on_read(p, 2); }
void __tsan_read4(void* p) { on_read(p, 4); }
void __tsan_read8(void* p) { on_read(p, 8); }
void __tsan_read16(void* p) { on_read(p, 16); }
void __tsan_write1(void* p) { on_write(p, 1); }
void __tsan_write2(void* p) { on_write(p, 2); }
void __tsan_write4(void* p) { on_write(p, 4); }
void __tsan_write8(void* p) { on_write(p, 8); }
void __tsan_write16(void* p) { on_write(p, 16); }
void __tsan_unaligned_read2(void* p) { on_read(p, 2); }
void __tsan_unaligned_read4(void* p) { on_read(p, 4); }
void __tsan_unaligned_read8(void* p) { on_read(p, 8); }
void __tsan_unaligned_read16(void* p) { on_read(p, 16); }
void __tsan_unaligned_write2(void* p) { on_write(p, 2); }
void __tsan_unaligned_write4(void* p) { on_write(p, 4); }
void __tsan_unaligned_write8(void* p) { on_write(p, 8); }
void __tsan_unaligned_write16(void* p) { on_write(p, 16); }
void __tsan_read_range(void* p, unsigned long n) { on_read(p, static_cast<int>(n)); }
void __tsan_write_range(void* p, unsigned long n) { on_write(p, static_cast<int>(n)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
  on_read(const_cast<void*>(from), static_cast<int>(n));
  on_write(to, static_cast<int>(n));
  return __builtin_memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, unsigned long n) {
  on_write(to, static_cast<int>(n));
  return __builtin_memset(to, value, n);
}
}
