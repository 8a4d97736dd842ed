/* The choice of a level, and the known-answer vector on every level this machine has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/kernels.h"

static void every_level_gives_the_known_answer(void **state)
{
    (void)state;
    const struct kernels *kernels;
    for (unsigned i = 0; (kernels = kernels_at(i)); i++) {
        if (kernels_check(kernels) != STATUS_OK)
            fail_msg("%s", status_detail());
        print_message("%s\n", kernels->isa);
    }
    assert_string_equal(kernels_at(0)->isa, "baseline");
}

static void environment_names_the_level(void **state)
{
    (void)state;
    const struct kernels *kernels = NULL;
    for (unsigned i = 0; kernels_at(i); i++) {
        assert_int_equal(setenv("ROOST_ISA", kernels_at(i)->isa, 1), 0);
        assert_int_equal(kernels_select(&kernels), STATUS_OK);
        assert_ptr_equal(kernels, kernels_at(i));
    }
    setenv("ROOST_ISA", "avx1024", 1);
    assert_int_equal(kernels_select(&kernels), STATUS_INVALID);
    assert_non_null(strstr(status_detail(), "avx1024"));
    assert_non_null(strstr(status_detail(), "baseline"));
    unsetenv("ROOST_ISA");
    assert_int_equal(kernels_select(&kernels), STATUS_OK);
}

static bool wrong_norm(const struct rmsnorm *norm)
{
    memset(norm->out, 0, norm->rows * norm->columns * sizeof *norm->out);
    return true;
}

static void wrong_bits_are_noticed(void **state)
{
    (void)state;
    struct kernels broken = *kernels_at(0);
    broken.rmsnorm_rows = wrong_norm;
    assert_int_equal(kernels_check(&broken), STATUS_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_level_gives_the_known_answer),
        cmocka_unit_test(environment_names_the_level),
        cmocka_unit_test(wrong_bits_are_noticed),
    };
    return cmocka_run_group_tests_name("isa", tests, NULL, NULL);
}
