// Consecutive tokens and the factor of low rank that they are multiplied with: arguments of the kernels of lowrank.cu, passed by value.
#pragma once

namespace graft_cuda {

struct Run {
  const void* factor;  // [rank, width], contiguous
  int type;            // of its numbers: 0 float, 1 Half, 2 Bfloat16
  int rank;
  long long start, tokens;  // the rows of x or y
  long long h;              // where its h [tokens, rank] begins
  float scaling;
};

constexpr int kMostRuns = 64;  // of one launch: all arguments of a kernel have 4 KB

struct Runs {
  Run run[kMostRuns];
};

constexpr int kTokens = 4, kRanks = 8, kWarps = 4;  // what a warp of `down` computes; the warps of a block

}  // namespace graft_cuda
