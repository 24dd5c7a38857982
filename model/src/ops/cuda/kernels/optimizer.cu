// One optimiser step without asking the host anything: the norm of all gradients decides on the device whether the step
// is taken, by how much gradients are scaled, and what the next loss scale is; then every parameter is updated in one
// pass (AdamW with torch's semantics, the moving average, the working copy in half precision).
#include "common.cuh"

// Kept on the device from step to step. Its twin is `StepState` in ../optimizer.rs.
struct StepState {
    float loss_scale;       // what the current gradients are multiplied by
    int steps_since_growth; // taken steps since the scale last changed
    int taken;              // updates made
    float gradient_factor;  // 1/loss_scale and clipping; 0 for a skipped step
    float bias_correction1, bias_correction2;
};

// One block. `squares` are partial sums of squares of all gradients as they are (still multiplied by the loss scale);
// `losses` are this step's, the last of them what is minimised. Writes the losses, the norm without the loss scale, the
// scale, and whether the step is taken to `entry`, for the host to read some day.
//
// clip <= 0 leaves the norm alone. A scale that did well for `growth_interval` steps is doubled up to `highest_scale`;
// one that overflowed is halved down to 1. growth_interval 0 keeps the scale fixed. A loss that is not finite says nothing
// about the scale.
extern "C" __global__ void prepare_step(const float *squares, int count, const float *losses, int terms, float *entry,
                                        StepState *state, float clip, float beta1, float beta2, int growth_interval,
                                        float highest_scale) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += squares[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    StepState next = *state;
    const float norm = sqrtf(sum) / next.loss_scale;
    const bool finite_loss = isfinite(losses[terms - 1]), taken = finite_loss && isfinite(sum);
    for (int i = 0; i < terms; ++i) entry[i] = losses[i];
    entry[terms] = norm;
    entry[terms + 1] = next.loss_scale;
    entry[terms + 2] = taken ? 1.0f : 0.0f;
    if (taken) {
        next.taken += 1;
        next.gradient_factor = 1.0f / next.loss_scale;
        if (clip > 0.0f) next.gradient_factor *= fminf(1.0f, clip / (norm + 1e-6f));
        next.bias_correction1 = (float)(1.0 - pow((double)beta1, (double)next.taken));
        next.bias_correction2 = (float)(1.0 - pow((double)beta2, (double)next.taken));
        next.steps_since_growth += 1;
        if (growth_interval > 0 && next.steps_since_growth >= growth_interval) {
            next.loss_scale = fminf(2.0f * next.loss_scale, highest_scale);
            next.steps_since_growth = 0;
        }
    } else {
        next.gradient_factor = 0.0f;
        if (finite_loss) {
            next.steps_since_growth = 0;
            if (growth_interval > 0) next.loss_scale = fmaxf(0.5f * next.loss_scale, 1.0f);
        }
    }
    *state = next;
}
EXPORT_KERNEL(prepare_step)

struct AdamW {
    float learning_rate, beta1, beta2, epsilon, weight_decay, ema_decay;
};

// Does nothing in a skipped step. `working` is the copy the network computes with; null where it computes with the
// parameter itself.
template <typename T>
__device__ inline void adamw(const T *gradient, float *parameter, float *first_moment, float *second_moment,
                             float *ema, __half *working, const StepState *state, AdamW rule, size_t length) {
    const float factor = state->gradient_factor;
    if (factor == 0.0f) return;
    const float step = rule.learning_rate / state->bias_correction1;
    const float root = rsqrtf(state->bias_correction2);
    for (size_t i = first_element(); i < length; i += element_stride()) {
        const float g = factor * to_float(gradient[i]);
        const float m = rule.beta1 * first_moment[i] + (1.0f - rule.beta1) * g;
        const float v = rule.beta2 * second_moment[i] + (1.0f - rule.beta2) * g * g;
        const float decayed = parameter[i] * (1.0f - rule.learning_rate * rule.weight_decay);
        const float updated = decayed - step * m / (sqrtf(v) * root + rule.epsilon);
        first_moment[i] = m;
        second_moment[i] = v;
        parameter[i] = updated;
        ema[i] = rule.ema_decay * ema[i] + (1.0f - rule.ema_decay) * updated;
        if (working != nullptr) working[i] = __float2half(updated);
    }
}

// The first step of the backward pass: the loss's own gradient times the loss scale.
template <typename T>
__device__ inline void scale_loss_gradient(const T *upstream, T *gradient, const StepState *state) {
    if (first_element() == 0) accumulate(gradient, to_float(*upstream) * state->loss_scale);
}

// A loss of a part of the batch, weighted by the part.
template <typename T>
__device__ inline void add_loss(const T *loss, float *sum, float share) {
    if (first_element() == 0) *sum += share * to_float(*loss);
}

#define OPTIMIZER_KERNELS(NAME, T)                                                                                     \
    extern "C" __global__ void adamw_##NAME(const T *gradient, float *parameter, float *first_moment,                  \
                                            float *second_moment, float *ema, __half *working,                         \
                                            const StepState *state, float learning_rate, float beta1, float beta2,     \
                                            float epsilon, float weight_decay, float ema_decay, size_t length) {       \
        adamw<T>(gradient, parameter, first_moment, second_moment, ema, working, state,                                \
                 AdamW{learning_rate, beta1, beta2, epsilon, weight_decay, ema_decay}, length);                        \
    }                                                                                                                  \
    EXPORT_KERNEL(adamw_##NAME)                                                                                        \
    extern "C" __global__ void scale_loss_gradient_##NAME(const T *upstream, T *gradient, const StepState *state) {    \
        scale_loss_gradient<T>(upstream, gradient, state);                                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(scale_loss_gradient_##NAME)                                                                          \
    extern "C" __global__ void add_loss_##NAME(const T *loss, float *sum, float share) {                               \
        add_loss<T>(loss, sum, share);                                                                                 \
    }                                                                                                                  \
    EXPORT_KERNEL(add_loss_##NAME)

OPTIMIZER_KERNELS(f32, float)
OPTIMIZER_KERNELS(f16, __half)
