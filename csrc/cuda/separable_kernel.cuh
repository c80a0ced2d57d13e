// The fused depthwise-separable convolution. A block takes a tile of pixels and a range of output channels:
//
//   1. it computes the depthwise part of the tile, bias and activation included, into shared memory (separable_producers.cuh), for all channels where
//      they fit;
//   2. it walks its output channels in tiles, streaming the pointwise weights through a ring of asynchronous copies, and multiplies on the tensor cores
//      (product.cuh). Sums start from the bias; residual and activation are applied to them in registers, and each lane stores 16 bytes.
//
// The intermediate never leaves the chip. Two blocks of a multiprocessor overlap their phases. Where the channels do not fit, the two phases alternate
// over chunks of channels, and a block with more output channels than a tile recomputes its depthwise part.
#pragma once
#include "separable_producers.cuh"
#include "separable_sums.cuh"

namespace fastconv::cuda {

// A form of the plan as a type; K of the depthwise kernel, 0 where it does not matter.
template <TileForm Form, int K = 0>
struct SeparableTile {
  static constexpr TileShape kShape = tile_shape(Form);
  static constexpr int kPixels = kShape.pixels, kChannels = kShape.channels, kThreads = kShape.threads, kBlocks = tile_blocks(Form, K);
  static constexpr int kMarchers = march_warps(Form);
  static constexpr int kWeightStages = kShape.weight_stages, kRowStages = kShape.row_stages;
  static constexpr bool kResident = kShape.resident;
};

template <class M, Layout L, template <class, class> class ProducerOf, class Tile>
struct SeparableBlock {
  using T = typename M::T;
  using Producer = ProducerOf<T, Tile>;
  static constexpr bool kPixelRows = L == Layout::channels_last;  // which operand pixels are
  static constexpr int kPixels = Tile::kPixels, kChannels = Tile::kChannels, kThreads = Tile::kThreads;
  static constexpr int kRows = kPixelRows ? kPixels : kChannels, kColumns = kPixelRows ? kChannels : kPixels;
  static constexpr int kWarpsAcross = kColumns / 32, kWarpsDown = kThreads / 32 / kWarpsAcross, kM = kRows / 16 / kWarpsDown;
  static constexpr int kSlab = kSlabBytes / static_cast<int>(sizeof(T)), kStage = kChannels * kSlabBytes;
  static_assert(kWarpsDown * kWarpsAcross * 32 == kThreads && kM * 16 * kWarpsDown == kRows);
  static constexpr int kWeightStages = Tile::kWeightStages;
  // A resident tile is complete before the product begins: rows of input pass through the memory of the weights, the last stages of which wait for it.
  static constexpr int kRing = ring_bytes(kWeightStages * kStage, Producer::kRowBytes, Tile::kResident);
  static constexpr int kEarlyStages = early_stages(kWeightStages, kStage, kRing, Producer::kRowBytes);

  const SeparableArgs& a;
  TileAt at;
  Chunk chunk;
  unsigned char* ring;
  int64_t* offsets;  // of the tile's pixels
  float* staging;    // contiguous: 16 channels of 32 pixels for each warp
  int row, column;   // first of the warp's part of a tile
  float acc[kM][4][4];

  FASTCONV_DEVICE explicit SeparableBlock(const SeparableArgs& args) : a(args), at(tile_at(args, blockIdx.x, args.o)) {
    SharedCarver shared;
    const int slabs = (a.chunk + kSlab - 1) / kSlab;
    chunk.tile = shared.take<unsigned char>(slabs * kPixels * kSlabBytes);
    ring = shared.take<unsigned char>(kRing);
    chunk.rows = ring + (kRing - Producer::kRowBytes);
    offsets = shared.take<int64_t>(kPixels);
    staging = kPixelRows ? nullptr : shared.take<float>(kThreads * 16);
    chunk.weights = Producer::kStaged ? shared.take<float>(weight_pitch(a.chunk) * a.kh * a.kw) : nullptr;
    chunk.scratch = a.smooth ? shared.take<float>(kThreads * kScratchValues) : nullptr;

    const int warp = static_cast<int>(threadIdx.x) / 32;
    row = warp / kWarpsAcross * (kM * 16), column = warp % kWarpsAcross * 32;
    for (int p = threadIdx.x; p < kPixels; p += kThreads) offsets[p] = pixel_offset(a, at, p, a.on, a.oh, a.ow);
    clear_spare_rows<kPixels, kThreads, !kPixelRows>(a, chunk.tile, slabs);
  }

  FASTCONV_DEVICE void produce(int first) {
    chunk.first = first;
    Producer::produce(a, at, chunk);
  }

  FASTCONV_DEVICE void start_sums(int first_o) {
    if constexpr (kPixelRows) {
      const int first = first_o + column + static_cast<int>(threadIdx.x) % 4 * 8;
      start_pixels(acc, [&](int i) { return bias_at<T>(a, first + i); });
    } else {
      FASTCONV_UNROLL
      for (int i = 0; i < 2 * kM; ++i) {
        const float bias = bias_at<T>(a, first_o + row + i * 8 + static_cast<int>(threadIdx.x) % 32 / 4);
        FASTCONV_UNROLL
        for (int n = 0; n < 8; ++n) acc[i / 2][n / 2][i % 2 * 2 + n % 2] = bias;
      }
    }
  }

  FASTCONV_DEVICE void finish(int first_o) {
    if constexpr (kPixelRows) {
      finish_pixels<M, kThreads>(a, acc, offsets + row, first_o + column, at.last_o, chunk.scratch);
    } else {
      const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
      // Lanes of a fragment hold neighbouring pixels in eights; a pass through shared memory gives each lane its own pixel, so that a warp's stores
      // are neighbours whatever the alignment of the plane's rows. Row r of the staging is turned by r banks: lane 4g + t writes to bank 8t + g + const.
      float* mine = staging + threadIdx.x / 32 * 512;
      const int64_t offset = offsets[column + lane];
      FASTCONV_UNROLL
      for (int m = 0; m < kM; ++m) {
        FASTCONV_UNROLL
        for (int h = 0; h < 2; ++h)
          FASTCONV_UNROLL
          for (int i = 0; i < 8; ++i) mine[(h * 8 + g) * 32 + ((t * 8 + i + h * 8 + g) & 31)] = acc[m][i / 2][h * 2 + i % 2];
        sync_warp();
        const int first = first_o + row + m * 16;
        if (offset >= 0) {
          FASTCONV_NO_UNROLL
          for (int r = 0; r < 16 && first + r < at.last_o; ++r) {
            const int64_t to = offset + (first + r) * a.oc;
            float v[1] = {mine[r * 32 + ((lane + r) & 31)]};
            if (a.residual) v[0] += Element<T>::value(static_cast<const T*>(a.residual)[to]);
            activate_values<sizeof(T) == 2, kThreads>(a.activation, v, chunk.scratch);
            static_cast<T*>(a.out)[to] = Element<T>::element(v[0]);
          }
        }
        sync_warp();
      }
    }
  }

  FASTCONV_DEVICE void copy_weights(int first_o, int slab, int stage) {
    copy_slab<kChannels, kThreads, kPixelRows>(ring + stage * kStage, a.weight, sizeof(T), first_o, slab);
  }

  FASTCONV_DEVICE void run() {
    const int slabs = (a.middle + kSlab - 1) / kSlab, chunk_slabs = (a.chunk + kSlab - 1) / kSlab;
    const int last_steps = ((a.middle - 1) % kSlab * static_cast<int>(sizeof(T)) + kStepBytes) / kStepBytes;
    // The slabs of all tiles of output channels are one stream; these are the place to copy and the place to multiply.
    int copy_o = at.first_o, copy_slab_index = 0, copy_stage = 0;
    const auto copy_next = [&] {
      if (copy_o < at.last_o) {
        copy_weights(copy_o, copy_slab_index, copy_stage);
        if (++copy_slab_index == slabs) copy_slab_index = 0, copy_o += kChannels;
        if (++copy_stage == kWeightStages) copy_stage = 0;
      }
      ptx::commit_copies();
    };
    FASTCONV_UNROLL
    for (int s = 0; s < kEarlyStages; ++s) copy_next();
    if constexpr (Tile::kResident) produce(0);
    if constexpr (kEarlyStages < kWeightStages - 1) {
      sync_threads();
      FASTCONV_UNROLL
      for (int s = kEarlyStages; s < kWeightStages - 1; ++s) copy_next();
    }

    const ProductLane lane = product_lane<M>(row, column);
    int stage = 0;
    bool produced = Tile::kResident;
    FASTCONV_NO_UNROLL
    for (int first_o = at.first_o; first_o < at.last_o; first_o += kChannels) {
      start_sums(first_o);
      FASTCONV_NO_UNROLL
      for (int slab = 0, in_chunk = 0; slab < slabs; ++slab, ++in_chunk) {
        if constexpr (!Tile::kResident) {
          if (in_chunk == chunk_slabs) in_chunk = 0;
          if (in_chunk == 0 && (!produced || chunk_slabs < slabs)) {
            sync_threads();
            produce(slab * kSlab);
            produced = true;
          }
        }
        ptx::wait_copies<kWeightStages - 2>();
        sync_threads();
        copy_next();
        const unsigned char* pixels = chunk.tile + in_chunk * (kPixels * kSlabBytes);
        const unsigned char* channels = ring + stage * kStage;
        multiply_slab<M>(acc, kPixelRows ? pixels : channels, kPixelRows ? channels : pixels, lane, slab == slabs - 1 ? last_steps : kSteps);
        if (++stage == kWeightStages) stage = 0;
      }
      finish(first_o);
    }
    ptx::wait_copies<0>();
  }
};

template <class M, Layout L, template <class, class> class ProducerOf, class Tile>
FASTCONV_KERNEL(Tile::kThreads, Tile::kBlocks) separable_forward(SeparableArgs a) {
  SeparableBlock<M, L, ProducerOf, Tile> block(a);
  block.run();
}

}  // namespace fastconv::cuda
