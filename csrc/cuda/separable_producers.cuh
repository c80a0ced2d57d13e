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
  for (int i = threadIdx.x; i < count; i += Threads) chunk.weights[i % Taps * pitch + i / Taps] = Element<T>::value(from[i]);
  sync_threads();
}

// What the running sums of a march do with a row of input: x[j][c] are the columns (Q + K - 1) of C channels.
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

// channels_last, stride 1, no multiplier: two channels and four columns a thread; neighbouring lanes have neighbouring channels.
template <class T, int K, int Threads, int Pixels>
struct RingPixels {
  static constexpr int kChannels = 2, kColumns = 4, kInput = kColumns + K - 1, kBytes = kChannels * sizeof(T);
  static constexpr bool kStaged = K > 3;  // nine weights of two channels stay in registers, more wait in shared memory

  FASTCONV_DEVICE static void produce(const SeparableArgs& a, const TileAt& at, const Chunk& chunk) {
    if (kStaged) stage_weights<T, K * K, Threads>(a, chunk);
    const int vectors = static_cast<int>(a.by_vectors.divisor), groups = static_cast<int>(a.by_units_x.divisor);
    const int units = vectors * groups * ((a.rows + a.unit_rows - 1) / a.unit_rows);
    FASTCONV_NO_UNROLL
    for (int u = threadIdx.x; u < units; u += Threads) {
      uint32_t vector, group;
      const int strip = static_cast<int>(a.by_units_x.divide(a.by_vectors.divide(static_cast<uint32_t>(u), &vector), &group));
      unit(a, at, chunk, static_cast<int>(vector) * kChannels, static_cast<int>(group) * kColumns, strip * a.unit_rows);
    }
  }

  FASTCONV_DEVICE static void unit(const SeparableArgs& a, const TileAt& at, const Chunk& chunk, int channel, int column, int first_row) {
    const int rows = a.rows - first_row < a.unit_rows ? a.rows - first_row : a.unit_rows;
    // Pixel p = 4i + q of the tile is kept at (unit ^ q), with bit 2 flipped where i is odd. Tiles start at a multiple of 512 bytes, so an address is put
    // together by one logical instruction.
    const int byte = channel * static_cast<int>(sizeof(T));
    const ptx::SharedAddress slab = ptx::shared_address(chunk.tile + byte / kSlabBytes * (Pixels * kSlabBytes));
    ptx::SharedAddress group = slab + (first_row * a.columns + column) * kSlabBytes;
    int place[kColumns], odd_row = (first_row * a.columns + column) << 4, row_pitch = a.columns * kSlabBytes;
    FASTCONV_UNROLL
    for (int q = 0; q < kColumns; ++q) {
      place[q] = slab_offset(q, byte / 16 % 8) + byte % 16;
      ptx::keep(place[q]);
    }
    ptx::keep(row_pitch);
    const auto store = [&](const Bytes<kBytes>(&value)[kColumns]) {
      int odd = odd_row & 64;
      ptx::keep(odd);
      FASTCONV_UNROLL
      for (int q = 0; q < kColumns; ++q) ptx::store_shared<kBytes>((place[q] ^ odd) | group, value[q]);
      group += row_pitch, odd_row += row_pitch >> 3;
    };

    const int c = chunk.first + channel;
    if (c >= a.middle) {
      FASTCONV_NO_UNROLL
      for (int i = 0; i < rows; ++i) store({});
      return;
    }

    float kept[kStaged ? 1 : K * K][kChannels], bias[kChannels] = {0.f, 0.f};
    if constexpr (!kStaged) {
      const T* w = static_cast<const T*>(a.depthwise_weight) + int64_t(c) * (K * K);
      Bytes<4> word[K * K * kBytes / 4];
      FASTCONV_UNROLL
      for (int i = 0; i < K * K * kBytes / 4; ++i) word[i] = ptx::load<4>(w + i * (4 / static_cast<int>(sizeof(T))));
      FASTCONV_UNROLL
      for (int i = 0; i < K * K * kChannels; ++i) {
        kept[i % (K * K)][i / (K * K)] = Element<T>::unpack(word[i / Element<T>::kPerWord].word[0], i % Element<T>::kPerWord);
        ptx::keep(kept[i % (K * K)][i / (K * K)]);
      }
    }
    if (a.depthwise_bias) unpack<T>(ptx::load<kBytes>(static_cast<const T*>(a.depthwise_bias) + c), bias);
    const auto weight = [&](int ky, float(&w)[K][kChannels]) {
      FASTCONV_UNROLL
      for (int kx = 0; kx < K; ++kx) {
        if constexpr (kStaged) {
          const Bytes<8> pair = *reinterpret_cast<const Bytes<8>*>(chunk.weights + (ky * K + kx) * weight_pitch(a.chunk) + channel);
          w[kx][0] = ptx::bits_to_float(pair.word[0]), w[kx][1] = ptx::bits_to_float(pair.word[1]);
        } else {
          w[kx][0] = kept[ky * K + kx][0], w[kx][1] = kept[ky * K + kx][1];
        }
      }
    };

    const int left = column_at(a, at, column).x - a.pl;
    uint32_t inside = 0;
    FASTCONV_UNROLL
    for (int j = 0; j < kInput; ++j) inside |= static_cast<uint32_t>(left + j * a.dw >= 0 && left + j * a.dw < a.w) << j;
    int y = at.y + first_row * a.step_h - a.pt;
    const int end_y = y + (rows + K - 1) * a.dh < a.h ? y + (rows + K - 1) * a.dh : a.h;
    const uint32_t last_y = end_y > 0 ? static_cast<uint32_t>(end_y) : 0;
    uint32_t column_step = static_cast<uint32_t>(a.dw * a.xw * sizeof(T));
    int row_step = a.dh;
    uint32_t one = 1;  // unknown to the compiler, which would take a product by a constant apart
    ptx::keep(one);
    ptx::keep(column_step);
    ptx::keep(row_step);
    const int64_t row_bytes = a.dh * a.xh * static_cast<int64_t>(sizeof(T));
    const unsigned char* row = reinterpret_cast<const unsigned char*>(static_cast<const T*>(a.x) + at.n * a.xn + y * a.xh + left * a.xw + c);
    Bytes<kBytes> next[kInput];
    const auto load_row = [&] {
      const bool row_inside = static_cast<uint32_t>(y) < last_y;
      if (row_inside && inside == (1u << kInput) - 1) {
        const unsigned char* p = row;
        FASTCONV_UNROLL
        for (int j = 0; j < kInput; ++j) {
          next[j] = ptx::load<kBytes>(p);
          p = ptx::advance(p, column_step, one);
        }
      } else {
        FASTCONV_UNROLL
        for (int j = 0; j < kInput; ++j) {
          next[j] = {};
          if (row_inside && (inside >> j & 1)) next[j] = ptx::load<kBytes>(row + uint64_t(column_step) * j);
        }
      }
      y += row_step, row += row_bytes;
    };

    int input_kind = static_cast<int>(a.input_activation.kind), kind = static_cast<int>(a.depthwise_activation.kind);
    ptx::keep(input_kind);
    ptx::keep(kind);
    March<K, kColumns, kChannels> march;
    float done[kColumns * kChannels];
    // Takes the row that has arrived and sends for the one after it.
    const auto take_row = [&](float(&x)[kInput][kChannels]) {
      FASTCONV_UNROLL
      for (int j = 0; j < kInput; ++j) {
        unpack<T>(next[j], x[j]);
        ptx::keep(x[j][0]);
        ptx::keep(x[j][1]);
      }
      load_row();
      if (input_kind != static_cast<int>(Activation::identity)) {
        float flat[kInput * kChannels];
        FASTCONV_UNROLL
        for (int i = 0; i < kInput * kChannels; ++i) flat[i] = x[i / kChannels][i % kChannels];
        activate_values<sizeof(T) == 2, Threads>(a.input_activation, flat, chunk.scratch);
        FASTCONV_UNROLL
        for (int i = 0; i < kInput * kChannels; ++i) x[i / kChannels][i % kChannels] = flat[i];
      }
    };
    load_row();
    if constexpr (K == 3) {
      float x[kInput][kChannels];
      take_row(x);
      march.template row<0>(x, weight, bias, done);
      take_row(x);
      march.template row<1>(x, weight, bias, done);
    } else {
      march.clear();
    }
    FASTCONV_NO_UNROLL
    for (int i = K == 3 ? 0 : 1 - K; i < rows; ++i) {
      float x[kInput][kChannels];
      take_row(x);
      march.template row<K - 1>(x, weight, bias, done);
      if (K > 3 && i < 0) continue;
      if (kind != static_cast<int>(Activation::identity)) activate_values<sizeof(T) == 2, Threads>(a.depthwise_activation, done, chunk.scratch);
      Bytes<kBytes> value[kColumns];
      FASTCONV_UNROLL
      for (int q = 0; q < kColumns; ++q) {
        const float pair[kChannels] = {done[q * kChannels], done[q * kChannels + 1]};
        value[q] = pack<T, kBytes>(pair);
      }
      store(value);
    }
  }
};

// contiguous, stride 1, no multiplier: four channels of one column a thread; neighbouring lanes have neighbouring columns.
template <class T, int K, int Threads, int Pixels>
struct RingPlanes {
  static constexpr int kChannels = 4;
  static constexpr bool kStaged = true;

  FASTCONV_DEVICE static void produce(const SeparableArgs& a, const TileAt& at, const Chunk& chunk) {
    stage_weights<T, K * K, Threads>(a, chunk);
    const int strips = static_cast<int>(a.by_units_x.divisor), units = static_cast<int>(a.by_vectors.divisor) * strips * a.columns;
    FASTCONV_NO_UNROLL
    for (int u = threadIdx.x; u < units; u += Threads) {
      uint32_t column, strip;
      const int vector = static_cast<int>(a.by_units_x.divide(a.by_columns.divide(static_cast<uint32_t>(u), &column), &strip));
      unit(a, at, chunk, vector * kChannels, static_cast<int>(column), static_cast<int>(strip) * a.unit_rows);
    }
  }

  FASTCONV_DEVICE static void unit(const SeparableArgs& a, const TileAt& at, const Chunk& chunk, int channel, int column, int first_row) {
    const int rows = a.rows - first_row < a.unit_rows ? a.rows - first_row : a.unit_rows, c = chunk.first + channel;
    const int byte = channel * static_cast<int>(sizeof(T));
    unsigned char* to = chunk.tile + byte / kSlabBytes * (Pixels * kSlabBytes) + byte % 16;
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
          if (a.input_activation.kind != Activation::identity) activate_values<sizeof(T) == 2, Threads>(a.input_activation, x[k], chunk.scratch);
        }
      }
      march.template row<K - 1>(x, weight, bias, done);
      if (i < 0) continue;
      activate_values<sizeof(T) == 2, Threads>(a.depthwise_activation, done, chunk.scratch);
      store(done);
    }
  }

  FASTCONV_DEVICE static float load_value(const T* p) {
    const auto bits = ptx::load<sizeof(T)>(p);
    return Element<T>::unpack(bits.word[0], 0);
  }
};

// Anything else: two channels of one pixel a thread.
template <class T, Layout L, int Threads, int Pixels>
struct Taps {
  static constexpr int kChannels = 2;
  static constexpr bool kStaged = false;

  FASTCONV_DEVICE static void produce(const SeparableArgs& a, const TileAt& at, const Chunk& chunk) {
    const int vectors = static_cast<int>(a.by_vectors.divisor), pixels = a.rows * a.columns;
    const FastDivision& by_pixels = a.by_units_x;
    FASTCONV_NO_UNROLL
    for (int u = threadIdx.x; u < vectors * pixels; u += Threads) {
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
          activate_values<sizeof(T) == 2, Threads>(a.input_activation, v, chunk.scratch);
          FASTCONV_UNROLL
          for (int i = 0; i < kChannels; ++i) sum[i] += Element<T>::value(weight[i][ky * a.kw + kx]) * v[i];
        }
      }
      activate_values<sizeof(T) == 2, Threads>(a.depthwise_activation, sum, chunk.scratch);
      FASTCONV_UNROLL
      for (int i = 0; i < kChannels; ++i) sum[i] = exists[i] ? sum[i] : 0.f;
    }
    const int byte = channel * static_cast<int>(sizeof(T)), tile_row = L == Layout::channels_last ? p : fragment_row(p);
    unsigned char* to = chunk.tile + byte / kSlabBytes * (Pixels * kSlabBytes) + byte % 16 + slab_offset(tile_row, byte / 16 % 8);
    *reinterpret_cast<Bytes<kChannels * sizeof(T)>*>(to) = pack<T, kChannels * sizeof(T)>(sum);
  }
};

}  // namespace fastconv::cuda
