"""The kernels' source, in CUDA's C: for BF16, in the very order of torch's own sums.

Duty: the arithmetic. A result's bits depend on the order of additions and on each rounding between
them, so these follow torch's `native_group_norm` and diffusers' GEGLU step by step:

- GroupNorm's moments are Welford's (1962), by 512 chains for each group, chain i over the elements
  i, i + 512, …; the chains are then combined (Chan et al., 1979) within warps, by halves, and then
  over the warps. Mean and 1/deviation are rounded to BF16. torch runs a group's 512 chains as one
  block, which leaves most of a GPU idle, and waits for each load; here eight blocks run them, and
  each thread has its next loads under way.
- GEGLU rounds the activation to BF16 before it is multiplied. torch takes two passes for it over
  memory that it reads a few bytes at a time.

Must not know: tensors, launches.
"""

CHAINS = 512
CHAINS_PER_BLOCK = 64
# Numbers that one thread of the elementwise kernels reads at once: 16 bytes.
VECTOR = 8
THREADS = 256

SOURCE = r"""
typedef unsigned short bf16;

__device__ __forceinline__ float wide(bf16 value) {
  return __uint_as_float(((unsigned int)value) << 16);
}

__device__ __forceinline__ bf16 narrow(float value) {
  bf16 rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
  return rounded;
}

struct Moments {
  float mean, m2, count;
};

__device__ __forceinline__ Moments combined(Moments a, Moments b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  float delta = b.mean - a.mean;
  float count = a.count + b.count;
  float share = b.count / count;
  Moments both;
  both.mean = a.mean + delta * share;
  both.m2 = a.m2 + b.m2 + delta * delta * a.count * share;
  both.count = count;
  return both;
}

__device__ __forceinline__ Moments over_warp(Moments mine) {
  for (int offset = 16; offset > 0; offset >>= 1) {
    Moments other;
    other.mean = __shfl_down_sync(0xffffffffu, mine.mean, offset);
    other.m2 = __shfl_down_sync(0xffffffffu, mine.m2, offset);
    other.count = __shfl_down_sync(0xffffffffu, mine.count, offset);
    mine = combined(mine, other);
  }
  return mine;
}

#define AHEAD 16

// Grid (groups, 8), 64 threads. `size`: elements of a group.
extern "C" __global__ void moments_of_chains(const bf16* x, float2* chains, int size) {
  const int chain = blockIdx.y * blockDim.x + threadIdx.x;
  const bf16* group = x + (long long)blockIdx.x * size;
  float mean = 0.0f, m2 = 0.0f;
  int seen = 0;
  bf16 next[AHEAD];
#pragma unroll
  for (int k = 0; k < AHEAD; k++) {
    int place = chain + k * 512;
    next[k] = place < size ? group[place] : (bf16)0;
  }
  for (int start = chain; start < size; start += AHEAD * 512) {
    bf16 now[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) now[k] = next[k];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      long long place = (long long)start + (AHEAD + k) * 512;
      next[k] = place < size ? group[place] : (bf16)0;
    }
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      if (start + k * 512 < size) {
        seen += 1;
        float value = wide(now[k]);
        float delta = value - mean;
        float new_mean = mean + delta / (float)seen;
        m2 = m2 + delta * (value - new_mean);
        mean = new_mean;
      }
    }
  }
  chains[blockIdx.x * 512 + chain] = make_float2(mean, m2);
}

// Grid (groups), 512 threads. `moments`: mean and 1/deviation of each group.
extern "C" __global__ void moments_of_groups(
    const float2* chains, bf16* moments, int size, double eps) {
  __shared__ Moments warps[16];
  const int chain = threadIdx.x, lane = chain % 32, warp = chain / 32;
  float2 known = chains[blockIdx.x * 512 + chain];
  Moments mine;
  mine.mean = known.x;
  mine.m2 = known.y;
  mine.count = (float)(chain < size ? (size - chain + 511) / 512 : 0);
  mine = over_warp(mine);
  if (lane == 0) warps[warp] = mine;
  __syncthreads();
  if (warp == 0) {
    if (lane < 16) {
      mine = warps[lane];
    } else {
      mine.mean = 0.0f;
      mine.m2 = 0.0f;
      mine.count = 0.0f;
    }
    mine = over_warp(mine);
    if (lane == 0) {
      float variance = mine.m2 / mine.count;
      moments[2 * blockIdx.x] = narrow(mine.mean);
      moments[2 * blockIdx.x + 1] = narrow(rsqrtf(variance + (float)eps));
    }
  }
}

// Grid (samples × channels, blocks of a channel's pixels).
extern "C" __global__ void normalised(
    const uint4* x, const bf16* moments, const bf16* weight, const bf16* bias, uint4* y,
    int channels, int of_group, int vectors) {
  const int channel = blockIdx.x % channels;
  const int group = blockIdx.x / of_group;
  const float scale = wide(moments[2 * group + 1]) * wide(weight[channel]);
  const float shift = -scale * wide(moments[2 * group]) + wide(bias[channel]);
  const int vector = blockIdx.y * blockDim.x + threadIdx.x;
  if (vector >= vectors) return;
  const long long place = (long long)blockIdx.x * vectors + vector;
  uint4 in = x[place], out;
  const bf16* from = (const bf16*)&in;
  bf16* to = (bf16*)&out;
#pragma unroll
  for (int k = 0; k < 8; k++) to[k] = narrow(scale * wide(from[k]) + shift);
  y[place] = out;
}

// Grid (rows, blocks of a row). A row of x: `vectors` of hidden numbers, then as many of gates.
extern "C" __global__ void gated(const uint4* x, uint4* y, int vectors) {
  const int vector = blockIdx.y * blockDim.x + threadIdx.x;
  if (vector >= vectors) return;
  const long long row = blockIdx.x;
  uint4 hidden = x[row * 2 * vectors + vector];
  uint4 gates = x[row * 2 * vectors + vectors + vector];
  uint4 out;
  const bf16* left = (const bf16*)&hidden;
  const bf16* right = (const bf16*)&gates;
  bf16* to = (bf16*)&out;
#pragma unroll
  for (int k = 0; k < 8; k++) {
    float gate = wide(right[k]);
    float active = gate * 0.5f * (1.0f + erff(gate * 0.70710678118654752440f));
    to[k] = narrow(wide(left[k]) * wide(narrow(active)));
  }
  y[row * vectors + vector] = out;
}
"""
NAMES = ("moments_of_chains", "moments_of_groups", "normalised", "gated")
