/* libm serves here: nothing in this file reaches a token. */
#include "worker/eval/score.h"
#include <assert.h>
#include <math.h>
#include <stddef.h>

/* log of the sum of exp(logits), and the place of the highest. */
static double log_sum_exp(const float *logits, uint32_t vocab, uint32_t *top)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - (double)logits[best]);
    *top = best;
    return (double)logits[best] + log(sum);
}

static void compare(struct score *score, const float *logits, double norm, const float *reference, double reference_norm, uint32_t vocab)
{
    double kl = 0, distance = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        const double log_p = (double)reference[i] - reference_norm, log_q = (double)logits[i] - norm;
        const double gap = fabs((double)logits[i] - (double)reference[i]);
        kl += exp(log_p) * (log_p - log_q);
        distance += gap;
        if (gap > score->distance_max)
            score->distance_max = gap;
    }
    kl = kl > 0 ? kl : 0;   /* rounding can leave it a hair below */
    score->kl += kl;
    score->distance += distance / vocab;
    if (kl > score->kl_max)
        score->kl_max = kl;
}

void score_add(struct score *score, const float *logits, const float *reference, uint32_t vocab, uint32_t token)
{
    uint32_t top, reference_top;
    assert(token < vocab);
    const double norm = log_sum_exp(logits, vocab, &top);
    score->tokens++;
    score->nats += norm - (double)logits[token];
    if (reference == NULL)
        return;
    const double reference_norm = log_sum_exp(reference, vocab, &reference_top);
    score->agree += top == reference_top;
    compare(score, logits, norm, reference, reference_norm, vocab);
}

static double per_token(const struct score *score, double sum)
{
    return score->tokens > 0 ? sum / (double)score->tokens : 0;
}

double score_perplexity(const struct score *score)
{
    return exp(score_loss(score));
}

double score_loss(const struct score *score)
{
    return per_token(score, score->nats);
}

double score_kl(const struct score *score)
{
    return per_token(score, score->kl);
}

double score_agreement(const struct score *score)
{
    return per_token(score, (double)score->agree);
}

double score_distance(const struct score *score)
{
    return per_token(score, score->distance);
}
