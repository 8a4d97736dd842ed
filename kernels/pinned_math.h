/* pinned_math.h - elementary functions whose bits are ours: IEEE operations and explicit fma only, never libm, so that every
 * processor and backend agrees (docs/numerics.md). Pure functions. */
#ifndef ROOST_KERNELS_PINNED_MATH_H
#define ROOST_KERNELS_PINNED_MATH_H

float pinned_exp2(float x);       /* relative error below 2^-22; 0 below -150, infinity from 128 */
float pinned_log(float x);        /* natural; x > 0, denormals included */
float pinned_tanh(float x);
float pinned_sigmoid(float x);    /* 1 / (1 + exp(-x)) */
/* cos and sin of position * base^(-2 * pair / dim), in double inside, rounded once to float. */
void pinned_rope_angle(double base, unsigned pair, unsigned dim, unsigned position, float *cosine, float *sine);

#endif
