/* server_engine_test - the server with the real engine and the shipped model: tokens out of real text, and the cache at
 * work. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fake_router.h"
#include "tests/unit/unit.h"
#include "worker/engine/model/model_config.h"

static char model_dir[4096];
static struct bench bench;
static struct router router;
static const struct wire_attempt first_attempt = {0, 0};

static int start(void **state)
{
    (void)state;
    enum status st;
    bench_setup(&bench);
    bench.config.engine.model_dir = model_dir;
    if (bench_start(&bench) != STATUS_OK)
        return 1;
    if (bench_wait_state(&bench, WIRE_LIFE_READY, &st) != WIRE_LIFE_READY)
        return 1;
    router_connect(&router, &bench, 1);
    router_hello(&router);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    router_close(&router);
    bench_stop(&bench);
    return 0;
}

/* Sends messages (user, assistant, user, ...) and collects the reply, behind the first `had` tokens of one. */
static void chat_on(uint8_t id, uint32_t stream, const char *const *texts, unsigned count, uint32_t tokens_max,
                    const struct reply *before, uint32_t had, struct reply *reply)
{
    struct wire_message head, body;
    struct wire_chat_message messages[8], unused;
    uint8_t request_id[16], *data;
    struct ask ask = {.id = id,
                      .stream = stream,
                      .conversation = "c1",
                      .incarnation = bench.incarnation,
                      .sampling = {.tokens_max = tokens_max, .temperature = 0.7f}};
    if (before) {
        ask.resume_counts = &had;
        ask.resume_ids = before->ids;
        ask.numerics_id = before->numerics_id;
    }
    reply->first = had;
    ask_messages(&ask, &router, &head, &body, &unused, request_id);
    head.head.seed = 7;
    head.head.seed_given = true;
    for (unsigned i = 0; i < count; i++)
        messages[i] = (struct wire_chat_message){.role = i % 2 ? WIRE_MESSAGE_ASSISTANT : WIRE_MESSAGE_USER,
                                                 .text = wire_span_str(texts[i])};
    body.body.messages = messages;
    body.body.message_count = count;
    size_t size = encode(&body, &data);
    router_ask_raw(&router, &head, data, size);
    free(data);
    router_collect(&router, stream, first_attempt, reply);
    if (!reply->done)
        fail_msg("%s: %s", wire_error_name(reply->error), reply->detail);
}

static void chat(uint8_t id, uint32_t stream, const char *const *texts, unsigned count, uint32_t tokens_max,
                 struct reply *reply)
{
    chat_on(id, stream, texts, count, tokens_max, NULL, 0, reply);
}

/* Wherever it was cut, a reply goes on with the same tokens and the same text. */
static void a_resume_goes_on_as_the_reply_did(void **state)
{
    (void)state;
    const char *texts[1] = {"Who goes there? Speak, in the name of the king!"};
    struct reply whole = {0};
    chat(20, 20, texts, 1, 24, &whole);
    for (uint32_t had = 0; had <= whole.count; had += whole.count > 6 ? whole.count / 6 : 1) {
        struct reply rest = {0};
        chat_on((uint8_t)(30 + had), 30 + had, texts, 1, 24, &whole, had, &rest);
        assert_int_equal(had + rest.count, whole.count);
        assert_memory_equal(rest.ids ? rest.ids : whole.ids, whole.ids + had, rest.count * sizeof *rest.ids);
        assert_memory_equal(rest.text ? rest.text : "", whole.text + whole.text_size - rest.text_size, rest.text_size);
        assert_int_equal(rest.info.released, whole.count);
        assert_int_equal(rest.info.reply_tokens, whole.info.reply_tokens);
        assert_int_equal(rest.finish, whole.finish);
        assert_false(rest.info.inexact);
        reply_free(&rest);
    }
    reply_free(&whole);
}

static void a_second_turn_is_cached_and_a_repeat_is_the_same(void **state)
{
    (void)state;
    const char *texts[3] = {
        "To be, or not to be: that is the question. Whether 'tis nobler in the mind to suffer the slings and arrows "
        "of outrageous fortune, or to take arms against a sea of troubles, and by opposing end them?"};
    struct reply first = {0}, second = {0}, again = {0};
    chat(1, 1, texts, 1, 24, &first);
    assert_true(first.count > 0 && first.count <= 24);
    assert_int_equal(first.info.reply_tokens, first.count);
    assert_int_equal(first.info.released, first.count);
    assert_int_equal(first.info.cached_tokens, 0);
    assert_true(wire_utf8_valid(wire_span_of(first.text, first.text_size)));
    for (uint32_t stream = 2; stream <= 3;
         stream++) { /* the same seed, now from the cache; then the same id: as kept */
        chat(stream == 2 ? 3 : 1, stream, texts, 1, 24, &again);
        assert_int_equal(again.info.cached_tokens > 0, stream == 2);
        assert_int_equal(again.count, first.count);
        assert_memory_equal(again.ids, first.ids, first.count * sizeof *first.ids);
        reply_free(&again);
    }
    texts[1] = first.text_size ? first.text : "Aye.";
    texts[2] = "Speak on.";
    chat(2, 4, texts, 3, 8, &second);
    assert_true(second.info.cached_tokens > 16);
    assert_true(second.info.cached_tokens < second.info.prompt_tokens);
    reply_free(&first);
    reply_free(&second);
}

static void a_prompt_over_the_context_is_refused_with_both_counts(void **state)
{
    (void)state;
    static char text[200000];
    struct reply reply = {0};
    struct model_config config;
    char limit[40];
    assert_int_equal(model_config_load(model_dir, &config), STATUS_OK);
    snprintf(limit, sizeof limit, "at most %u", config.context_tokens_max - 1);
    for (size_t i = 0; i + 6 < sizeof text; i += 6)
        memcpy(text + i, "sword ", 6);
    router_ask(&router, &(struct ask){.id = 9, .stream = 9, .text = text});
    router_collect(&router, 9, first_attempt, &reply);
    assert_int_equal(reply.error, WIRE_ERROR_TOO_LARGE);
    assert_non_null(strstr(reply.detail, limit));
    reply_free(&reply);
}

static void a_cancel_stops_a_long_reply(void **state)
{
    (void)state;
    struct reply reply = {0};
    router_ask(&router,
               &(struct ask){.id = 10, .stream = 10, .text = "Tell me everything.", .sampling = {.temperature = 2}});
    router_collect_some(&router, 10, first_attempt, 1, &reply);
    router_cancel(&router, 10, "acme");
    router_collect(&router, 10, first_attempt, &reply);
    assert_true(reply.error == WIRE_ERROR_CANCELLED || reply.done); /* it may have ended by itself */
    reply_free(&reply);
}

int main(void)
{
    const char *source = getenv("ROOST_SOURCE_DIR");
    snprintf(model_dir, sizeof model_dir, "%s/deploy/models/folio", source ? source : ".");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_second_turn_is_cached_and_a_repeat_is_the_same, start, stop),
        cmocka_unit_test_setup_teardown(a_resume_goes_on_as_the_reply_did, start, stop),
        cmocka_unit_test_setup_teardown(a_prompt_over_the_context_is_refused_with_both_counts, start, stop),
        cmocka_unit_test_setup_teardown(a_cancel_stops_a_long_reply, start, stop),
    };
    return unit_run(tests, NULL, NULL);
}
