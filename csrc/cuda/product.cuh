// The matrix product inside the fused kernels. A block holds two operands in shared memory, `rows` and `columns`, each as rows of 128 bytes of the
// summed dimension (64 16-bit elements or 32 floats: a slab); the result element (r, c) is the scalar product of row r of one and row c of the other.
//
// Banks: a row is 32 banks wide, so without care the same 16-byte unit of eight rows would lie in the same four banks. Unit u of row r is therefore
// kept at position u ^ (r % 8): the eight rows of an 8 x 8 matrix, read at one logical unit, then cover all 32 banks.
//
// A warp computes MT*16 rows by 32 columns. Lane 4g + t of an accumulator fragment owns, of eight columns, the neighbours 2t and 2t + 1. So that a lane's
// columns of four fragments are neighbours in memory, row fragment_row(c) of the `columns` operand holds column c: the lane then has columns
// 8t .. 8t + 7 of its 32, and stores them as 16 bytes.
#pragma once
#include "numeric.cuh"

namespace fastconv::cuda {

constexpr int kSlabBytes = 128, kStepBytes = 32, kSteps = kSlabBytes / kStepBytes;

FASTCONV_HOST_DEVICE int slab_offset(int row, int unit) { return row * kSlabBytes + ((unit ^ (row & 7)) << 4); }

// Its own inverse.
FASTCONV_HOST_DEVICE int fragment_row(int c) { return (c & ~31) | (c >> 1 & 3) << 3 | (c >> 3 & 3) << 1 | (c & 1); }

// How two elements are multiplied and summed in float.
struct MathBf16 {
  using T = bf16;
  static constexpr bool kTensor = true, kRound = false;
  FASTCONV_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { ptx::mma_bf16(d, a, b0, b1); }
};
struct MathF16 {
  using T = f16;
  static constexpr bool kTensor = true, kRound = false;
  FASTCONV_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { ptx::mma_f16(d, a, b0, b1); }
};
// The same step of 32 bytes: a 8 x 8 matrix of 16-bit elements is 8 rows of four floats.
struct MathTf32 {
  using T = float;
  static constexpr bool kTensor = true, kRound = true;
  FASTCONV_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { ptx::mma_tf32(d, a, b0, b1); }
};
struct MathFloat {
  using T = float;
  static constexpr bool kTensor = false, kRound = false;
};

// Where a lane finds its part of the operands; offsets of step 0.
struct ProductLane {
  int rows, columns;
};
template <class M>
FASTCONV_DEVICE ProductLane product_lane(int first_row, int first_column) {
  const int lane = threadIdx.x % 32;
  if constexpr (M::kTensor) {
    return {slab_offset(first_row + lane % 16, lane / 16), slab_offset(first_column + lane / 16 * 8 + lane % 8, lane / 8 % 2)};
  } else {
    // Units of these rows are at `unit ^ (lane / 4)`, of these columns at `unit ^ (lane % 4 * 2 + i)`.
    return {(first_row + lane / 4) * kSlabBytes, (first_column + lane % 4 * 2) * kSlabBytes};
  }
}

// How the `columns` operand of tensor cores is kept: in slabs, as above, or in steps: 32 bytes of all its rows, then the next 32, where the summed dimension
// need not fill slabs. Eight rows of a step are two rows of banks; the second four have their two units exchanged.
struct InSlabs {
  static constexpr int kRow = kSlabBytes;
  FASTCONV_DEVICE static int at_step(int at, int step) { return at ^ step * kStepBytes; }
};
template <int Rows>
struct InSteps {
  static constexpr int kRow = kStepBytes;
  FASTCONV_HOST_DEVICE static int offset(int row, int unit) { return row * kStepBytes + ((unit ^ (row >> 2 & 1)) << 4); }
  FASTCONV_DEVICE static int at_step(int at, int step) { return at + step * (Rows * kStepBytes); }
};

// acc += rows x columns over 32 bytes of the summed dimension. acc[m][n][2h + i] is row 16m + 8h + g, column fragment_row(8n + 2t + i).
template <class M, class Columns = InSlabs, int MT>
FASTCONV_DEVICE void multiply_step(float (&acc)[MT][4][4], const unsigned char* rows, const unsigned char* columns, ProductLane at, int step) {
  if constexpr (M::kTensor) {
    uint32_t a[MT][4], b[2][4];
    FASTCONV_UNROLL
    for (int n = 0; n < 2; ++n) ptx::load_matrices(b[n], columns + Columns::at_step(at.columns, step) + n * 16 * Columns::kRow);
    FASTCONV_UNROLL
    for (int m = 0; m < MT; ++m) ptx::load_matrices(a[m], rows + (at.rows ^ step * kStepBytes) + m * 16 * kSlabBytes);
    if constexpr (M::kRound) {
      FASTCONV_UNROLL
      for (int i = 0; i < 8; ++i) b[i / 4][i % 4] = ptx::float_to_tf32(ptx::bits_to_float(b[i / 4][i % 4]));
      FASTCONV_UNROLL
      for (int i = 0; i < 4 * MT; ++i) a[i / 4][i % 4] = ptx::float_to_tf32(ptx::bits_to_float(a[i / 4][i % 4]));
    }
    FASTCONV_UNROLL
    for (int m = 0; m < MT; ++m)
      FASTCONV_UNROLL
      for (int n = 0; n < 4; ++n) M::multiply(acc[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
  } else {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    FASTCONV_UNROLL
    for (int u = 0; u < 2; ++u) {
      const int unit = step * 2 + u;
      Bytes<16> a[MT][2];
      FASTCONV_UNROLL
      for (int m = 0; m < 2 * MT; ++m)
        a[m / 2][m % 2] = *reinterpret_cast<const Bytes<16>*>(rows + at.rows + m * 8 * kSlabBytes + ((unit ^ g) << 4));
      FASTCONV_UNROLL
      for (int n = 0; n < 8; ++n) {
        const Bytes<16> b = *reinterpret_cast<const Bytes<16>*>(columns + at.columns + (n / 2 * 8 + n % 2) * kSlabBytes + ((unit ^ (t * 2 + n % 2)) << 4));
        FASTCONV_UNROLL
        for (int m = 0; m < 2 * MT; ++m)
          FASTCONV_UNROLL
          for (int k = 0; k < 4; ++k)
            acc[m / 2][n / 2][m % 2 * 2 + n % 2] += ptx::bits_to_float(a[m / 2][m % 2].word[k]) * ptx::bits_to_float(b.word[k]);
      }
    }
  }
}

template <class M, class Columns = InSlabs, int MT>
FASTCONV_DEVICE void multiply_slab(float (&acc)[MT][4][4], const unsigned char* rows, const unsigned char* columns, ProductLane at, int steps) {
  if (steps == kSteps && M::kTensor) {
    FASTCONV_UNROLL
    for (int s = 0; s < kSteps; ++s) multiply_step<M, Columns>(acc, rows, columns, at, s);
  } else {
    FASTCONV_NO_UNROLL
    for (int s = 0; s < steps; ++s) multiply_step<M, Columns>(acc, rows, columns, at, s);
  }
}

// A matrix in global memory, rows of the summed dimension, that streams through a ring of slabs in shared memory: `Rows` rows a stage.
struct MatrixArgs {
  const void* data;
  int64_t pitch;   // elements, a multiple of 16 bytes
  int rows, depth; // depth: bytes of a row that exist, a multiple of 16
};

template <int Rows, int Threads, bool Permuted>
FASTCONV_DEVICE void copy_slab(unsigned char* stage, const MatrixArgs& m, int element_bytes, int first_row, int slab) {
  static_assert(Rows * 8 % Threads == 0);
  const int unit = threadIdx.x % 8, byte = slab * kSlabBytes + unit * 16;
  FASTCONV_UNROLL
  for (int i = 0; i < Rows * 8 / Threads; ++i) {
    const int row = static_cast<int>(threadIdx.x) / 8 + i * (Threads / 8), from = first_row + (Permuted ? fragment_row(row) : row);
    const bool valid = from < m.rows && byte < m.depth;
    const unsigned char* source = static_cast<const unsigned char*>(m.data) + (valid ? from * m.pitch * element_bytes + byte : 0);
    ptx::copy_async<16>(stage + slab_offset(row, unit), source, valid);
  }
}

}  // namespace fastconv::cuda
