// The tensor-core and matrix-load instructions, evaluated for a whole warp from the fragment layouts of the PTX manual.
#include "cuda/ptx.cuh"

namespace fastconv::ptx {
namespace {

// Matrix i has its rows at the addresses of lanes 8i .. 8i+7; lane l receives two neighbours of row (or column) l / 4.
void matrix_load(void** operands, bool transposed) {
  uint16_t m[4][8][8];
  for (int l = 0; l < 32; ++l) std::memcpy(m[l / 8][l % 8], static_cast<MatrixLoad*>(operands[l])->row, 16);
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) {
      const int a = l / 4, b = l % 4 * 2;
      const uint32_t low = transposed ? m[i][b][a] : m[i][a][b], high = transposed ? m[i][b + 1][a] : m[i][a][b + 1];
      static_cast<MatrixLoad*>(operands[l])->d[i] = low | high << 16;
    }
}

template <int K>
void multiply(void** operands, const float (&a)[16][K], const float (&b)[K][8]) {
  float c[16][8] = {};
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; ++l) {
    float* d = static_cast<Mma*>(operands[l])->d;
    const int g = l / 4, t = l % 4 * 2;
    d[0] += c[g][t], d[1] += c[g][t + 1], d[2] += c[g + 8][t], d[3] += c[g + 8][t + 1];
  }
}

void mma_16(void** operands, bool bf16) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const Mma& m = *static_cast<Mma*>(operands[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 2; ++i) {
      a[g][t + i] = half_of(m.a[0], i, bf16);
      a[g + 8][t + i] = half_of(m.a[1], i, bf16);
      a[g][t + 8 + i] = half_of(m.a[2], i, bf16);
      a[g + 8][t + 8 + i] = half_of(m.a[3], i, bf16);
      b[t + i][g] = half_of(m.b[0], i, bf16);
      b[t + 8 + i][g] = half_of(m.b[1], i, bf16);
    }
  }
  multiply(operands, a, b);
}

}  // namespace

void evaluate_matrix_load(void** operands, uint32_t) { matrix_load(operands, false); }
void evaluate_matrix_load_transposed(void** operands, uint32_t) { matrix_load(operands, true); }
void evaluate_mma_bf16(void** operands, uint32_t) { mma_16(operands, true); }
void evaluate_mma_f16(void** operands, uint32_t) { mma_16(operands, false); }

void evaluate_mma_tf32(void** operands, uint32_t) {
  // The chip ignores the low 13 bits: an operand that was not rounded beforehand is truncated.
  auto tf32 = [](uint32_t u) { return bits_to_float(u & ~0x1fffu); };
  float a[16][8], b[8][8];
  for (int l = 0; l < 32; ++l) {
    const Mma& m = *static_cast<Mma*>(operands[l]);
    const int g = l / 4, t = l % 4;
    a[g][t] = tf32(m.a[0]), a[g + 8][t] = tf32(m.a[1]), a[g][t + 4] = tf32(m.a[2]), a[g + 8][t + 4] = tf32(m.a[3]);
    b[t][g] = tf32(m.b[0]), b[t + 4][g] = tf32(m.b[1]);
  }
  multiply(operands, a, b);
}

}  // namespace fastconv::ptx
