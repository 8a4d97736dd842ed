/* backend_load.c - finds and opens plugins; each way to fail has its own words. */
#include "worker/engine/backend/backend_load.h"
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_plugin.h"

enum status backend_find(const char *file, char *path, size_t size)
{
    static const char *const folders[] = {"", "../lib/"};
    char program[PATH_MAX], tried[2 * PATH_MAX + 64] = "";
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program);
    if (length <= 0 || (size_t)length >= sizeof program)
        return STATUS_FAIL(STATUS_IO, "where this program lies cannot be told (/proc/self/exe): %s", strerror(errno));
    program[length] = '\0';
    *(strrchr(program, '/') + 1) = '\0';
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        const int written = snprintf(path, size, "%s%s%s", program, folders[i], file);
        if (written < 0 || (size_t)written >= size)
            return STATUS_FAIL(STATUS_LIMIT, "the path of %s is longer than %zu bytes", file, size - 1);
        if (access(path, F_OK) == 0)
            return STATUS_OK;
        const size_t used = strlen(tried);
        snprintf(tried + used, sizeof tried - used, "%s%s", i ? " and " : "", path);
    }
    return STATUS_FAIL(STATUS_NOT_FOUND,
                       "there is no %s (looked for %s): install it there, or say in backend_plugin where it is; builds with the CUDA "
                       "toolkit make it", file, tried);
}

static enum status check_file(const char *path)
{
    unsigned char magic[SELFMAG] = {0};
    FILE *file = fopen(path, "rb");
    if (!file)
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "backend_plugin %s: %s", path, strerror(errno));
    const bool elf = fread(magic, 1, sizeof magic, file) == sizeof magic && memcmp(magic, ELFMAG, SELFMAG) == 0;
    fclose(file);
    return elf ? STATUS_OK : STATUS_FAIL(STATUS_INVALID, "backend_plugin %s: not a shared library: name libroost_cuda.so", path);
}

enum status backend_load(const char *path, const struct backend_plugin **out)
{
    char full[PATH_MAX];
    if (!realpath(path, full))           /* dlopen looks elsewhere for a name without a slash */
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "backend_plugin %s: %s", path, strerror(errno));
    TRY(check_file(full));
    void *library = dlopen(full, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        return STATUS_FAIL(STATUS_IO,
                           "backend_plugin %s cannot be opened: %s; ldd shows which libraries it lacks, and with an undefined symbol it is "
                           "of another build than this program", full, why ? why : "no reason given");
    }
    const struct backend_plugin *plugin = dlsym(library, BACKEND_PLUGIN_SYMBOL);
    if (!plugin) {
        dlclose(library);
        return STATUS_FAIL(STATUS_INVALID,
                           "backend_plugin %s: a library, but no backend of roost (it has no " BACKEND_PLUGIN_SYMBOL "): name libroost_cuda.so",
                           full);
    }
    if (plugin->abi != BACKEND_PLUGIN_ABI) {
        const uint32_t abi = plugin->abi;
        dlclose(library);
        return STATUS_FAIL(STATUS_UNSUPPORTED,
                           "backend_plugin %s is of another build: it has interface %" PRIu32 ", this program %u: install the one that came "
                           "with it", full, abi, BACKEND_PLUGIN_ABI);
    }
    *out = plugin;
    return STATUS_OK;
}
