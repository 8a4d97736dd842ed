/* clock.h - monotonic time. No wall clock of another host is ever compared with ours. Thread-safe. */
#ifndef ROOST_COMMON_CLOCK_H
#define ROOST_COMMON_CLOCK_H
#include <stdint.h>

uint64_t clock_now_ms(void);   /* milliseconds since some fixed point of this boot */
uint64_t clock_now_us(void);

#endif
