// Runs the threads of a CUDA block as fibers, in an order drawn from a seed. A fiber runs until it waits (barrier, collective) or gives way;
// then a random ready one goes on. An empty ready list with unfinished threads is a deadlock, reported with what everybody waits for.
#include "runtime.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the fiber switch is written for x86-64"
#endif

// Saves the callee-saved registers on the old stack, takes them from the new one. Forty times cheaper than ucontext, and it is crossed at every barrier.
asm(R"(
.text
.globl cuda_host_switch
.type cuda_host_switch,@function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch,.-cuda_host_switch
)");
extern "C" void cuda_host_switch(void** save_sp, void* load_sp);

namespace cuda_host {

Options options;
Statistics statistics;
Position* position = nullptr;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif
constexpr int kMaxThreads = 1024;
constexpr int kBarriers = 16;

struct Copy {
  void* to;
  const void* from;
  int bytes, source_bytes;
};

struct Fiber {
  void* sp = nullptr;
  void* fake_stack = nullptr;
  char* stack = nullptr;
  Position where;
  int index = 0;
  bool finished = false;
  const char* waits_for = nullptr;  // null while ready or running
  size_t shared_taken = 0;
  std::vector<std::vector<Copy>> copy_groups;  // committed, oldest first
  std::vector<Copy> open_copies;
};

struct Rendezvous {
  const char* what = "";
  uint32_t mask = 0, arrived = 0;
  void* operands[32] = {};
};

struct Barrier {
  int expected = 0;
  std::vector<int> arrived;
  std::vector<Fiber*> waiting;
  memory::Meeting meeting;
};

struct Block {
  const char* kernel = "";
  size_t shared_bytes = 0;
  int threads = 0;
  int unfinished = 0;
  std::vector<Fiber> fibers;
  std::vector<Fiber*> ready;
  Barrier barriers[kBarriers + 1];              // the last is the block's own
  std::vector<std::vector<Rendezvous>> warps;  // open collectives of each warp
  void (*entry)(void*) = nullptr;
  void* closure = nullptr;
  void* main_sp = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
};
Block block;
Fiber* running = nullptr;
uint64_t random_state = 1;

void enter(void** save_sp, void** save_fake, Fiber* next) {
  running = next;
  position = next ? &next->where : nullptr;
  void* sp = next ? next->sp : block.main_sp;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save_fake, next ? next->stack : block.main_stack, next ? kStack : block.main_stack_bytes);
#endif
  cuda_host_switch(save_sp, sp);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(running ? running->fake_stack : block.main_fake_stack, nullptr, nullptr);
#endif
  (void)save_fake;
}

Fiber* draw_ready() {
  const size_t i = random_below(static_cast<unsigned>(block.ready.size()));
  std::swap(block.ready[i], block.ready.back());
  Fiber* f = block.ready.back();
  block.ready.pop_back();
  return f;
}

void report_deadlock() {
  std::map<std::string, std::string> states;
  for (int i = 0; i < block.threads; ++i) {
    const Fiber& f = block.fibers[i];
    std::string& threads = states[f.finished ? "finished" : std::string("waiting at ") + f.waits_for];
    threads += (threads.empty() ? "" : " ") + std::to_string(i);
  }
  std::string text;
  for (const auto& [state, threads] : states) text += "\n    " + state + ": threads " + threads;
  fail("deadlock: no thread can go on%s", text.c_str());
}

// Leaves the running fiber, which is either in the ready list, or registered with whoever will wake it, or finished.
void leave() {
  Fiber* me = running;
  if (block.ready.empty()) {
    if (block.unfinished > 0) report_deadlock();
    enter(&me->sp, nullptr, nullptr);  // the null fake stack tells the sanitizer that this fiber is gone
    return;
  }
  Fiber* next = draw_ready();
  if (next == me) return;
  enter(&me->sp, me->finished ? nullptr : &me->fake_stack, next);
}

void wait_for(const char* what) {
  running->waits_for = what;
  leave();
}

void wake(Fiber* f) {
  f->waits_for = nullptr;
  block.ready.push_back(f);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  const void* from;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &from, &bytes);
  if (!block.main_stack) block.main_stack = from, block.main_stack_bytes = bytes;
#endif
  block.entry(block.closure);
  if (!running->copy_groups.empty() || !running->open_copies.empty()) fail("the thread ends with asynchronous copies that nobody waited for");
  running->finished = true;
  --block.unfinished;
  leave();
  __builtin_unreachable();
}

void prepare(Fiber& f) {
  if (!f.stack) {
    void* p = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no memory for a fiber's stack");
    f.stack = static_cast<char*>(p);
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(f.stack, kStack);
#endif
  // A function is entered with rsp = 8 mod 16, as after a call.
  void** top = reinterpret_cast<void**>(f.stack + kStack) - 2;
  *top = reinterpret_cast<void*>(&fiber_main);
  f.sp = top - 6;
  std::fill(static_cast<void**>(f.sp), top, nullptr);
  f.fake_stack = nullptr;
  f.finished = false;
  f.waits_for = nullptr;
  f.shared_taken = 0;
  f.copy_groups.clear();
  f.open_copies.clear();
}

void run_block(Dim3 at, Dim3 grid, Dim3 dim) {
  block.unfinished = block.threads;
  block.ready.clear();
  for (Barrier& b : block.barriers) b = {};
  for (auto& w : block.warps) w.clear();
  memory::begin_block(block.threads);
  for (int i = 0; i < block.threads; ++i) {
    Fiber& f = block.fibers[i];
    prepare(f);
    f.index = i;
    f.where = {Dim3(i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y)), at, dim, grid};
    block.ready.push_back(&f);
  }
  enter(&block.main_sp, &block.main_fake_stack, draw_ready());
  for (int i = 0; i < kBarriers; ++i)
    if (!block.barriers[i].arrived.empty()) fail("the block ends with %zu of %d threads at barrier %d", block.barriers[i].arrived.size(), block.barriers[i].expected, i);
}

void deliver(const std::vector<Copy>& copies) {
  for (const Copy& c : copies) {
    memory::end_flight(c.to, c.bytes);
    std::memcpy(c.to, c.from, c.source_bytes);
    std::memset(static_cast<char*>(c.to) + c.source_bytes, 0, c.bytes - c.source_bytes);
  }
}

std::string thread_list(uint32_t lanes) {
  std::string s;
  for (int l = 0; l < 32; ++l)
    if (lanes >> l & 1) s += " " + std::to_string(l);
  return s;
}

}  // namespace

unsigned random_below(unsigned n) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<unsigned>((random_state >> 33) % n);
}

int running_thread() { return running ? running->index : -1; }

void maybe_preempt(unsigned one_in) {
  if (!one_in || !running || random_below(one_in)) return;
  block.ready.push_back(running);
  leave();
}

void fail(const char* format, ...) {
  std::fflush(stdout);
  std::fprintf(stderr, "cuda_host: ");
  va_list args;
  va_start(args, format);
  std::vfprintf(stderr, format, args);
  va_end(args);
  if (running) {
    const Position& p = running->where;
    std::fprintf(
        stderr, "\n  in block (%u, %u, %u), thread (%u, %u, %u), seed %llu, launched by %s", p.block.x, p.block.y, p.block.z, p.thread.x, p.thread.y, p.thread.z,
        static_cast<unsigned long long>(options.seed), block.kernel);
  }
  std::fprintf(stderr, "\n");
  std::fflush(stderr);
  _exit(70);
}

void run(const char* name, Dim3 grid, Dim3 dim, size_t shared_bytes, void (*entry)(void*), void* closure) {
  if (running) fail("a launch inside a kernel");
  const uint64_t threads = uint64_t(dim.x) * dim.y * dim.z;
  block.kernel = name;
  if (threads < 1 || threads > kMaxThreads) fail("%llu threads in a block, launched by %s", static_cast<unsigned long long>(threads), name);
  if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535)
    fail("a grid of (%u, %u, %u), launched by %s", grid.x, grid.y, grid.z, name);
  if (shared_bytes > options.shared_limit) fail("%zu bytes of shared memory, launched by %s", shared_bytes, name);
  block.shared_bytes = shared_bytes;
  block.threads = static_cast<int>(threads);
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  block.warps.resize((threads + 31) / 32);
  block.entry = entry, block.closure = closure;
  random_state = options.seed * 0x9e3779b97f4a7c15ull | 1;

  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_below(static_cast<unsigned>(i))]);
  for (uint32_t b : order) run_block(Dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)), grid, dim);
  ++statistics.launches;
  statistics.blocks += blocks;
  statistics.threads += blocks * threads;
}

void* take_shared(size_t* cursor, size_t bytes) {
  constexpr size_t kGap = 128;
  const size_t at = *cursor;
  *cursor = at + (bytes + kGap - 1) / kGap * kGap + kGap;
  running->shared_taken += (bytes + 15) / 16 * 16;
  if (running->shared_taken > block.shared_bytes)
    fail("shared arrays take %zu bytes, the launch provided %zu", running->shared_taken, block.shared_bytes);
  return memory::take(at, bytes);
}

void note_shared_read(const void* p, int bytes) {
  if (!memory::in_arena(p)) fail("an instruction for shared memory was given another address");
  memory::access(p, bytes, false);
}

void check_alignment(const void* p, int bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail("%s: address %p is not aligned to %d bytes", what, p, bytes);
}

void sync_threads() {
  maybe_preempt(options.preempt_call);
  Barrier& b = block.barriers[kBarriers];
  b.waiting.push_back(running);
  if (static_cast<int>(b.waiting.size()) < block.threads) return wait_for("the block's barrier");
  memory::join_block();
  for (Fiber* f : b.waiting)
    if (f != running) wake(f);
  b.waiting.clear();
}

namespace {

void come_to_barrier(int id, int threads, bool waits) {
  maybe_preempt(options.preempt_call);
  if (id < 0 || id >= kBarriers || threads % 32) fail("barrier %d for %d threads", id, threads);
  Barrier& b = block.barriers[id];
  if (b.arrived.empty()) b.expected = threads;
  if (b.expected != threads) fail("barrier %d expects %d threads and %d at once", id, b.expected, threads);
  if (std::find(b.arrived.begin(), b.arrived.end(), running->index) != b.arrived.end()) fail("a thread comes to barrier %d again before the others have", id);
  b.arrived.push_back(running->index);
  memory::bring(b.meeting, running->index);
  if (waits) b.waiting.push_back(running);
  if (static_cast<int>(b.arrived.size()) < threads) return waits ? wait_for("a named barrier") : void();
  for (Fiber* f : b.waiting) {
    memory::learn(b.meeting, f->index);
    if (f != running) wake(f);
  }
  b = {};
}

}  // namespace

void named_barrier(int id, int threads) { come_to_barrier(id, threads, true); }
void arrive_at_barrier(int id, int threads) { come_to_barrier(id, threads, false); }

void collective(const char* what, uint32_t mask, void* operands, Compute compute) {
  maybe_preempt(options.preempt_call);
  const int warp = running->index / 32, lane = running->index % 32;
  if (!(mask >> lane & 1)) fail("%s: lane %d is not in its own mask %08x", what, lane, mask);
  auto& open = block.warps[warp];
  size_t at = open.size();
  for (size_t i = 0; i < open.size(); ++i) {
    if (!(open[i].mask & mask)) continue;
    if (std::strcmp(open[i].what, what) || open[i].mask != mask)
      fail(
          "the warp has diverged: lane %d is at %s with mask %08x, lanes%s at %s with mask %08x", lane, what, mask, thread_list(open[i].arrived).c_str(),
          open[i].what, open[i].mask);
    at = i;
  }
  if (at == open.size()) {
    open.emplace_back();
    open[at].what = what, open[at].mask = mask;
  }
  Rendezvous& r = open[at];
  r.arrived |= 1u << lane;
  r.operands[lane] = operands;
  if (r.arrived != mask) return wait_for(what);
  if (compute) compute(r.operands, mask);
  const Rendezvous done = r;
  open.erase(open.begin() + static_cast<long>(at));
  for (int l = 0; l < 32; ++l)
    if (l != lane && done.mask >> l & 1) wake(&block.fibers[warp * 32 + l]);
}

void sync_warp(uint32_t mask) {
  // The join is computed by the last lane to come, for all of them.
  static int lanes_of[32];
  collective("__syncwarp", mask, nullptr, [](void**, uint32_t m) {
    int n = 0;
    for (int l = 0; l < 32; ++l)
      if (m >> l & 1) lanes_of[n++] = running->index / 32 * 32 + l;
    memory::join(lanes_of, n);
  });
}

void copy_async(void* to, const void* from, int bytes, int source_bytes) {
  maybe_preempt(options.preempt_call);
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async of %d bytes", bytes);
  if (source_bytes < 0 || source_bytes > bytes) fail("cp.async of %d bytes from %d", bytes, source_bytes);
  check_alignment(to, bytes, "cp.async destination");
  if (source_bytes) check_alignment(from, bytes, "cp.async source");
  if (!memory::in_arena(to)) fail("cp.async into memory that is not shared");
  // Read now, so that a source out of bounds is reported where it is named; the data itself is taken when waited for.
  volatile unsigned char sink = 0;
  for (int i = 0; i < source_bytes; ++i) sink = static_cast<const unsigned char*>(from)[i];
  (void)sink;
  memory::access(to, bytes, true);
  std::memset(to, 0xff, bytes);
  memory::begin_flight(to, bytes);
  running->open_copies.push_back({to, from, bytes, source_bytes});
}

void commit_copies() {
  running->copy_groups.push_back(std::move(running->open_copies));
  running->open_copies.clear();
}

void wait_copies(int groups_left) {
  maybe_preempt(options.preempt_call);
  auto& groups = running->copy_groups;
  const size_t done = groups.size() > static_cast<size_t>(groups_left) ? groups.size() - groups_left : 0;
  for (size_t i = 0; i < done; ++i) deliver(groups[i]);
  groups.erase(groups.begin(), groups.begin() + static_cast<long>(done));
}

}  // namespace cuda_host
