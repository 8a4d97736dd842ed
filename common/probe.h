/* probe.h - named places in the protocol where a test driver can stop, kill, hang or fail this process. Compiled in by the CMake option
 * ROOST_PROBES (on in the presets for development, off in `release` and in packages); without it PROBE is a constant.
 *
 *     if (PROBE("worker.accepted"))       // true: the driver wants this to fail here
 *         return STATUS_FAIL(STATUS_IO, "a probe");
 *
 * Armed by the environment at start, ROOST_PROBES="worker.step=kill@40,worker.done=stop", or by POST /probe on the operator port. An action:
 * kill (SIGKILL), stop (SIGSTOP), abort, hang (this thread sleeps for ever), sleep:MS, fail (PROBE answers true); `@N`: at the Nth time that
 * the place is passed, default 1. It fires once, after one line "probe NAME ACTION" on standard error. Any thread. */
#ifndef ROOST_COMMON_PROBE_H
#define ROOST_COMMON_PROBE_H
#include <stdbool.h>
#include "common/status.h"

#ifdef ROOST_PROBES
#define PROBE(name) probe_hit(name)
#else
#define PROBE(name) false
#endif

/* An unarmed process pays one relaxed load. */
bool probe_hit(const char *name);
/* "NAME=ACTION[@N]", comma separated; adds to what is armed. STATUS_INVALID: nothing was armed. STATUS_UNSUPPORTED: built without probes. */
enum status probe_arm(const char *text);
/* Reads ROOST_PROBES from the environment; at the start of main. */
enum status probe_init(void);

#endif
