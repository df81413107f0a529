// The names of CUDA's errors. The kernels' library has CUDA's runtime in it; the binding has not.
#include "port.h"

const char *yuyuan_error_name(int code) {
    return cudaGetErrorName(static_cast<cudaError_t>(code));
}
