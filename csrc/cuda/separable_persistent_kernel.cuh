// The fused depthwise-separable convolution by blocks that stay: one a multiprocessor, all pointwise weights in its shared memory, tiles of 64 pixels one
// after another. For channel counts whose weights would otherwise be as much traffic as the pixels (separable_kernel.cuh reads them once for 128 pixels).
//
// Half of the warps march (separable_producers.cuh), the other half multiply, at the same time. Slabs of 64 depthwise channels of a tile pass from the ones
// to the others through a ring of slots, in the order of tiles and channels. A slot has two named barriers: at `full` those that march it arrive and those
// that multiply wait; at `free` it is the other way round. A barrier cannot tell one turn of its slot from the next, so the same warps march a slot every time:
// as many warps march as divide the units of all slots. Nobody waits for the whole block after the first instructions.
#pragma once
#include "separable_producers.cuh"
#include "separable_sums.cuh"

namespace fastconv::cuda {

struct PersistentArgs : SeparableArgs {
  int tiles, slots, steps, marchers;  // steps: of 32 bytes, of a row of weights
  FastDivision by_slots, by_tile_units, by_slab_units;

  PersistentArgs(const SeparableForward& p, const SeparablePlan& plan, const void* packed_weight);
};

template <class M, TileForm Form>
struct PersistentBlock {
  using T = typename M::T;
  struct Tile {
    static constexpr int kPixels = tile_shape(Form).pixels, kThreads = tile_shape(Form).threads, kMarchers = march_warps(Form), kRowStages = tile_shape(Form).row_stages;
  };
  using Producer = RingPixels<T, 3, 1, Tile>;
  using Unit = typename Producer::Unit;
  static constexpr int kPixels = Tile::kPixels, kChannels = tile_shape(Form).channels, kThreads = Tile::kThreads, kMultipliers = kThreads / 32 - Tile::kMarchers;
  static constexpr int kWarpsAcross = kChannels / 32, kWarpsDown = kMultipliers / kWarpsAcross, kM = kPixels / 16 / kWarpsDown;
  static constexpr int kSlot = kPixels * kSlabBytes, kSlab = kSlabBytes / static_cast<int>(sizeof(T)), kStep = kChannels * kStepBytes;
  static_assert(kWarpsAcross * kWarpsDown == kMultipliers && kM * 16 * kWarpsDown == kPixels);
  using Weights = InSteps<kChannels>;

  const PersistentArgs& a;
  unsigned char *weights, *slots, *rows;
  int64_t* offsets;  // of the pixels of this tile and of the next
  float *bias, *scratch;
  int tiles, slabs;  // of this block; of a tile

  FASTCONV_DEVICE explicit PersistentBlock(const PersistentArgs& args) : a(args) {
    SharedCarver shared;
    slots = shared.take<unsigned char>(a.slots * kSlot);  // first, for the alignment that producers ask for
    weights = shared.take<unsigned char>(a.steps * kStep);
    rows = shared.take<unsigned char>(Producer::kRowBytes);
    offsets = shared.take<int64_t>(2 * kPixels);
    bias = shared.take<float>(kChannels);
    scratch = a.smooth ? shared.take<float>(kThreads * kScratchValues) : nullptr;
    tiles = (a.tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
    slabs = (a.middle + kSlab - 1) / kSlab;
  }

  FASTCONV_DEVICE TileAt tile(int index) const { return tile_at(a, blockIdx.x + static_cast<uint32_t>(index) * gridDim.x, a.o); }

  FASTCONV_DEVICE int slab_units() const { return static_cast<int>(a.by_slab_units.divisor); }
  FASTCONV_DEVICE int full(int slot) const { return 1 + slot; }
  FASTCONV_DEVICE int free(int slot) const { return 1 + a.slots + slot; }
  FASTCONV_DEVICE int meeting() const { return (kMultipliers + slab_units()) * 32; }

  // ---- warps that march --------------------------------------------------------------------------------------------------------
  // The units of all tiles: slab after slab, so that the first slab of a tile is complete first.
  struct Units {
    const PersistentBlock& block;

    FASTCONV_DEVICE int step() const { return block.a.marchers; }
    FASTCONV_DEVICE int count() const { return block.tiles * static_cast<int>(block.a.by_tile_units.divisor); }
    FASTCONV_DEVICE TileAt at(int index) const {
      uint32_t rest;
      return block.tile(static_cast<int>(block.a.by_tile_units.divide(static_cast<uint32_t>(index), &rest)));
    }
    FASTCONV_DEVICE Unit unit(int index) const {
      uint32_t in_tile, in_slab, column_group;
      block.a.by_tile_units.divide(static_cast<uint32_t>(index), &in_tile);
      const uint32_t slab = block.a.by_slab_units.divide(in_tile, &in_slab), strip = block.a.by_units_x.divide(in_slab, &column_group);
      return Producer::unit_of(block.a, static_cast<int>(slab) * kSlab, column_group, strip);
    }
    FASTCONV_DEVICE int channel(const Unit& u) const { return u.channel; }
  };

  FASTCONV_DEVICE void march(int warp) const {
    const Units units{*this};
    Chunk chunk{slots, rows, nullptr, scratch, 0};
    const ptx::SharedAddress ring = Producer::warp_ring(chunk, warp);
    typename Producer::template Feed<Units> feed(a, units, warp, ring);
    feed.start();
    typename Producer::Slots place;
    FASTCONV_NO_UNROLL
    for (int index = warp; index < units.count(); index += a.marchers) {
      uint32_t rest, slot;
      const uint32_t round = a.by_slots.divide(a.by_slab_units.divide(static_cast<uint32_t>(index), &rest), &slot);
      Unit u = units.unit(index);
      chunk.tile = slots + slot * kSlot, chunk.first = u.channel, u.channel = 0;
      if (round > 0) ptx::named_barrier(free(static_cast<int>(slot)), meeting());
      Producer::march(a, chunk, u, feed, ring, place);
      ptx::arrive_at_barrier(full(static_cast<int>(slot)), meeting());
    }
    ptx::wait_copies<0>();
  }

  // ---- warps that multiply -----------------------------------------------------------------------------------------------------
  FASTCONV_DEVICE void copy_weights(int warp) const {
    const int lane = threadIdx.x % 32;
    FASTCONV_NO_UNROLL
    for (int row = warp; row < kChannels; row += kMultipliers) {
      const int from = fragment_row(row);
      FASTCONV_NO_UNROLL
      for (int unit = lane; unit < a.steps * 2; unit += 32) {
        const bool valid = from < a.weight.rows && unit * 16 < a.weight.depth;
        const unsigned char* source = static_cast<const unsigned char*>(a.weight.data) + (valid ? from * a.weight.pitch * static_cast<int64_t>(sizeof(T)) + unit * 16 : 0);
        ptx::copy_async<16>(weights + unit / 2 * kStep + Weights::offset(row, unit % 2), source, valid);
      }
    }
    ptx::commit_copies();
  }

  FASTCONV_DEVICE void multiply(int warp) const {
    copy_weights(warp);
    const int lane = threadIdx.x % 32, row = warp / kWarpsAcross * (kM * 16), column = warp % kWarpsAcross * 32;
    const ProductLane at{product_lane<M>(row, 0).rows, Weights::offset(column + lane / 16 * 8 + lane % 8, lane / 8 % 2)};
    const int last_steps = a.steps - (slabs - 1) * kSteps;
    int left = tiles * slabs - a.slots, slot = 0;  // left: slabs that wait for a slot to be free
    const Bytes<16>* my_bias = reinterpret_cast<const Bytes<16>*>(bias + column + lane % 4 * 8);
    // The first barrier hands everybody's part of the weights to all.
    ptx::wait_copies<0>();
    float acc[kM][4][4];
    FASTCONV_NO_UNROLL
    for (int index = 0; index < tiles; ++index) {
      // Written for all before the first slab's barrier; the other half is read until everybody has passed that barrier.
      int64_t* to = offsets + index % 2 * kPixels;
      if (threadIdx.x < kPixels) to[threadIdx.x] = pixel_offset(a, tile(index), threadIdx.x, a.on, a.oh, a.ow);
      start_pixels(acc, [&](int i) { return ptx::bits_to_float(my_bias[i / 4].word[i % 4]); });
      int slab = 0;
      FASTCONV_NO_UNROLL
      do {
        ptx::named_barrier(full(slot), meeting());
        multiply_slab<M, Weights>(acc, slots + slot * kSlot, weights + slab * (kSteps * kStep), at, slab == slabs - 1 ? last_steps : kSteps);
        if (left-- > 0) ptx::arrive_at_barrier(free(slot), meeting());
        if (++slot == a.slots) slot = 0;
      } while (++slab < slabs);
      finish_pixels<M, kThreads>(a, acc, to + row, column, a.o, scratch);
    }
  }

  FASTCONV_DEVICE void run() const {
    clear_spare_rows<kPixels, kThreads, false>(a, slots, a.slots);
    if (threadIdx.x < kChannels) bias[threadIdx.x] = bias_at<T>(a, threadIdx.x);
    sync_threads();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (warp < kMultipliers) {
      multiply(warp);
    } else if (warp - kMultipliers < a.marchers) {
      march(warp - kMultipliers);
    }
  }
};

template <class M, TileForm Form>
FASTCONV_KERNEL(tile_shape(Form).threads, 1) separable_persistent(PersistentArgs a) {
  const PersistentBlock<M, Form> block(a);
  block.run();
}

}  // namespace fastconv::cuda
