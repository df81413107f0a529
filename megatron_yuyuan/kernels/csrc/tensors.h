// Tensors as the launchers read them: contiguous, aligned, of one dtype, of sizes that fit. What
// lies otherwise is copied, what cannot fit is refused; a launcher itself checks little.
//
// USE_CUDA is torch's own name for the CUDA half of its stable ABI; without it the emulated kernels
// are bound, on the CPU.
#pragma once
#include "launchers.h"

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifdef USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr uintptr_t ALIGNMENT = 16;  // bytes of one access

// Raise a RuntimeError that names the launcher and the CUDA error.
void check(int code, const char *launcher) {
    STD_TORCH_CHECK(code == 0, launcher, ": ", yuyuan_error_name(code));
}

int dtype_of(const Tensor &x) {
    switch (x.scalar_type()) {
        case ScalarType::Float: return YUYUAN_FLOAT32;
        case ScalarType::Half: return YUYUAN_FLOAT16;
        case ScalarType::BFloat16: return YUYUAN_BFLOAT16;
        default: break;
    }
    STD_TORCH_CHECK(false, "a fused kernel takes float32, float16 or bfloat16");
}

// Makes the device of x the current one while it lives: a launcher runs on that, and counts its
// multiprocessors. `stream` is the one on which torch queues work there.
struct CurrentDevice {
#ifdef USE_CUDA
    explicit CurrentDevice(const Tensor &x) : guard(x.get_device_index()) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    }

    torch::stable::accelerator::DeviceGuard guard;
#else
    explicit CurrentDevice(const Tensor &) {}
#endif
    void *stream = nullptr;
};

bool is_aligned(const Tensor &x) {
    return reinterpret_cast<uintptr_t>(x.data_ptr()) % ALIGNMENT == 0;
}

// A copy only where x lies otherwise.
Tensor prepared(const Tensor &x) {
    Tensor packed = torch::stable::contiguous(x);
    return is_aligned(packed) ? packed : torch::stable::clone(packed);
}

const void *pointer(const OptionalTensor &x) { return x ? x->data_ptr() : nullptr; }
float *floats(const Tensor &x) { return static_cast<float *>(x.data_ptr()); }
const int64_t *integers(const Tensor &x) { return static_cast<const int64_t *>(x.data_ptr()); }

// The rows of a tensor whose last dim is its columns, what goes with them, and room for results.
struct Matrix {
    explicit Matrix(const Tensor &x)
        : device(x),
          tensor(prepared(x)),
          dtype(dtype_of(x)),
          columns(static_cast<int>(x.size(-1))),
          rows(columns ? x.numel() / columns : 0),
          stream(device.stream) {
        STD_TORCH_CHECK(columns % 8 == 0, "a fused kernel takes columns by 8, not ", columns);
    }

    const void *data() const { return tensor.data_ptr(); }

    // Beside it: one element a column, as many elements as it has, one element a row.
    Tensor vector(const Tensor &x) const { return beside(x, columns, tensor.scalar_type()); }
    Tensor matrix(const Tensor &x) const { return beside(x, rows * columns, tensor.scalar_type()); }
    Tensor per_row(const Tensor &x, ScalarType type) const { return beside(x, rows, type); }
    OptionalTensor vector(const OptionalTensor &x) const {
        return x ? OptionalTensor(vector(*x)) : std::nullopt;
    }
    OptionalTensor matrix(const OptionalTensor &x) const {
        return x ? OptionalTensor(matrix(*x)) : std::nullopt;
    }

    // Uninitialised: like it, one element a column, one float32 a row, float32 of any shape.
    Tensor like() const { return torch::stable::empty_like(tensor); }
    Tensor row() const { return torch::stable::new_empty(tensor, {columns}); }
    Tensor statistic() const {
        std::vector<int64_t> shape;
        for (int64_t dim = 0; dim + 1 < tensor.dim(); ++dim) shape.push_back(tensor.size(dim));
        return space(shape);
    }
    Tensor space(const std::vector<int64_t> &shape) const {
        return torch::stable::new_empty(tensor, shape, ScalarType::Float);
    }

    CurrentDevice device;
    Tensor tensor;
    int dtype, columns;
    int64_t rows;
    void *stream;

  private:
    static Tensor beside(const Tensor &x, int64_t elements, ScalarType type) {
        STD_TORCH_CHECK(x.numel() == elements && x.scalar_type() == type,
                        "a fused kernel takes tensors whose dtypes and sizes fit each other");
        return prepared(x);
    }
};

// Memory for the column sums that a backward gathers in so many blocks.
struct Partial {
    Partial(const Matrix &x, int64_t sums, int blocks)
        : blocks(blocks), tensor(x.space({sums, blocks, x.columns})) {}

    float *data() const { return floats(tensor); }

    int blocks;
    Tensor tensor;
};

// yuyuan_dropout of the rows of x, and the tensor that it points at.
struct Dropout {
    Dropout(const Matrix &x, const OptionalTensor &rows, int64_t threshold, double scale,
            int64_t key, int64_t step, int64_t site)
        : rows(rows ? OptionalTensor(x.per_row(*rows, ScalarType::Long)) : std::nullopt),
          value{this->rows ? integers(*this->rows) : nullptr,
                static_cast<uint32_t>(threshold),
                static_cast<float>(scale),
                static_cast<uint64_t>(key),
                static_cast<uint32_t>(step),
                static_cast<uint32_t>(site)} {}

    OptionalTensor rows;
    yuyuan_dropout value;
};

}  // namespace
