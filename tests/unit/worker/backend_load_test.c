/* backend_load: real libraries, opened by a program that shows its symbols as roost-worker does. */
#include "worker/engine/backend/backend_load.h"
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "worker/engine/backend/backend.h"
#include "worker/engine/backend/backend_plugin.h"

static void library(const char *name, char *path)
{
    const char *build = getenv("ROOST_BUILD_DIR");
    assert_non_null(build);
    assert_true(snprintf(path, PATH_MAX, "%s/lib/lib%s.so", build, name) < PATH_MAX);
}

static enum status load(const char *name, const struct backend_plugin **out)
{
    char path[PATH_MAX];
    library(name, path);
    return backend_load(path, out);
}

static void assert_words(const char *words)
{
    if (!strstr(status_detail(), words))
        fail_msg("'%s' is not in '%s'", words, status_detail());
}

static void test_opens_one(void **state)
{
    (void)state;
    const struct backend_plugin *plugin = NULL, *again = NULL;
    if (load("plugin_good", &plugin) != STATUS_OK)
        fail_msg("%s", status_detail());
    assert_int_equal(plugin->abi, BACKEND_PLUGIN_ABI);
    assert_string_equal(plugin->ops->name, "good");
    assert_null(plugin->ranks);
    /* Its failures are this program's: there is one status library, not two. */
    const struct backend_config config = {.threads = 17};
    struct backend *backend = NULL;
    assert_int_equal(plugin->ops->create(NULL, &config, &backend), STATUS_UNSUPPORTED);
    assert_string_equal(status_detail(), "the plugin's words, of 17 threads");
    assert_int_equal(load("plugin_good", &again), STATUS_OK);
    assert_ptr_equal(again, plugin);
}

static void test_finds_beside_the_program(void **state)
{
    (void)state;
    char path[PATH_MAX];
    const struct backend_plugin *plugin = NULL;
    assert_int_equal(backend_find("libplugin_good.so", path, sizeof path), STATUS_OK);   /* tests/../lib */
    assert_int_equal(backend_load(path, &plugin), STATUS_OK);
    assert_int_equal(backend_find("backend_load_test", path, sizeof path), STATUS_OK);
    assert_int_equal(backend_find("libnowhere.so", path, sizeof path), STATUS_NOT_FOUND);
    assert_words("there is no libnowhere.so (looked for /");
    assert_words("/tests/libnowhere.so and /");
    assert_words("/tests/../lib/libnowhere.so): install it there, or say in backend_plugin where it is");
    assert_int_equal(backend_find("libplugin_good.so", path, 8), STATUS_LIMIT);
}

static void test_refuses_what_is_none(void **state)
{
    (void)state;
    const struct backend_plugin *plugin = NULL;
    assert_int_equal(load("plugin_nowhere", &plugin), STATUS_NOT_FOUND);
    assert_words("libplugin_nowhere.so: No such file");
    assert_int_equal(backend_load("/proc/self/status", &plugin), STATUS_INVALID);
    assert_words("/status: not a shared library: name libroost_cuda.so");
    assert_int_equal(backend_load("/tmp", &plugin), STATUS_INVALID);
    assert_int_equal(load("plugin_stranger", &plugin), STATUS_INVALID);
    assert_words("a library, but no backend of roost (it has no roost_backend_plugin): name libroost_cuda.so");
    assert_int_equal(load("plugin_old", &plugin), STATUS_UNSUPPORTED);
    char words[128];
    snprintf(words, sizeof words, "of another build: it has interface %u, this program %u: install the one that came with it",
             BACKEND_PLUGIN_ABI + 1, BACKEND_PLUGIN_ABI);
    assert_words(words);
    assert_null(plugin);
}

static void test_says_what_is_missing(void **state)
{
    (void)state;
    const struct backend_plugin *plugin = NULL;
    assert_int_equal(load("plugin_lacking", &plugin), STATUS_IO);
    assert_words("undefined symbol: plugin_stranger");
    assert_words("it is of another build than this program");
    assert_int_equal(load("plugin_orphan", &plugin), STATUS_IO);
    assert_words("libplugin_away.so: cannot open shared object file");
    assert_words("ldd shows which libraries it lacks");
    assert_null(plugin);
}

/* A path without a slash is a file here, not one of the system's libraries. */
static void test_a_bare_name_is_a_file(void **state)
{
    (void)state;
    char path[PATH_MAX], before[PATH_MAX];
    const struct backend_plugin *plugin = NULL;
    library("plugin_good", path);
    *strrchr(path, '/') = '\0';
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(backend_load("libc.so.6", &plugin), STATUS_NOT_FOUND);
    assert_int_equal(chdir(path), 0);
    assert_int_equal(backend_load("libplugin_good.so", &plugin), STATUS_OK);
    assert_int_equal(chdir(before), 0);
}

/* Those that were built open here: every symbol that they take from the program is there. */
static void check_cuda(const char *name)
{
    const struct backend_plugin *plugin = NULL;
    if (load(name, &plugin) != STATUS_OK)
        fail_msg("%s", status_detail());
    assert_string_equal(plugin->ops->name, "cuda");
    assert_string_equal(plugin->ops->bits, backend_cpu_ops.bits);
    assert_non_null(plugin->ops->health);
}

static void test_cuda_plugins_open(void **state)
{
    (void)state;
    (void)check_cuda;
#ifdef BUILT_roost_cuda
    check_cuda("roost_cuda");
#endif
#ifdef BUILT_roost_cuda_emulated
    check_cuda("roost_cuda_emulated");
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_opens_one),
        cmocka_unit_test(test_finds_beside_the_program),
        cmocka_unit_test(test_refuses_what_is_none),
        cmocka_unit_test(test_says_what_is_missing),
        cmocka_unit_test(test_a_bare_name_is_a_file),
        cmocka_unit_test(test_cuda_plugins_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
