// The first phase of the fused kernels: the depthwise part of a tile, written where the product reads it. A chunk of channels is kept as slabs of 128
// bytes of each pixel (product.cuh has the swizzle).
//
// RingPixels, RingPlanes: a thread owns a few channels and columns and marches down rows of the residue class. Every input row is loaded and
// converted once; it continues K-1 running sums, of which the oldest is then complete. Taps: any kernel, stride and multiplier.
#pragma once
#include "separable_tile.cuh"

namespace fastconv::cuda {

// The chunk being produced: `a.chunk` channels of the depthwise result from `first` on. Channels that do not exist are zeros.
struct Chunk {
  unsigned char* tile;
  unsigned char* rows;  // Producer::kRowBytes for rows on their way
  float* weights;  // room for the chunk's weights as floats, where the producer asks for it
  float* scratch;
  int first;
};

// Weights of a chunk as floats, channels innermost. The pitch spreads the taps of a channel over the banks while they are written.
FASTCONV_HOST_DEVICE int weight_pitch(int chunk) { return chunk + 4; }
template <class T, int Taps, int Threads>
FASTCONV_DEVICE void stage_weights(const SeparableArgs& a, const Chunk& chunk) {
  const T* from = static_cast<const T*>(a.depthwise_weight) + int64_t(chunk.first) * Taps;
  const int pitch = weight_pitch(a.chunk), count = (a.middle - chunk.first < a.chunk ? a.middle - chunk.first : a.chunk) * Taps;
  FASTCONV_NO_UNROLL
  for (int i = threadIdx.x; i < a.chunk * Taps; i += Threads) chunk.weights[i % Taps * pitch + i / Taps] = i < count ? Element<T>::value(from[i]) : 0.f;
  sync_threads();
}

// What the running sums of a march do with a row of input: x[j][c] are the columns of C channels that Q results read.
template <int K, int Q, int C>
struct March {
  float running[K - 1][Q][C];

  FASTCONV_DEVICE void clear() {
    FASTCONV_UNROLL
    for (int i = 0; i < (K - 1) * Q * C; ++i) running[i / (Q * C)][i / C % Q][i % C] = 0.f;
  }
  // `Oldest`: sums that are older began above the strip and are never finished.
  template <int Oldest, class Weights>
  FASTCONV_DEVICE void row(const float (&x)[Q + K - 1][C], const Weights& weight, const float (&bias)[C], float (&done)[Q * C]) {
    FASTCONV_UNROLL
    for (int ky = K - 1; ky >= 0; --ky) {
      if (ky > Oldest) continue;
      float w[K][C];
      weight(ky, w);
      FASTCONV_UNROLL
      for (int q = 0; q < Q; ++q)
        FASTCONV_UNROLL
        for (int c = 0; c < C; ++c) {
          float sum = ky ? running[ky ? ky - 1 : 0][q][c] : bias[c];
          FASTCONV_UNROLL
          for (int kx = 0; kx < K; ++kx) sum += w[kx][c] * x[q + kx][c];
          if (ky == K - 1) {
            done[q * C + c] = sum;
          } else {
            running[ky < K - 1 ? ky : 0][q][c] = sum;
          }
        }
    }
  }
};

// channels_last, no multiplier: a warp owns 64 channels of four columns, a lane two of them, and marches down a strip.
//
// The rows of input wait in a ring of shared memory that belongs to the warp, filled by asynchronous copies some rows ahead: enough bytes in flight to keep
// the memory busy with the warps that registers allow, zeros at the border by the copy itself, and no barrier wider than the warp. The copies run on into
// the warp's next strip while it finishes this one, so the ring drains once a tile.
template <class T, int K, int Stride, class Tile>
struct RingPixels {
  static constexpr int kChannels = 2, kColumns = 4, kInput = ring_columns(K, Stride), kBytes = kChannels * sizeof(T);
  static constexpr bool kStaged = K > 3;  // nine weights of two channels stay in registers, more wait in shared memory
  static constexpr int kWarps = Tile::kMarchers, kStages = row_stages(Tile::kRowStages, sizeof(T)), kPixel = 32 * kBytes, kRow = kInput * kPixel, kPixels = Tile::kPixels;
  static constexpr int kRowBytes = row_ring_bytes(kWarps, kStages, K, Stride, sizeof(T));
  static_assert(kRowBytes == kWarps * kStages * kRow);

  // A warp's unit of work: first channel in the chunk, first column and row of the tile.
  struct Unit {
    int channel, column, row, rows;
  };
  FASTCONV_DEVICE static Unit unit_of(const SeparableArgs& a, int channel, uint32_t column_group, uint32_t strip) {
    const int row = static_cast<int>(strip) * a.unit_rows;
    return {channel, static_cast<int>(column_group) * kColumns, row, a.rows - row < a.unit_rows ? a.rows - row : a.unit_rows};
  }

  // The units of a tile's chunk. Neighbouring warps have neighbouring columns, which share the columns between them.
  struct TileUnits {
    const SeparableArgs& a;
    const TileAt& tile;
    int first_channel;

    FASTCONV_DEVICE int count() const { return a.units; }
    FASTCONV_DEVICE int step() const { return kWarps; }  // from a warp's unit to its next
    FASTCONV_DEVICE Unit unit(int index) const {
      uint32_t vector, group;
      const uint32_t strip = a.by_vectors.divide(a.by_units_x.divide(static_cast<uint32_t>(index), &group), &vector);
      return unit_of(a, static_cast<int>(vector) * (32 * kChannels), group, strip);
    }
    // Where a unit lies: its tile and first channel of the map.
    FASTCONV_DEVICE const TileAt& at(int) const { return tile; }
    FASTCONV_DEVICE int channel(const Unit& u) const { return first_channel + u.channel; }
  };

  // The copies of a warp's rows, unit after unit: a lane copies 16 bytes of every kAcross-th column.
  template <class Units>
  struct Feed {
    static constexpr int kPieces = kPixel / 16, kAcross = 32 / kPieces, kCopies = (kInput + kAcross - 1) / kAcross;

    const SeparableArgs& a;
    const Units& units;
    const unsigned char* from;
    ptx::SharedAddress to;
    int64_t row_bytes;
    uint32_t step, end[kCopies];  // rows of the map that exist in the lane's columns
    int unit, rows, y;
    bool last_copy;  // whether the lane takes part in it

    FASTCONV_DEVICE Feed(const SeparableArgs& args, const Units& all, int first_unit, ptx::SharedAddress ring)
        : a(args), units(all), row_bytes(a.dh * a.xh * static_cast<int64_t>(sizeof(T))), unit(first_unit) {
      const int lane = threadIdx.x % 32;
      to = ring + lane * 16;
      step = static_cast<uint32_t>(a.dw * a.xw * static_cast<int64_t>(sizeof(T)) * kAcross);
      last_copy = lane < (kInput - (kCopies - 1) * kAcross) * kPieces;
      begin();
    }

    FASTCONV_DEVICE void begin() {
      const bool more = unit < units.count();
      const int index = more ? unit : 0;
      const Unit u = units.unit(index);
      const TileAt& at = units.at(index);
      const int lane = threadIdx.x % 32, c = units.channel(u) + lane % kPieces * kElements<T, 16>;
      const int left = column_at(a, at, u.column).x * Stride - a.pl + lane / kPieces * a.dw;
      FASTCONV_UNROLL
      for (int i = 0; i < kCopies; ++i) {
        const int x = left + i * kAcross * a.dw;
        end[i] = more && c < a.middle && x >= 0 && x < a.w ? a.h : 0;
      }
      y = (at.y + u.row * a.step_h) * Stride - a.pt;
      // Beyond the last unit the copies go on and bring nothing.
      rows = more ? (u.rows - 1) * Stride + K : 0x7fffffff;
      from = reinterpret_cast<const unsigned char*>(static_cast<const T*>(a.x) + at.n * a.xn + y * a.xh + left * a.xw + c);
    }

    FASTCONV_DEVICE void start() {
      FASTCONV_UNROLL
      for (int s = 0; s < kStages - 1; ++s) fetch(s * kRow);
    }

    FASTCONV_DEVICE void fetch(int slot) {
      FASTCONV_UNROLL
      for (int i = 0; i < kCopies; ++i)
        ptx::copy_async_if(
            (i + 1) * kAcross <= kInput || last_copy, to + slot + i * 512, from + uint64_t(step) * i, static_cast<uint32_t>(y) < end[i]);
      ptx::commit_copies();
      y += a.dh, from += row_bytes;
      if (--rows == 0) {
        unit += units.step();
        begin();
      }
    }
  };

  // Where in the ring the next row is, and the one before it.
  struct Slots {
    int next = 0, before = (kStages - 1) * kRow;
  };

  FASTCONV_DEVICE static void produce(const SeparableArgs& a, const TileAt& at, const Chunk& chunk) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const TileUnits units{a, at, chunk.first};
    const ptx::SharedAddress ring = warp_ring(chunk, warp);
    Feed<TileUnits> feed(a, units, warp, ring);
    feed.start();
    if (kStaged) stage_weights<T, K * K, Tile::kThreads>(a, chunk);
    Slots slots;
    FASTCONV_NO_UNROLL
    for (int u = warp; u < a.units; u += kWarps) march(a, chunk, units.unit(u), feed, ring, slots);
    ptx::wait_copies<0>();
  }

  FASTCONV_DEVICE static ptx::SharedAddress warp_ring(const Chunk& chunk, int warp) { return ptx::shared_address(chunk.rows) + warp * (kStages * kRow); }

  template <class Units>
  FASTCONV_DEVICE static void march(const SeparableArgs& a, const Chunk& chunk, const Unit& u, Feed<Units>& feed, ptx::SharedAddress ring, Slots& slots) {
    const ptx::SharedAddress mine = ring + threadIdx.x % 32 * kBytes;
    const int channel = u.channel + static_cast<int>(threadIdx.x) % 32 * kChannels, c = chunk.first + channel;
    // Pixel p = 4i + q of the tile is kept at (unit ^ q), with bit 2 flipped where i is odd. Tiles start at a multiple of 512 bytes, so an address is put
    // together by one logical instruction.
    const int byte = channel * static_cast<int>(sizeof(T)), first_pixel = u.row * a.columns + u.column;
    ptx::SharedAddress group = ptx::shared_address(chunk.tile + byte / kSlabBytes * (kPixels * kSlabBytes)) + first_pixel * kSlabBytes;
    int place[kColumns], odd_row = first_pixel << 4, row_pitch = a.columns * kSlabBytes;
    FASTCONV_UNROLL
    for (int q = 0; q < kColumns; ++q) {
      place[q] = slab_offset(q, byte / 16 % 8) + byte % 16;
      ptx::keep(place[q]);
    }
    ptx::keep(row_pitch);

    const bool exists = c < a.middle;  // beyond, lanes march zeros
    float kept[kStaged ? 1 : K * K][kChannels], bias[kChannels] = {0.f, 0.f};
    if constexpr (!kStaged) {
      const T* w = static_cast<const T*>(a.depthwise_weight) + int64_t(c) * (K * K);
      Bytes<4> word[K * K * kBytes / 4];
      FASTCONV_UNROLL
      for (int i = 0; i < K * K * kBytes / 4; ++i) word[i] = exists ? ptx::load<4>(w + i * (4 / static_cast<int>(sizeof(T)))) : Bytes<4>{};
      FASTCONV_UNROLL
      for (int i = 0; i < K * K * kChannels; ++i) {
        kept[i % (K * K)][i / (K * K)] = Element<T>::unpack(word[i / Element<T>::kPerWord].word[0], i % Element<T>::kPerWord);
        ptx::keep(kept[i % (K * K)][i / (K * K)]);
      }
    }
    if (a.depthwise_bias && exists) unpack<T>(ptx::load<kBytes>(static_cast<const T*>(a.depthwise_bias) + c), bias);
    const float* staged = chunk.weights + channel;
    const auto weight = [&](int ky, float(&w)[K][kChannels]) {
      FASTCONV_UNROLL
      for (int kx = 0; kx < K; ++kx) {
        if constexpr (kStaged) {
          const Bytes<8> pair = *reinterpret_cast<const Bytes<8>*>(staged + (ky * K + kx) * weight_pitch(a.chunk));
          w[kx][0] = ptx::bits_to_float(pair.word[0]), w[kx][1] = ptx::bits_to_float(pair.word[1]);
        } else {
          w[kx][0] = kept[ky * K + kx][0], w[kx][1] = kept[ky * K + kx][1];
        }
      }
    };

    int input_kind = static_cast<int>(a.input_activation.kind), kind = static_cast<int>(a.depthwise_activation.kind), rows = u.rows;
    ptx::keep(rows);
    ptx::keep(input_kind);
    ptx::keep(kind);
    float done[kColumns * kChannels];
    const auto take_row = [&](float(&x)[kInput][kChannels]) {
      ptx::wait_copies<kStages - 2>();
      // The row has arrived for all lanes, and all have read the one before, whose slot is filled anew.
      sync_warp();
      feed.fetch(slots.before);
      FASTCONV_UNROLL
      for (int j = 0; j < kInput; ++j) unpack<T>(ptx::load_shared<kBytes>(mine + slots.next + j * kPixel), x[j]);
      FASTCONV_UNROLL
      for (int i = 0; i < kInput * kChannels; ++i) ptx::keep(x[i / kChannels][i % kChannels]);
      slots.before = slots.next;
      slots.next = slots.next == (kStages - 1) * kRow ? 0 : slots.next + kRow;
      if (input_kind != static_cast<int>(Activation::identity)) {
        float flat[kInput * kChannels];
        FASTCONV_UNROLL
        for (int i = 0; i < kInput * kChannels; ++i) flat[i] = x[i / kChannels][i % kChannels];
        activate_values<sizeof(T) == 2, Tile::kThreads>(a.input_activation, flat, chunk.scratch);
        FASTCONV_UNROLL
        for (int i = 0; i < kInput * kChannels; ++i) x[i / kChannels][i % kChannels] = flat[i];
      }
    };
    const auto finish_row = [&] {
      if (kind != static_cast<int>(Activation::identity)) activate_values<sizeof(T) == 2, Tile::kThreads>(a.depthwise_activation, done, chunk.scratch);
      const ptx::SharedAddress to = group | (odd_row & 64);
      FASTCONV_UNROLL
      for (int q = 0; q < kColumns; ++q) {
        const float pair[kChannels] = {done[q * kChannels], done[q * kChannels + 1]};
        ptx::store_shared<kBytes>(place[q] ^ to, pack<T, kBytes>(pair));
      }
      group += row_pitch, odd_row += row_pitch >> 3;
    };
    float x[kInput][kChannels];
    if constexpr (Stride == 2) {
      static_assert(K == 3);
      // Every other row ends a result and begins the next one.
      float begun[kColumns * kChannels];
      const auto add_row = [&](float(&sum)[kColumns * kChannels], int ky) {
        float w[K][kChannels];
        weight(ky, w);
        FASTCONV_UNROLL
        for (int i = 0; i < kColumns * kChannels; ++i)
          FASTCONV_UNROLL
          for (int kx = 0; kx < K; ++kx) sum[i] += w[kx][i % kChannels] * x[i / kChannels * Stride + kx][i % kChannels];
      };
      const auto begin_row = [&] {
        FASTCONV_UNROLL
        for (int i = 0; i < kColumns * kChannels; ++i) begun[i] = bias[i % kChannels];
        add_row(begun, 0);
      };
      take_row(x);
      begin_row();
      FASTCONV_NO_UNROLL
      for (int i = 0; i < rows; ++i) {
        take_row(x);
        add_row(begun, 1);
        take_row(x);
        FASTCONV_UNROLL
        for (int j = 0; j < kColumns * kChannels; ++j) done[j] = begun[j];
        add_row(done, 2);
        begin_row();
        finish_row();
      }
    } else {
      March<K, kColumns, kChannels> sums;
      if constexpr (K == 3) {
        take_row(x);
        sums.template row<0>(x, weight, bias, done);
        take_row(x);
        sums.template row<1>(x, weight, bias, done);
      } else {
        sums.clear();
      }
      FASTCONV_NO_UNROLL
      for (int i = K == 3 ? 0 : 1 - K; i < rows; ++i) {
        take_row(x);
        sums.template row<K - 1>(x, weight, bias, done);
        if (K > 3 && i < 0) continue;
        finish_row();
      }
    }
  }
};

// contiguous, stride 1, no multiplier: four channels of one column a thread; neighbouring lanes have neighbouring columns.
template <class T, int K, class Tile>
struct RingPlanes {
  static constexpr int kChannels = 4, kRowBytes = 0, kThreads = Tile::kThreads, kPixels = Tile::kPixels;
  static constexpr bool kStaged = true;

  FASTCONV_DEVICE static void produce(const SeparableArgs& a, const TileAt& at, const Chunk& chunk) {
    stage_weights<T, K * K, kThreads>(a, chunk);
    const int strips = static_cast<int>(a.by_units_x.divisor), units = static_cast<int>(a.by_vectors.divisor) * strips * a.columns;
    FASTCONV_NO_UNROLL
    for (int u = threadIdx.x; u < units; u += kThreads) {
      uint32_t column, strip;
      const int vector = static_cast<int>(a.by_units_x.divide(a.by_columns.divide(static_cast<uint32_t>(u), &column), &strip));
      unit(a, at, chunk, vector * kChannels, static_cast<int>(column), static_cast<int>(strip) * a.unit_rows);
    }
  }

  FASTCONV_DEVICE static void unit(const SeparableArgs& a, const TileAt& at, const Chunk& chunk, int channel, int column, int first_row) {
    const int rows = a.rows - first_row < a.unit_rows ? a.rows - first_row : a.unit_rows, c = chunk.first + channel;
    const int byte = channel * static_cast<int>(sizeof(T));
    unsigned char* to = chunk.tile + byte / kSlabBytes * (kPixels * kSlabBytes) + byte % 16;
    int p = first_row * a.columns + column;
    const auto store = [&](const float(&v)[kChannels]) {
      *reinterpret_cast<Bytes<kChannels * sizeof(T)>*>(to + slab_offset(fragment_row(p), byte / 16 % 8)) = pack<T, kChannels * sizeof(T)>(v);
      p += a.columns;
    };
    if (c >= a.middle) {
      const float zero[kChannels] = {0.f, 0.f, 0.f, 0.f};
      for (int i = 0; i < rows; ++i) store(zero);
      return;
    }
    float bias[kChannels];
    FASTCONV_UNROLL
    for (int i = 0; i < kChannels; ++i) bias[i] = a.depthwise_bias ? Element<T>::value(static_cast<const T*>(a.depthwise_bias)[c + i]) : 0.f;
    const auto weight = [&](int ky, float(&w)[K][kChannels]) {
      FASTCONV_UNROLL
      for (int kx = 0; kx < K; ++kx) {
        const Bytes<16> four = *reinterpret_cast<const Bytes<16>*>(chunk.weights + (ky * K + kx) * weight_pitch(a.chunk) + channel);
        FASTCONV_UNROLL
        for (int i = 0; i < kChannels; ++i) w[kx][i] = ptx::bits_to_float(four.word[i]);
      }
    };
    const int left = at.x + column * a.step_w - a.pl;
    uint32_t inside = 0;
    FASTCONV_UNROLL
    for (int k = 0; k < K; ++k) inside |= static_cast<uint32_t>(left + k * a.dw >= 0 && left + k * a.dw < a.w) << k;
    int y = at.y + first_row * a.step_h - a.pt;
    const T* row = static_cast<const T*>(a.x) + at.n * a.xn + c * a.xc + y * a.xh + left;
    March<K, 1, kChannels> march;
    march.clear();
    FASTCONV_NO_UNROLL
    for (int i = 1 - K; i < rows; ++i, y += a.dh, row += a.dh * a.xh) {
      float x[K][kChannels], done[kChannels];
      const bool row_inside = y >= 0 && y < a.h;
      FASTCONV_UNROLL
      for (int k = 0; k < K; ++k) {
        FASTCONV_UNROLL
        for (int j = 0; j < kChannels; ++j) x[k][j] = 0.f;
        if (row_inside && (inside >> k & 1)) {
          FASTCONV_UNROLL
          for (int j = 0; j < kChannels; ++j) x[k][j] = load_value(row + j * a.xc + k * a.dw);
          if (a.input_activation.kind != Activation::identity) activate_values<sizeof(T) == 2, kThreads>(a.input_activation, x[k], chunk.scratch);
        }
      }
      march.template row<K - 1>(x, weight, bias, done);
      if (i < 0) continue;
      activate_values<sizeof(T) == 2, kThreads>(a.depthwise_activation, done, chunk.scratch);
      store(done);
    }
  }

  FASTCONV_DEVICE static float load_value(const T* p) {
    const auto bits = ptx::load<sizeof(T)>(p);
    return Element<T>::unpack(bits.word[0], 0);
  }
};

// Anything else: two channels of one pixel a thread.
template <class T, Layout L, class Tile>
struct Taps {
  static constexpr int kChannels = 2, kRowBytes = 0, kThreads = Tile::kThreads, kPixels = Tile::kPixels;
  static constexpr bool kStaged = false;

  FASTCONV_DEVICE static void produce(const SeparableArgs& a, const TileAt& at, const Chunk& chunk) {
    const int vectors = static_cast<int>(a.by_vectors.divisor), pixels = a.rows * a.columns;
    const FastDivision& by_pixels = a.by_units_x;
    FASTCONV_NO_UNROLL
    for (int u = threadIdx.x; u < vectors * pixels; u += kThreads) {
      uint32_t vector, p;
      if (L == Layout::channels_last) {
        p = a.by_vectors.divide(static_cast<uint32_t>(u), &vector);
      } else {
        vector = by_pixels.divide(static_cast<uint32_t>(u), &p);
      }
      pixel(a, at, chunk, static_cast<int>(vector) * kChannels, static_cast<int>(p));
    }
  }

  FASTCONV_DEVICE static void pixel(const SeparableArgs& a, const TileAt& at, const Chunk& chunk, int channel, int p) {
    uint32_t column;
    const int row = static_cast<int>(a.by_columns.divide(static_cast<uint32_t>(p), &column));
    const int top = (at.y + row * a.step_h) * a.stride_h - a.pt, left = column_at(a, at, static_cast<int>(column)).x * a.stride_w - a.pl;
    const int taps = a.kh * a.kw, c = chunk.first + channel;
    const bool exists[kChannels] = {c < a.middle, c + 1 < a.middle};
    float sum[kChannels] = {0.f, 0.f};
    if (exists[0]) {
      const int second = exists[1] ? c + 1 : c;
      const T* image = static_cast<const T*>(a.x) + at.n * a.xn;
      const T* plane[kChannels] = {image + a.by_multiplier.divide(c) * a.xc, image + a.by_multiplier.divide(second) * a.xc};
      const T* weight[kChannels] = {static_cast<const T*>(a.depthwise_weight) + int64_t(c) * taps, static_cast<const T*>(a.depthwise_weight) + int64_t(second) * taps};
      if (a.depthwise_bias) {
        sum[0] = Element<T>::value(static_cast<const T*>(a.depthwise_bias)[c]);
        sum[1] = Element<T>::value(static_cast<const T*>(a.depthwise_bias)[second]);
      }
      FASTCONV_NO_UNROLL
      for (int ky = 0; ky < a.kh; ++ky) {
        const int y = top + ky * a.dh;
        if (y < 0 || y >= a.h) continue;
        FASTCONV_NO_UNROLL
        for (int kx = 0; kx < a.kw; ++kx) {
          const int x = left + kx * a.dw;
          if (x < 0 || x >= a.w) continue;
          const int64_t offset = y * a.xh + x * a.xw;
          float v[kChannels] = {Element<T>::value(plane[0][offset]), Element<T>::value(plane[1][offset])};
          activate_values<sizeof(T) == 2, kThreads>(a.input_activation, v, chunk.scratch);
          FASTCONV_UNROLL
          for (int i = 0; i < kChannels; ++i) sum[i] += Element<T>::value(weight[i][ky * a.kw + kx]) * v[i];
        }
      }
      activate_values<sizeof(T) == 2, kThreads>(a.depthwise_activation, sum, chunk.scratch);
      FASTCONV_UNROLL
      for (int i = 0; i < kChannels; ++i) sum[i] = exists[i] ? sum[i] : 0.f;
    }
    const int byte = channel * static_cast<int>(sizeof(T)), tile_row = L == Layout::channels_last ? p : fragment_row(p);
    unsigned char* to = chunk.tile + byte / kSlabBytes * (kPixels * kSlabBytes) + byte % 16 + slab_offset(tile_row, byte / 16 % 8);
    *reinterpret_cast<Bytes<kChannels * sizeof(T)>*>(to) = pack<T, kChannels * sizeof(T)>(sum);
  }
};

}  // namespace fastconv::cuda
