/* wire_samples.h - one filled message of every kind: what the tests encode, damage and compare, and what frames/ holds.
 * Changing a sample changes what the kept frames are compared with: add a new sample instead. */
#ifndef WIRE_SAMPLES_H
#define WIRE_SAMPLES_H
#include "proto/wire.h"

/* Every field is given. The spans point to static data. kind is valid. */
struct wire_message wire_sample(enum wire_kind kind);
/* The same without the fields that came after those for failover (v1c). */
struct wire_message wire_sample_failover(enum wire_kind kind);
/* The same without the fields that came after the first build of version 1. */
struct wire_message wire_sample_first(enum wire_kind kind);

#endif
