// Launchers of the fused kernels: plain C, no torch.
//
// Matrices are contiguous rows of `columns` elements, 16-byte aligned, columns a multiple of 8; all
// pointers lie on the device of `stream` (a cudaStream_t). `dtype` is that of every `void *` matrix
// or vector. Arithmetic and statistics are float32; what is stored is rounded once. Every launcher
// returns cudaGetLastError(): 0 if its kernels were launched.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { YUYUAN_FLOAT32 = 0, YUYUAN_FLOAT16 = 1, YUYUAN_BFLOAT16 = 2 };

// The name of the error that a launcher returned, such as "cudaErrorInvalidValue". In errors.cu.
const char *yuyuan_error_name(int code);

// Which elements a dropout keeps, and by what they are multiplied: word w of Philox4x32-10 is that
// of philox.random_words(rows, columns, key, step, site); kept where w >= threshold, which is
// (uint32_t)(p * 2^32).
typedef struct {
    const int64_t *rows;  // the global number of each row; NULL: no dropout, nothing else is read
    uint32_t threshold;
    float scale;  // 1 / (1 - p)
    uint64_t key;
    uint32_t step, site;
} yuyuan_dropout;

// The longest row of a layer norm, which lies in a block's registers with its column sums; a longer
// one is refused with cudaErrorInvalidValue.
enum { YUYUAN_NORM_COLUMNS = 8192 };

// y = (x - mean) * rstd * weight + bias; mean, rstd (rows,) are kept for the backward.
int yuyuan_layer_norm(int dtype, const void *x, const void *weight, const void *bias, void *y,
                      float *mean, float *rstd, int64_t rows, int columns, float epsilon,
                      void *stream);

// The number of blocks, and so of partial sums, that a backward with column sums is to be launched
// with: `partial` of a launcher has (its column sums, blocks, columns) floats. The first is for
// yuyuan_layer_norm_backward, the second for the others.
int yuyuan_norm_blocks(int64_t rows, int columns);
int yuyuan_column_blocks(int dtype, int64_t rows, int columns);

// Backward of `y = norm(x)` where x also goes on beside it: dx = norm'(dy) + dsum; dsum NULL:
// without. With a branch, x was residual + dropout(... + branch_bias): dbranch = dropout'(dx), and
// its column sum dbranch_bias; both NULL: x had no branch. Where nothing is dropped, dbranch may be
// dx, which is written once then. partial: 2 column sums, 3 with a branch.
int yuyuan_layer_norm_backward(int dtype, const void *dy, const void *dsum, const void *x,
                               const void *weight, const float *mean, const float *rstd, void *dx,
                               void *dweight, void *dbias, void *dbranch, void *dbranch_bias,
                               yuyuan_dropout dropout, float *partial, int blocks, int64_t rows,
                               int columns, void *stream);

// sum = residual + dropout(x + bias). bias or residual may be NULL.
int yuyuan_bias_dropout_add(int dtype, const void *x, const void *bias, const void *residual,
                            void *sum, yuyuan_dropout dropout, int64_t rows, int columns,
                            void *stream);

// The same, and y = norm(sum) of the sum as it was stored.
int yuyuan_bias_dropout_add_norm(int dtype, const void *x, const void *bias, const void *residual,
                                 const void *weight, const void *norm_bias, void *sum, void *y,
                                 float *mean, float *rstd, yuyuan_dropout dropout, float epsilon,
                                 int64_t rows, int columns, void *stream);

// dx = dropout'(dsum), dbias its column sum. The gradient of the residual is dsum itself. partial:
// 1 column sum.
int yuyuan_bias_dropout_add_backward(int dtype, const void *dsum, void *dx, void *dbias,
                                     yuyuan_dropout dropout, float *partial, int blocks,
                                     int64_t rows, int columns, void *stream);

// y = gelu(x + bias), tanh form. Backward: dx, and dbias its column sum. partial: 1 column sum.
int yuyuan_bias_gelu(int dtype, const void *x, const void *bias, void *y, int64_t rows, int columns,
                     void *stream);
int yuyuan_bias_gelu_backward(int dtype, const void *dy, const void *x, const void *bias, void *dx,
                              void *dbias, float *partial, int blocks, int64_t rows, int columns,
                              void *stream);

// Of the first `real` columns of each row of logits, which are tokens first, first + 1, ...: the
// largest logit, the sum of exp(logit - largest), and the logit of the row's label; 0 where the
// label is not among them. real 0: -inf, 0, 0.
int yuyuan_cross_entropy(int dtype, const void *logits, const int64_t *labels, float *largest,
                         float *sum, float *target, int64_t rows, int columns, int64_t first,
                         int real, void *stream);

// In place of the logits: (exp(logit - log_sum) - [column is the label]) * weight, 0 from `real`
// on. log_sum, weight (rows,): over the whole vocabulary; weight 0 where nothing is learned.
int yuyuan_cross_entropy_gradient(int dtype, void *logits, const int64_t *labels,
                                  const float *log_sum, const float *weight, int64_t rows,
                                  int columns, int64_t first, int real, void *stream);

// One piece, of at most YUYUAN_PIECE elements, of a parameter's local shard; a table of them lies
// in device memory, so that one launch updates all parameters. All float32.
enum { YUYUAN_PIECE = 16384 };
typedef struct {
    float *parameter, *exp_avg, *exp_avg_sq;
    const float *gradient;
    int64_t count;
    float weight_decay;
    int counted;  // whether the norm counts its gradient
} yuyuan_piece;

// AdamW with decoupled weight decay, arXiv:1711.05101; the gradient is first multiplied by
// *coefficient, read on the device. Nothing is changed where *coefficient is not finite.
// correction_1 = 1 - beta_1^t, correction_2 = 1 - beta_2^t. The betas are float64: 1 - 0.999 from a
// float32 0.999 would be wrong by 1e-5 of itself.
int yuyuan_adamw(const yuyuan_piece *pieces, int count, const float *coefficient, float rate,
                 double beta_1, double beta_2, float epsilon, float correction_1,
                 float correction_2, void *stream);

// total = the sum of the squares of the counted gradients, in one order whatever the device: a sum
// per piece (partial, (count,) float64), then their sum. Not finite where a gradient is not.
int yuyuan_squared_norm(const yuyuan_piece *pieces, int count, double *partial, double *total,
                        void *stream);

// The longest row of a causal softmax, which lies in a warp's registers; a longer one is refused
// with cudaErrorInvalidValue, and so are more queries than columns.
enum { YUYUAN_SOFTMAX_COLUMNS = 2048 };

// Row (b, n, t) of scores (..., T, S): softmax of score * scale over the S - T + t + 1 first
// columns, 0 after them; scale > 0; columns = S. Backward: dscores from the weights and their
// gradient.
int yuyuan_causal_softmax(int dtype, const void *scores, void *weights, int64_t rows, int queries,
                          int columns, float scale, void *stream);
int yuyuan_causal_softmax_backward(int dtype, const void *dweights, const void *weights,
                                   void *dscores, int64_t rows, int queries, int columns,
                                   float scale, void *stream);

#ifdef __cplusplus
}
#endif
