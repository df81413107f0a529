// The kernels as operators of torch: each launcher of launchers.h behind one function of tensors.
//
// Written against torch's stable ABI alone (torch/csrc/stable), so that it compiles in seconds and
// serves every torch from TORCH_TARGET_VERSION on. The schemas, the shapes of the results and the
// derivatives stand in operators.py; here tensors become pointers, and an error code an exception.
// Nothing here computes.
#include "tensors.h"

#include <tuple>

#include <torch/csrc/stable/library.h>

namespace {

// (y, mean, rstd)
std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor &x, const Tensor &weight,
                                              const Tensor &bias, double epsilon) {
    Matrix in(x);
    Tensor gain = in.vector(weight), shift = in.vector(bias);
    Tensor y = in.like(), mean = in.statistic(), rstd = in.statistic();
    check(yuyuan_layer_norm(in.dtype, in.data(), gain.data_ptr(), shift.data_ptr(), y.data_ptr(),
                            floats(mean), floats(rstd), in.rows, in.columns,
                            static_cast<float>(epsilon), in.stream),
          "layer_norm");
    return {y, mean, rstd};
}

// (dx, dweight, dbias)
std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor &dy, const OptionalTensor &dsum,
                                                       const Tensor &x, const Tensor &weight,
                                                       const Tensor &mean, const Tensor &rstd) {
    Matrix in(x);
    Tensor gradient = in.matrix(dy), gain = in.vector(weight);
    Tensor means = in.per_row(mean, ScalarType::Float), rstds = in.per_row(rstd, ScalarType::Float);
    OptionalTensor beside = in.matrix(dsum);
    Tensor dx = in.like(), dweight = in.row(), dbias = in.row();
    Partial partial(in, 2, yuyuan_norm_blocks(in.rows, in.columns));
    check(yuyuan_layer_norm_backward(in.dtype, gradient.data_ptr(), pointer(beside), in.data(),
                                     gain.data_ptr(), floats(means), floats(rstds), dx.data_ptr(),
                                     dweight.data_ptr(), dbias.data_ptr(), nullptr, nullptr,
                                     yuyuan_dropout{}, partial.data(), partial.blocks, in.rows,
                                     in.columns, in.stream),
          "layer_norm_backward");
    return {dx, dweight, dbias};
}

// residual + dropout(x + bias)
Tensor bias_dropout_add(const Tensor &x, const OptionalTensor &bias, const OptionalTensor &residual,
                        const OptionalTensor &rows, int64_t threshold, double scale, int64_t key,
                        int64_t step, int64_t site) {
    Matrix in(x);
    OptionalTensor shift = in.vector(bias), before = in.matrix(residual);
    Dropout dropout(in, rows, threshold, scale, key, step, site);
    Tensor sum = in.like();
    check(yuyuan_bias_dropout_add(in.dtype, in.data(), pointer(shift), pointer(before),
                                  sum.data_ptr(), dropout.value, in.rows, in.columns, in.stream),
          "bias_dropout_add");
    return sum;
}

// (dx, dbias)
std::tuple<Tensor, Tensor> bias_dropout_add_backward(const Tensor &dsum, const OptionalTensor &rows,
                                                     int64_t threshold, double scale, int64_t key,
                                                     int64_t step, int64_t site) {
    Matrix in(dsum);
    Dropout dropout(in, rows, threshold, scale, key, step, site);
    Tensor dx = in.like(), dbias = in.row();
    Partial partial(in, 1, yuyuan_column_blocks(in.dtype, in.rows, in.columns));
    check(yuyuan_bias_dropout_add_backward(in.dtype, in.data(), dx.data_ptr(),
                                           dbias.data_ptr(), dropout.value, partial.data(),
                                           partial.blocks, in.rows, in.columns,
                                           in.stream),
          "bias_dropout_add_backward");
    return {dx, dbias};
}

// (sum, y, mean, rstd)
std::tuple<Tensor, Tensor, Tensor, Tensor> bias_dropout_add_norm(
    const Tensor &x, const Tensor &bias, const Tensor &residual, const OptionalTensor &rows,
    int64_t threshold, double scale, int64_t key, int64_t step, int64_t site, const Tensor &weight,
    const Tensor &norm_bias, double epsilon) {
    Matrix in(x);
    Tensor shift = in.vector(bias), before = in.matrix(residual);
    Tensor gain = in.vector(weight), norm_shift = in.vector(norm_bias);
    Dropout dropout(in, rows, threshold, scale, key, step, site);
    Tensor sum = in.like(), y = in.like(), mean = in.statistic(), rstd = in.statistic();
    check(yuyuan_bias_dropout_add_norm(in.dtype, in.data(), shift.data_ptr(), before.data_ptr(),
                                       gain.data_ptr(), norm_shift.data_ptr(), sum.data_ptr(),
                                       y.data_ptr(), floats(mean), floats(rstd), dropout.value,
                                       static_cast<float>(epsilon), in.rows, in.columns, in.stream),
          "bias_dropout_add_norm");
    return {sum, y, mean, rstd};
}

// (dresidual, dx, dbias, dweight, dnorm_bias). Where nothing is dropped dx would be dresidual again,
// and is empty: an operator may not return a tensor twice.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bias_dropout_add_norm_backward(
    const Tensor &dy, const OptionalTensor &dsum, const Tensor &sum, const Tensor &weight,
    const Tensor &mean, const Tensor &rstd, const OptionalTensor &rows, int64_t threshold,
    double scale, int64_t key, int64_t step, int64_t site) {
    Matrix in(sum);
    Tensor gradient = in.matrix(dy), gain = in.vector(weight);
    Tensor means = in.per_row(mean, ScalarType::Float), rstds = in.per_row(rstd, ScalarType::Float);
    OptionalTensor beside = in.matrix(dsum);
    Dropout dropout(in, rows, threshold, scale, key, step, site);
    Tensor dresidual = in.like();
    Tensor dx = rows ? in.like() : torch::stable::new_empty(in.tensor, {0});
    void *branch = (rows ? dx : dresidual).data_ptr();
    Tensor dbias = in.row(), dweight = in.row(), dnorm_bias = in.row();
    Partial partial(in, 3, yuyuan_norm_blocks(in.rows, in.columns));
    check(yuyuan_layer_norm_backward(in.dtype, gradient.data_ptr(), pointer(beside), in.data(),
                                     gain.data_ptr(), floats(means), floats(rstds),
                                     dresidual.data_ptr(), dweight.data_ptr(),
                                     dnorm_bias.data_ptr(), branch, dbias.data_ptr(),
                                     dropout.value, partial.data(), partial.blocks, in.rows,
                                     in.columns, in.stream),
          "bias_dropout_add_norm_backward");
    return {dresidual, dx, dbias, dweight, dnorm_bias};
}

Tensor bias_gelu(const Tensor &x, const Tensor &bias) {
    Matrix in(x);
    Tensor shift = in.vector(bias), y = in.like();
    check(yuyuan_bias_gelu(in.dtype, in.data(), shift.data_ptr(), y.data_ptr(), in.rows, in.columns,
                           in.stream),
          "bias_gelu");
    return y;
}

// (dx, dbias)
std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor &dy, const Tensor &x,
                                              const Tensor &bias) {
    Matrix in(x);
    Tensor gradient = in.matrix(dy), shift = in.vector(bias);
    Tensor dx = in.like(), dbias = in.row();
    Partial partial(in, 1, yuyuan_column_blocks(in.dtype, in.rows, in.columns));
    check(yuyuan_bias_gelu_backward(in.dtype, gradient.data_ptr(), in.data(), shift.data_ptr(),
                                    dx.data_ptr(), dbias.data_ptr(), partial.data(), partial.blocks,
                                    in.rows, in.columns, in.stream),
          "bias_gelu_backward");
    return {dx, dbias};
}

// (largest, sum, target)
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor &logits, const Tensor &labels,
                                                 int64_t first, int64_t real) {
    Matrix in(logits);
    Tensor wanted = in.per_row(labels, ScalarType::Long);
    Tensor largest = in.statistic(), sum = in.statistic(), target = in.statistic();
    check(yuyuan_cross_entropy(in.dtype, in.data(), integers(wanted), floats(largest), floats(sum),
                               floats(target), in.rows, in.columns, first,
                               static_cast<int>(real), in.stream),
          "cross_entropy");
    return {largest, sum, target};
}

// In place of the logits, which therefore are not copied.
void cross_entropy_gradient(const Tensor &logits, const Tensor &labels, const Tensor &log_sum,
                            const Tensor &weight, int64_t first, int64_t real) {
    STD_TORCH_CHECK(logits.is_contiguous() && is_aligned(logits),
                    "cross_entropy_gradient: logits are overwritten where they lie, and must be "
                    "contiguous and aligned");
    Matrix in(logits);
    Tensor wanted = in.per_row(labels, ScalarType::Long);
    Tensor sums = in.per_row(log_sum, ScalarType::Float);
    Tensor weights = in.per_row(weight, ScalarType::Float);
    check(yuyuan_cross_entropy_gradient(in.dtype, logits.data_ptr(), integers(wanted),
                                        floats(sums), floats(weights), in.rows, in.columns, first,
                                        static_cast<int>(real), in.stream),
          "cross_entropy_gradient");
}

// softmax over the columns that come before each query, of scores (..., queries, columns).
Tensor causal_softmax(const Tensor &scores, double scale) {
    Matrix in(scores);
    Tensor weights = in.like();
    check(yuyuan_causal_softmax(in.dtype, in.data(), weights.data_ptr(), in.rows,
                                static_cast<int>(scores.size(-2)), in.columns,
                                static_cast<float>(scale), in.stream),
          "causal_softmax");
    return weights;
}

Tensor causal_softmax_backward(const Tensor &dweights, const Tensor &weights, double scale) {
    Matrix in(weights);
    Tensor gradient = in.matrix(dweights), dscores = in.like();
    check(yuyuan_causal_softmax_backward(in.dtype, gradient.data_ptr(), in.data(),
                                         dscores.data_ptr(), in.rows,
                                         static_cast<int>(weights.size(-2)), in.columns,
                                         static_cast<float>(scale), in.stream),
          "causal_softmax_backward");
    return dscores;
}

// A table of pieces: (count, sizeof(yuyuan_piece) / 8) int64.
const yuyuan_piece *pieces_of(const Tensor &table) {
    STD_TORCH_CHECK(table.is_contiguous() && table.dim() == 2 &&
                        table.size(1) * sizeof(int64_t) == sizeof(yuyuan_piece),
                    "a table of pieces has ", sizeof(yuyuan_piece) / sizeof(int64_t),
                    " contiguous words a row");
    return static_cast<const yuyuan_piece *>(table.data_ptr());
}

// Changes what the table points at.
void adamw(const Tensor &table, const Tensor &coefficient, double rate, double beta_1,
           double beta_2, double epsilon, double correction_1, double correction_2) {
    CurrentDevice device(table);
    check(yuyuan_adamw(pieces_of(table), static_cast<int>(table.size(0)), floats(coefficient),
                       static_cast<float>(rate), beta_1, beta_2, static_cast<float>(epsilon),
                       static_cast<float>(correction_1), static_cast<float>(correction_2),
                       device.stream),
          "adamw");
}

// () float64
Tensor squared_norm(const Tensor &table) {
    CurrentDevice device(table);
    Tensor partial = torch::stable::new_empty(table, {table.size(0)}, ScalarType::Double);
    Tensor total = torch::stable::new_empty(table, {}, ScalarType::Double);
    check(yuyuan_squared_norm(pieces_of(table), static_cast<int>(table.size(0)),
                              static_cast<double *>(partial.data_ptr()),
                              static_cast<double *>(total.data_ptr()), device.stream),
          "squared_norm");
    return total;
}

void register_all(torch::stable::detail::StableLibrary &library) {
    library.impl("layer_norm", TORCH_BOX(&layer_norm));
    library.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
    library.impl("bias_dropout_add", TORCH_BOX(&bias_dropout_add));
    library.impl("bias_dropout_add_backward", TORCH_BOX(&bias_dropout_add_backward));
    library.impl("bias_dropout_add_norm", TORCH_BOX(&bias_dropout_add_norm));
    library.impl("bias_dropout_add_norm_backward", TORCH_BOX(&bias_dropout_add_norm_backward));
    library.impl("bias_gelu", TORCH_BOX(&bias_gelu));
    library.impl("bias_gelu_backward", TORCH_BOX(&bias_gelu_backward));
    library.impl("cross_entropy", TORCH_BOX(&cross_entropy));
    library.impl("cross_entropy_gradient", TORCH_BOX(&cross_entropy_gradient));
    library.impl("causal_softmax", TORCH_BOX(&causal_softmax));
    library.impl("causal_softmax_backward", TORCH_BOX(&causal_softmax_backward));
    library.impl("adamw", TORCH_BOX(&adamw));
    library.impl("squared_norm", TORCH_BOX(&squared_norm));
}

}  // namespace

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(yuyuan, CUDA, library) { register_all(library); }
#else
STABLE_TORCH_LIBRARY_IMPL(yuyuan, CPU, library) { register_all(library); }
#endif
