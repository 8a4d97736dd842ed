/* score.h - what logits are worth: sums over positions of a text, of one model alone and beside a reference. Plain data; sums are
 * in double. Units: nats. */
#ifndef ROOST_WORKER_EVAL_SCORE_H
#define ROOST_WORKER_EVAL_SCORE_H
#include <stdint.h>

struct score {
    uint64_t tokens;           /* predicted tokens */
    double nats;               /* sum of -log p(token) */
    double kl;                 /* sum of KL(reference || model); 0 without a reference */
    double kl_max;
    uint64_t agree;            /* positions at which both rate the same token highest (ties: the lowest id) */
    double distance;           /* sum over positions of the mean |logit - reference logit| */
    double distance_max;       /* of a single logit */
};

/* logits is (vocab); reference is (vocab) or NULL; token is the one that came next. */
void score_add(struct score *score, const float *logits, const float *reference, uint32_t vocab, uint32_t token);

double score_perplexity(const struct score *score);     /* exp(nats / tokens); 1 for no tokens */
double score_loss(const struct score *score);           /* nats per token */
double score_kl(const struct score *score);             /* nats per position */
double score_agreement(const struct score *score);      /* 0 .. 1 */
double score_distance(const struct score *score);

#endif
