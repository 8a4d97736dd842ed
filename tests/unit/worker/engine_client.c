#include "tests/unit/worker/engine_client.h"
#include "tests/unit/worker/unit.h"
#include "common/utf8.h"

void client_setup(struct client *client, struct engine *engine)
{
    *client = (struct client){.engine = engine};
    client->jobs = calloc(CLIENT_JOBS, sizeof *client->jobs);
    assert_non_null(client->jobs);
}

void client_free(struct client *client)
{
    free(client->jobs);
    client->jobs = NULL;
}

void client_reset(struct client *client)
{
    assert_int_equal(client->count, client->ended);
    client->count = client->ended = 0;
}

enum status client_submit(struct client *client, struct engine_request *request, struct client_job **out)
{
    assert_true(client->count < CLIENT_JOBS);
    request->job = ++client->last_job;
    const enum status st = engine_submit(client->engine, request);
    if (st != STATUS_OK)
        return st;
    struct client_job *job = &client->jobs[client->count++];
    job->job = request->job;
    job->count = 0;
    job->text_size = 0;
    job->ended = false;
    *out = job;
    return STATUS_OK;
}

static void on_event(void *user, const struct engine_event *event)
{
    struct client *client = user;
    struct client_job *job = NULL;
    for (unsigned i = 0; i < client->count; i++)
        if (client->jobs[i].job == event->job)
            job = &client->jobs[i];
    assert_non_null(job);
    assert_false(job->ended);
    if (event->kind == ENGINE_TOKENS) {
        assert_int_equal(event->first, job->count);
        assert_true(event->count > 0 && job->count + event->count <= CLIENT_TOKENS);
        assert_true(utf8_valid(event->text, event->text_size));
        assert_null(memchr(event->text, 0, event->text_size));
        assert_true(job->text_size + event->text_size <= CLIENT_TEXT);
        memcpy(job->ids + job->count, event->ids, event->count * sizeof *event->ids);
        memcpy(job->text + job->text_size, event->text, event->text_size);
        job->count += event->count;
        job->text_size += event->text_size;
    } else {
        job->ended = true;
        job->end = *event;
        job->end_order = ++client->ended;
        if (event->kind == ENGINE_FAILED) {
            snprintf(job->detail, sizeof job->detail, "%s", event->detail);
            job->end.detail = job->detail;
        } else {
            assert_int_equal(event->reply_tokens, job->count);
            assert_true(event->cached_tokens < event->prompt_tokens);
        }
    }
    if (client->on_event != NULL)
        client->on_event(client, event);
}

bool client_step(struct client *client)
{
    const bool worked = engine_step(client->engine, on_event, client);
    if (client->check)
        assert_ok(engine_check(client->engine));
    return worked;
}

void client_run(struct client *client)
{
    while (client_step(client))
        ;
    assert_int_equal(client->ended, client->count);
}

void talk_say(struct talk *talk, enum engine_role role, const char *text, size_t size)
{
    assert_true(talk->count < TALK_MESSAGES);
    size = size < TALK_TEXT ? size : TALK_TEXT;
    while (!utf8_valid(text, size))
        size--;
    talk->messages[talk->count].role = role;
    memcpy(talk->messages[talk->count].text, text, size);
    talk->messages[talk->count].size = size;
    talk->count++;
}

void talk_request(struct talk *talk, struct engine_request *request)
{
    for (unsigned i = 0; i < talk->count; i++)
        talk->views[i] = (struct engine_message){
            .role = talk->messages[i].role, .text = talk->messages[i].text, .text_size = talk->messages[i].size};
    request->messages = talk->views;
    request->message_count = talk->count;
}

struct client_job *client_ask(struct client *client, struct engine_request *request)
{
    struct client_job *job = NULL;
    assert_ok(client_submit(client, request, &job));
    client_run(client);
    if (job->end.kind != ENGINE_DONE)
        fail_msg("job failed: %s: %s", status_name(job->end.status), job->detail);
    return job;
}

void assert_same_reply(const struct client_job *a, const struct client_job *b)
{
    assert_int_equal(a->end.finish, b->end.finish);
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->ids, b->ids, a->count * sizeof a->ids[0]);
    assert_int_equal(a->text_size, b->text_size);
    assert_memory_equal(a->text, b->text, a->text_size);
}
