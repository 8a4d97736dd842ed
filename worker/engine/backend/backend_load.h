/* backend_load.h - opens backends that are shared libraries (backend_plugin.h). Any thread; nothing is kept between calls.
 *
 *     char path[PATH_MAX];
 *     const struct backend_plugin *plugin;
 *     TRY(backend_find("libroost_cuda.so", path, sizeof path));
 *     TRY(backend_load(path, &plugin));
 *     plugin->ops->create(...)
 *
 * What was opened stays open until the process ends: threads and handlers of a driver outlive every backend. */
#ifndef ROOST_WORKER_ENGINE_BACKEND_LOAD_H
#define ROOST_WORKER_ENGINE_BACKEND_LOAD_H
#include <stddef.h>
#include "common/status.h"

struct backend_plugin;

/* The file beside this program, or in ../lib of there. STATUS_NOT_FOUND: in neither; the detail says both. */
enum status backend_find(const char *file, char *path, size_t size);
/* STATUS_NOT_FOUND: no such file. STATUS_INVALID: not a plugin. STATUS_UNSUPPORTED: of another build. STATUS_IO: it cannot be opened, for
 * want of libraries or of symbols in this program. The detail says what to do. *out is the plugin's own. */
enum status backend_load(const char *path, const struct backend_plugin **out);

#endif
