// The pointwise half of the fused backward pass. With g the gradient of the pointwise pre-activation (grad times the derivative of the activation behind
// it) and z, m the depthwise pre-activation and its activation, both computed again from x:
//
//   separable_dz:     dz = (g x pointwise_weight) * derivative(z), a tile of pixels and a range of channels a block;
//   separable_dweight: partial sums of g^T x m over the tiles of a split, 64 output channels by 64 depthwise channels a block, and of g alone;
//   reduce_partials:  the splits, in order.
//
// Both producers of the forward pass serve here too (separable_producers.cuh); nothing is added atomically, so results repeat bit for bit.
#pragma once
#include "common/plan_separable_backward.h"
#include "separable_producers.cuh"

namespace fastconv::cuda {

struct SeparableBackwardArgs {
  SeparableArgs f;        // x, depthwise weights, tiles; its chunk is the 64 channels of a tile
  const void* grad;
  const void* z;          // output or input of the pointwise activation; null for the identity
  int64_t gn, gc, gh, gw;
  bool grad_vectors;      // eight channels of a pixel can be loaded as 16 bytes
  // separable_dz
  ActivationArgs derivative;  // of the depthwise activation
  MatrixArgs weight;      // (C*M, O)
  void* dz;
  int64_t zn, zc, zh, zw;
  int grad_chunk;         // output channels of the forward pass produced at a time, whole slabs
  // separable_dweight
  float* dweight;         // (splits, O, C*M), or null
  float* dbias;           // (splits, O), or null
  uint32_t tiles, split_tiles;
  FastDivision by_channel_tiles, by_row_tiles;
};

// The values of a thread replaced by the derivative there.
template <bool Fast, int Threads>
FASTCONV_DEVICE void derive_values(const ActivationArgs& a, float (&z)[8], float* scratch) {
  if (a.kind == Activation::relu || a.kind == Activation::relu6) {
    FASTCONV_UNROLL
    for (int i = 0; i < 8; ++i) z[i] = z[i] > 0.f && (a.kind == Activation::relu || z[i] < 6.f) ? 1.f : 0.f;
    return;
  }
  float* mine = scratch + threadIdx.x;
  FASTCONV_UNROLL
  for (int i = 0; i < 8; ++i) mine[i * Threads] = z[i];
  FASTCONV_NO_UNROLL
  for (int i = 0; i < 8; ++i) mine[i * Threads] = derivative_any<Fast>(a, mine[i * Threads]);
  FASTCONV_UNROLL
  for (int i = 0; i < 8; ++i) z[i] = mine[i * Threads];
}

// g of `channels` channels from `first` on, for the pixels whose offsets in grad are given, as slabs; zeros where there is no pixel or no channel.
template <class T, Layout L, int Threads, int Pixels>
FASTCONV_DEVICE void produce_gradient(const SeparableBackwardArgs& a, unsigned char* tile, const int64_t* offsets, int first, int slabs, float* scratch) {
  constexpr int kPer = kElements<T, 16>;
  FASTCONV_NO_UNROLL
  for (int u = threadIdx.x; u < slabs * 8 * Pixels; u += Threads) {
    const bool pixels_last = L == Layout::contiguous;  // what neighbouring lanes differ in
    const int p = pixels_last ? u % Pixels : u / 8 % Pixels, unit = pixels_last ? u / Pixels % 8 : u % 8, slab = u / (8 * Pixels);
    const int channel = first + slab * (kPer * 8) + unit * kPer;
    const int64_t offset = offsets[p];
    float g[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    if (offset >= 0 && channel < a.f.o) {
      const T* grad = static_cast<const T*>(a.grad) + offset + channel * a.gc;
      const T* z = static_cast<const T*>(a.z) + offset + channel * a.gc;
      float d[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
      if (L == Layout::channels_last && a.grad_vectors) {
        float v[kPer];
        unpack<T>(ptx::load<16>(grad), v);
        FASTCONV_UNROLL
        for (int i = 0; i < kPer; ++i) g[i] = v[i];
        if (a.z) unpack<T>(ptx::load<16>(z), v);
        FASTCONV_UNROLL
        for (int i = 0; i < kPer; ++i) d[i] = v[i];
      } else {
        FASTCONV_UNROLL
        for (int i = 0; i < kPer; ++i) {
          if (channel + i >= a.f.o) continue;
          g[i] = Element<T>::value(grad[i * a.gc]);
          if (a.z) d[i] = Element<T>::value(z[i * a.gc]);
        }
      }
      if (a.z) {
        derive_values<sizeof(T) == 2, Threads>(a.f.activation, d, scratch);
        FASTCONV_UNROLL
        for (int i = 0; i < kPer; ++i) g[i] *= d[i];
      }
    }
    float part[kPer];
    FASTCONV_UNROLL
    for (int i = 0; i < kPer; ++i) part[i] = g[i];
    const int row = pixels_last ? fragment_row(p) : p;
    *reinterpret_cast<Bytes<16>*>(tile + slab * (Pixels * kSlabBytes) + slab_offset(row, unit)) = pack<T, 16>(part);
  }
}

constexpr int kBackwardPixels = 64, kBackwardChannels = 64, kBackwardThreads = 128, kGradientStages = 3;
struct BackwardTile {
  static constexpr int kPixels = kBackwardPixels, kThreads = kBackwardThreads, kMarchers = kThreads / 32, kRowStages = kBackwardRowStages;
};

template <class M, Layout L, template <class, class> class ProducerOf>
struct DzBlock {
  using T = typename M::T;
  using Producer = ProducerOf<T, BackwardTile>;
  static constexpr bool kPixelRows = L == Layout::channels_last;
  static constexpr int kThreads = kBackwardThreads, kM = 2;  // warps 2 x 2, each 32 x 32
  static constexpr int kSlab = kSlabBytes / static_cast<int>(sizeof(T)), kStage = kBackwardChannels * kSlabBytes;
  static constexpr int kChannelSlabs = kBackwardChannels / kSlab;

  const SeparableBackwardArgs& a;
  TileAt at;
  Chunk chunk;  // z of the tile
  unsigned char *gradient, *ring;
  int64_t *from, *to;
  float* staging;
  int row, column;
  float acc[kM][4][4];

  FASTCONV_DEVICE explicit DzBlock(const SeparableBackwardArgs& args) : a(args), at(tile_at(args.f, blockIdx.x, args.f.middle)) {
    SharedCarver shared;
    const bool derive = a.derivative.kind != Activation::identity;
    // First, for the alignment that producers ask for.
    chunk.tile = shared.take<unsigned char>(derive ? kChannelSlabs * kBackwardPixels * kSlabBytes : 0);
    gradient = shared.take<unsigned char>((a.grad_chunk + kSlab - 1) / kSlab * (kBackwardPixels * kSlabBytes));
    ring = shared.take<unsigned char>(kGradientStages * kStage);
    from = shared.take<int64_t>(kBackwardPixels);
    to = shared.take<int64_t>(kBackwardPixels);
    staging = kPixelRows ? nullptr : shared.take<float>(kThreads * 16);
    chunk.rows = derive ? shared.take<unsigned char>(Producer::kRowBytes) : nullptr;
    chunk.weights = Producer::kStaged && derive ? shared.take<float>(weight_pitch(a.f.chunk) * a.f.kh * a.f.kw) : nullptr;
    chunk.scratch = a.f.smooth ? shared.take<float>(kThreads * kScratchValues) : nullptr;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    row = warp / 2 * 32, column = warp % 2 * 32;
    for (int p = threadIdx.x; p < kBackwardPixels; p += kThreads) {
      from[p] = pixel_offset(a.f, at, p, a.gn, a.gh, a.gw);
      to[p] = pixel_offset(a.f, at, p, a.zn, a.zh, a.zw);
    }
    sync_threads();
  }

  // The derivative at z of eight channels of a tile's row.
  FASTCONV_DEVICE void derivative_at(int tile_row, int channel, float (&d)[8]) {
    constexpr int kPer = kElements<T, 16>;
    FASTCONV_UNROLL
    for (int i = 0; i < 8; i += kPer) {
      const int byte = (channel + i) * static_cast<int>(sizeof(T));
      float v[kPer];
      unpack<T>(*reinterpret_cast<const Bytes<16>*>(chunk.tile + byte / kSlabBytes * (kBackwardPixels * kSlabBytes) + slab_offset(tile_row, byte / 16 % 8)), v);
      FASTCONV_UNROLL
      for (int k = 0; k < kPer; ++k) d[i + k] = v[k];
    }
    derive_values<sizeof(T) == 2, kThreads>(a.derivative, d, chunk.scratch);
  }

  FASTCONV_DEVICE void finish(int first) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool derive = a.derivative.kind != Activation::identity;
    constexpr int kPer = kElements<T, 16>;
    if constexpr (kPixelRows) {
      const int channel = first + column + t * 8;
      if (channel >= at.last_o) return;
      FASTCONV_UNROLL
      for (int m = 0; m < 2 * kM; ++m) {
        const int p = row + m * 8 + g;
        if (to[p] < 0) continue;
        float v[8];
        FASTCONV_UNROLL
        for (int i = 0; i < 8; ++i) v[i] = acc[m / 2][i / 2][m % 2 * 2 + i % 2];
        if (derive) {
          float d[8];
          derivative_at(p, column + t * 8, d);
          FASTCONV_UNROLL
          for (int i = 0; i < 8; ++i) v[i] *= d[i];
        }
        T* dz = static_cast<T*>(a.dz) + to[p] + channel;
        FASTCONV_UNROLL
        for (int i = 0; i < 8; i += kPer) {
          float part[kPer];
          FASTCONV_UNROLL
          for (int k = 0; k < kPer; ++k) part[k] = v[i + k];
          if (a.f.vectors) {
            ptx::store<16>(dz + i, pack<T, 16>(part));
          } else {
            FASTCONV_UNROLL
            for (int k = 0; k < kPer; ++k)
              if (channel + i + k < at.last_o) dz[i + k] = Element<T>::element(part[k]);
          }
        }
      }
    } else {
      // As in the forward pass: each lane ends up with its own pixel.
      float* mine = staging + threadIdx.x / 32 * 512;
      const int p = column + lane, tile_row = fragment_row(p);
      FASTCONV_UNROLL
      for (int m = 0; m < kM; ++m) {
        FASTCONV_UNROLL
        for (int h = 0; h < 2; ++h)
          FASTCONV_UNROLL
          for (int i = 0; i < 8; ++i) mine[(h * 8 + g) * 32 + ((t * 8 + i + h * 8 + g) & 31)] = acc[m][i / 2][h * 2 + i % 2];
        sync_warp();
        const int channel = row + m * 16;
        FASTCONV_NO_UNROLL
        for (int r = 0; r < 16; r += 8) {
          float d[8] = {1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f};
          // Nothing was produced for lanes without a pixel, nor for units beyond the last channel.
          if (derive && to[p] >= 0 && first + channel + r < at.last_o) derivative_at(tile_row, channel + r, d);
          FASTCONV_UNROLL
          for (int i = 0; i < 8; ++i) {
            const int c = first + channel + r + i;
            if (to[p] >= 0 && c < at.last_o) static_cast<T*>(a.dz)[to[p] + c * a.zc] = Element<T>::element(mine[(r + i) * 32 + ((lane + r + i) & 31)] * d[i]);
          }
        }
        sync_warp();
      }
    }
  }

  FASTCONV_DEVICE void run() {
    const bool derive = a.derivative.kind != Activation::identity;
    const int slabs = (a.f.o + kSlab - 1) / kSlab, chunk_slabs = (a.grad_chunk + kSlab - 1) / kSlab;
    const int last_steps = ((a.f.o - 1) % kSlab * static_cast<int>(sizeof(T)) + kStepBytes) / kStepBytes;
    int copy_first = at.first_o, copy_slab_index = 0, copy_stage = 0;
    const auto copy_next = [&] {
      if (copy_first < at.last_o) {
        copy_slab<kBackwardChannels, kThreads, kPixelRows>(ring + copy_stage * kStage, a.weight, sizeof(T), copy_first, copy_slab_index);
        if (++copy_slab_index == slabs) copy_slab_index = 0, copy_first += kBackwardChannels;
        if (++copy_stage == kGradientStages) copy_stage = 0;
      }
      ptx::commit_copies();
    };
    FASTCONV_UNROLL
    for (int s = 0; s < kGradientStages - 1; ++s) copy_next();

    const ProductLane lane = product_lane<M>(row, column);
    int stage = 0;
    bool produced = false;
    FASTCONV_NO_UNROLL
    for (int first = at.first_o; first < at.last_o; first += kBackwardChannels) {
      if (derive) {
        sync_threads();
        chunk.first = first;
        Producer::produce(a.f, at, chunk);
      }
      FASTCONV_UNROLL
      for (int i = 0; i < kM * 16; ++i) acc[i / 16][i / 4 % 4][i % 4] = 0.f;
      FASTCONV_NO_UNROLL
      for (int slab = 0, in_chunk = 0; slab < slabs; ++slab, ++in_chunk) {
        if (in_chunk == chunk_slabs) in_chunk = 0;
        if (in_chunk == 0 && (!produced || chunk_slabs < slabs)) {
          sync_threads();
          produce_gradient<T, L, kThreads, kBackwardPixels>(
              a, gradient, from, slab * kSlab, chunk_slabs < slabs - slab ? chunk_slabs : slabs - slab, chunk.scratch);
          produced = true;
        }
        ptx::wait_copies<kGradientStages - 2>();
        sync_threads();
        copy_next();
        const unsigned char* pixels = gradient + in_chunk * (kBackwardPixels * kSlabBytes);
        const unsigned char* channels = ring + stage * kStage;
        multiply_slab<M>(acc, kPixelRows ? pixels : channels, kPixelRows ? channels : pixels, lane, slab == slabs - 1 ? last_steps : kSteps);
        if (++stage == kGradientStages) stage = 0;
      }
      finish(first);
    }
    ptx::wait_copies<0>();
  }
};

template <class M, Layout L, template <class, class> class ProducerOf>
FASTCONV_KERNEL(kBackwardThreads, 2) separable_dz(SeparableBackwardArgs a) {
  DzBlock<M, L, ProducerOf> block(a);
  block.run();
}

// acc += rows^T x columns over the pixels of two tiles, both [pixel][channel]. acc[m][n][2h + i] is channel 16m + 8h + g of one, 8n + 2t + i of the other.
template <class M>
FASTCONV_DEVICE void multiply_tiles(float (&acc)[2][4][4], const unsigned char* rows, const unsigned char* columns, int row, int column) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(typename M::T) == 2) {
    FASTCONV_UNROLL
    for (int k = 0; k < kBackwardPixels; k += 16) {
      uint32_t a[2][4], b[2][4];
      FASTCONV_UNROLL
      for (int m = 0; m < 2; ++m) ptx::load_matrices_transposed(a[m], rows + slab_offset(k + lane / 16 * 8 + lane % 8, row / 8 + m * 2 + lane / 8 % 2));
      FASTCONV_UNROLL
      for (int n = 0; n < 2; ++n) ptx::load_matrices_transposed(b[n], columns + slab_offset(k + lane / 8 % 2 * 8 + lane % 8, column / 8 + n * 2 + lane / 16));
      FASTCONV_UNROLL
      for (int m = 0; m < 2; ++m)
        FASTCONV_UNROLL
        for (int n = 0; n < 4; ++n) M::multiply(acc[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
  } else {
    // Transposed 8 x 8 loads exist for 16-bit elements only: floats are read one by one.
    const int g = lane / 4, t = lane % 4;
    const auto at = [](const unsigned char* tile, int p, int channel) {
      return *reinterpret_cast<const float*>(tile + channel / 32 * (kBackwardPixels * kSlabBytes) + slab_offset(p, channel / 4 % 8) + channel % 4 * 4);
    };
    if constexpr (M::kTensor) {
      FASTCONV_NO_UNROLL
      for (int k = 0; k < kBackwardPixels; k += 8) {
        // The order of the summed pixels is free: with 2t + j instead of t + 4j, the lanes of a load cover all 32 banks.
        uint32_t a[2][4], b[4][2];
        FASTCONV_UNROLL
        for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = ptx::float_to_tf32(at(rows, k + t * 2 + i % 4 / 2, row + i / 4 * 16 + i % 2 * 8 + g));
        FASTCONV_UNROLL
        for (int i = 0; i < 8; ++i) b[i / 2][i % 2] = ptx::float_to_tf32(at(columns, k + t * 2 + i % 2, column + i / 2 * 8 + g));
        FASTCONV_UNROLL
        for (int i = 0; i < 8; ++i) M::multiply(acc[i / 4][i % 4], a[i / 4], b[i % 4][0], b[i % 4][1]);
      }
      return;
    }
    FASTCONV_NO_UNROLL
    for (int p = 0; p < kBackwardPixels; ++p) {
      float a[4], b[8];
      FASTCONV_UNROLL
      for (int i = 0; i < 4; ++i) a[i] = at(rows, p, row + i * 8 + g);
      FASTCONV_UNROLL
      for (int i = 0; i < 8; ++i) b[i] = at(columns, p, column + i / 2 * 8 + t * 2 + i % 2);
      FASTCONV_UNROLL
      for (int i = 0; i < 32; ++i) acc[i / 16][i / 2 % 4][i / 8 % 2 * 2 + i % 2] += a[i / 8] * b[i % 8];
    }
  }
}

template <class M, Layout L, template <class, class> class ProducerOf>
FASTCONV_KERNEL(kBackwardThreads, 2) separable_dweight(SeparableBackwardArgs a) {
  using T = typename M::T;
  using Producer = ProducerOf<T, BackwardTile>;
  constexpr bool kPixelRows = L == Layout::channels_last;
  constexpr int kSlab = kSlabBytes / static_cast<int>(sizeof(T)), kSlabs = kBackwardChannels / kSlab, kTile = kSlabs * kBackwardPixels * kSlabBytes;
  uint32_t channel_tile, row_tile;
  const uint32_t split = a.by_row_tiles.divide(a.by_channel_tiles.divide(blockIdx.x, &channel_tile), &row_tile);
  const int first_row = static_cast<int>(row_tile) * kBackwardChannels, first_channel = static_cast<int>(channel_tile) * kBackwardChannels;

  SharedCarver shared;
  Chunk chunk;
  chunk.tile = shared.take<unsigned char>(kTile);  // first, for the alignment that producers ask for
  unsigned char* gradient = shared.take<unsigned char>(kTile);
  int64_t* offsets = shared.take<int64_t>(kBackwardPixels);
  chunk.rows = shared.take<unsigned char>(Producer::kRowBytes);
  chunk.weights = Producer::kStaged ? shared.take<float>(weight_pitch(a.f.chunk) * a.f.kh * a.f.kw) : nullptr;
  chunk.scratch = a.f.smooth ? shared.take<float>(kBackwardThreads * kScratchValues) : nullptr;
  chunk.first = first_channel;
  clear_spare_rows<kBackwardPixels, kBackwardThreads, !kPixelRows>(a.f, chunk.tile, kSlabs);

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32, row = warp / 2 * 32, column = warp % 2 * 32;
  float acc[2][4][4], bias_sum = 0.f;
  FASTCONV_UNROLL
  for (int i = 0; i < 32; ++i) acc[i / 16][i / 4 % 4][i % 4] = 0.f;
  const uint32_t end = (split + 1) * a.split_tiles < a.tiles ? (split + 1) * a.split_tiles : a.tiles;
  FASTCONV_NO_UNROLL
  for (uint32_t tile = split * a.split_tiles; tile < end; ++tile) {
    const TileAt at = tile_at(a.f, tile, a.f.middle);
    sync_threads();
    for (int p = threadIdx.x; p < kBackwardPixels; p += kBackwardThreads) offsets[p] = pixel_offset(a.f, at, p, a.gn, a.gh, a.gw);
    sync_threads();
    produce_gradient<T, L, kBackwardThreads, kBackwardPixels>(a, gradient, offsets, first_row, kSlabs, chunk.scratch);
    if (a.dweight) Producer::produce(a.f, at, chunk);
    sync_threads();
    if (a.dweight) multiply_tiles<M>(acc, gradient, chunk.tile, row, column);
    if (a.dbias && channel_tile == 0 && threadIdx.x < kBackwardChannels) {
      const int byte = static_cast<int>(threadIdx.x) * static_cast<int>(sizeof(T));
      const unsigned char* slab = gradient + byte / kSlabBytes * (kBackwardPixels * kSlabBytes) + byte % 16;
      FASTCONV_NO_UNROLL
      for (int p = 0; p < kBackwardPixels; ++p) bias_sum += Element<T>::value(*reinterpret_cast<const T*>(slab + slab_offset(p, byte / 16 % 8)));
    }
  }

  if (a.dbias && channel_tile == 0 && threadIdx.x < kBackwardChannels && first_row + static_cast<int>(threadIdx.x) < a.f.o)
    a.dbias[int64_t(split) * a.f.o + first_row + threadIdx.x] = bias_sum;
  if (!a.dweight) return;
  FASTCONV_UNROLL
  for (int i = 0; i < 32; ++i) {
    const int m = i / 16, n = i / 4 % 4, j = i % 4;
    const int o = first_row + row + m * 16 + j / 2 * 8 + lane / 4, c = first_channel + column + n * 8 + lane % 4 * 2 + j % 2;
    if (o < a.f.o && c < a.f.middle) a.dweight[(int64_t(split) * a.f.o + o) * a.f.middle + c] = acc[m][n][j];
  }
}

// out[i] = the sum over splits of partials[split][i], first to last.
template <class T>
FASTCONV_KERNEL(256, 1) reduce_partials(const float* partials, void* out, int64_t count, int splits) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  float sum = 0.f;
  FASTCONV_NO_UNROLL
  for (int s = 0; s < splits; ++s) sum += partials[s * count + i];
  static_cast<T*>(out)[i] = Element<T>::element(sum);
}

}  // namespace fastconv::cuda
