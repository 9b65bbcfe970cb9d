#pragma once

// Whether MKL takes its kernels for this processor, rather than those for any.
extern "C" __attribute__((visibility("default"))) int mkl_serv_intel_cpu_true();
