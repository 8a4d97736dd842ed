#include "tests/unit/worker/engine_client.h"
#include "tests/unit/worker/unit.h"
#include "common/hash.h"
#include "common/utf8.h"

/* ---- jobs ---- */

static struct client_job *find(const struct client *client, uint64_t job)
{
    if (job < client->first_job || job > client->last_job)
        return NULL;
    return client->jobs[job - client->first_job];
}

static void on_logits(void *user, uint64_t job_id, uint32_t choice, uint32_t position, const float *logits,
                      uint32_t vocab_size)
{
    struct client *client = user;
    struct client_job *job = find(client, job_id);
    assert_non_null(job);
    assert_true(choice < job->choices && !job->ended);
    struct client_reply *reply = &job->replies[choice];
    reply->draws++;
    if (client->digest_logits)
        reply->logits = hash_fast(logits, vocab_size * sizeof *logits, hash_mix(reply->logits, position));
}

void client_setup(struct client *client, struct engine *engine)
{
    *client = (struct client){.engine = engine, .first_job = 1, .digest_logits = true};
    engine_observe_logits(engine, on_logits, client);
}

static void free_reply(struct client_reply *reply)
{
    free(reply->ids);
    free(reply->text);
    free(reply->logprobs);
    free(reply->alternative_ids);
    free(reply->alternative_logprobs);
}

static void free_job(struct client_job *job)
{
    for (unsigned i = 0; i < ENGINE_CHOICES_MAX; i++)
        free_reply(&job->replies[i]);
    free_reply(&job->prompt);
    free(job);
}

void client_reset(struct client *client)
{
    assert_int_equal(client->count, client->ended);
    for (unsigned i = 0; i < client->count; i++)
        free_job(client->jobs[i]);
    client->count = client->ended = 0;
    client->first_job = client->last_job + 1;
}

void client_free(struct client *client)
{
    for (unsigned i = 0; i < client->count; i++)
        free_job(client->jobs[i]);
    free(client->jobs);
    client->jobs = NULL;
    client->count = 0;
}

void client_converse(struct engine_request *request, unsigned number)
{
    assert_true(number < CLIENT_CONVERSATIONS);
    request->tell_fate = true;
    memset(request->conversation, 0, sizeof request->conversation);
    request->conversation[0] = (uint8_t)number;
}

enum status client_submit(struct client *client, struct engine_request *request, struct client_job **out)
{
    request->job = client->last_job + 1;
    const enum status st = engine_submit(client->engine, request, NULL);
    if (st != STATUS_OK)
        return st;
    struct client_job *job = calloc(1, sizeof *job);
    if (client->count == client->capacity) {
        client->capacity = 2 * client->capacity + 16;
        client->jobs = realloc(client->jobs, client->capacity * sizeof *client->jobs);
    }
    assert_true(job != NULL && client->jobs != NULL);
    client->last_job++;
    client->jobs[client->count++] = job;
    job->job = request->job;
    job->choices = request->choices > 1 ? request->choices : 1;
    job->logprobs = request->logprobs;
    job->prompt_logprobs = request->prompt_logprobs;
    job->alternatives = request->logprobs || request->prompt_logprobs ? request->alternatives : 0;
    job->resumed = request->resume_counts != NULL;
    job->fate = request->tell_fate ? &client->fates[request->conversation[0]] : NULL;
    for (unsigned i = 0; request->resume_counts != NULL && i < job->choices; i++)
        job->replies[i].resumed = request->resume_counts[i];
    for (unsigned i = 0; i < request->stop_count && i < 16; i++)
        snprintf(job->stops[job->stop_count++], sizeof job->stops[0], "%.*s", (int)request->stop_sizes[i],
                 request->stops[i]);
    *out = job;
    return STATUS_OK;
}

/* ---- events ---- */

static void *grow(void *list, size_t count, size_t size)
{
    list = realloc(list, count * size + 1);
    assert_non_null(list);
    return list;
}

static void append_ids(struct client_reply *reply, const struct engine_event *event, bool logprobs,
                       uint32_t alternatives)
{
    const size_t count = reply->count + event->count, n = alternatives;
    assert_true((event->logprobs != NULL) == logprobs);
    assert_true((event->alternative_ids != NULL) == (logprobs && n > 0));
    assert_true((event->alternative_logprobs != NULL) == (logprobs && n > 0));
    if (event->count == 0)
        return;
    if (count > reply->capacity) {
        reply->capacity = (uint32_t)(2 * count);
        reply->ids = grow(reply->ids, reply->capacity, sizeof *reply->ids);
        reply->logprobs = grow(reply->logprobs, reply->capacity, sizeof *reply->logprobs);
        reply->alternative_ids = grow(reply->alternative_ids, reply->capacity * n, sizeof *reply->alternative_ids);
        reply->alternative_logprobs =
            grow(reply->alternative_logprobs, reply->capacity * n, sizeof *reply->alternative_logprobs);
    }
    memcpy(reply->ids + reply->count, event->ids, event->count * sizeof *event->ids);
    if (logprobs)
        memcpy(reply->logprobs + reply->count, event->logprobs, event->count * sizeof *event->logprobs);
    if (logprobs && n > 0) {
        memcpy(reply->alternative_ids + reply->count * n, event->alternative_ids,
               event->count * n * sizeof *event->alternative_ids);
        memcpy(reply->alternative_logprobs + reply->count * n, event->alternative_logprobs,
               event->count * n * sizeof *event->alternative_logprobs);
    }
    reply->count = (uint32_t)count;
}

static void append_text(struct client_reply *reply, const char *text, size_t size)
{
    assert_true(utf8_valid(text, size));
    assert_true(size == 0 || memchr(text, 0, size) == NULL);
    if (reply->text_size + size + 1 > reply->text_capacity) {
        reply->text_capacity = 2 * (reply->text_size + size) + 64;
        reply->text = grow(reply->text, reply->text_capacity, 1);
    }
    if (size > 0)
        memcpy(reply->text + reply->text_size, text, size);
    reply->text_size += size;
    reply->text[reply->text_size] = '\0';
}

static void take_tokens(struct client_job *job, const struct engine_event *event)
{
    struct client_reply *reply = &job->replies[event->choice];
    assert_true(event->choice < job->choices);
    assert_int_equal(event->first, reply->resumed + reply->count);
    assert_true(event->count > 0 || event->text_size > 0);
    assert_int_equal(event->alternatives, job->logprobs ? job->alternatives : 0);
    assert_false(reply->over);
    reply->over = event->count == 0; /* text beyond the tokens: before a stop string, and the last */
    assert_true(job->prompt_seen == job->prompt_logprobs);
    append_ids(reply, event, job->logprobs, job->alternatives);
    append_text(reply, event->text, event->text_size);
    for (unsigned i = 0; i < job->stop_count; i++)
        assert_null(strstr(reply->text, job->stops[i]));
}

static void take_end(struct client *client, struct client_job *job, const struct engine_event *event)
{
    uint32_t released = 0;
    bool resumed = false;
    job->ended = true;
    job->end = *event;
    job->end_order = ++client->ended;
    if (event->kind == ENGINE_FAILED) {
        snprintf(job->detail, sizeof job->detail, "%s", event->detail);
        job->end.detail = job->detail;
        assert_int_not_equal(event->status, STATUS_OK);
        return;
    }
    for (unsigned i = 0; i < job->choices; i++) {
        released += job->replies[i].resumed + job->replies[i].count;
        resumed |= job->replies[i].resumed > 0;
        assert_true(event->finish[i] >= ENGINE_FINISH_STOP && event->finish[i] <= ENGINE_FINISH_STOP_STRING);
    }
    assert_int_equal(event->choices, job->choices);
    assert_int_equal(event->reply_tokens, released);
    assert_true(event->cached_tokens < event->prompt_tokens + resumed);
    assert_true(job->prompt_seen == job->prompt_logprobs);
    if (job->fate != NULL) {
        job->fate->kept = true;
        job->fate->host = false;
    }
}

/* Each event is news. */
static void take_fate(struct client *client, const struct engine_event *event)
{
    struct client_fate *fate = &client->fates[event->conversation[0]];
    assert_int_equal(event->job, 0);
    assert_true(fate->kept);
    if (event->kind == ENGINE_EVICTED) {
        fate->kept = false;
        fate->evicted++;
        return;
    }
    assert_int_equal(fate->host, event->kind == ENGINE_PROMOTED);
    fate->host = event->kind == ENGINE_DEMOTED;
    *(fate->host ? &fate->demoted : &fate->promoted) += 1;
}

static void on_event(void *user, const struct engine_event *event)
{
    struct client *client = user;
    if (event->kind >= ENGINE_DEMOTED) {
        take_fate(client, event);
        return;
    }
    struct client_job *job = find(client, event->job);
    assert_non_null(job);
    assert_false(job->ended);
    assert_true(job->started || event->kind == ENGINE_STARTED || event->kind == ENGINE_FAILED || job->resumed);
    if (event->kind == ENGINE_STARTED) {
        assert_false(job->started);
        job->started = true;
    } else if (event->kind == ENGINE_TOKENS) {
        take_tokens(job, event);
    } else if (event->kind == ENGINE_PROMPT) {
        assert_true(job->prompt_logprobs && !job->prompt_seen);
        job->prompt_seen = true;
        append_ids(&job->prompt, event, true, job->alternatives);
    } else {
        take_end(client, job, event);
    }
    if (client->on_event != NULL)
        client->on_event(client, event);
}

/* ---- running ---- */

bool client_step(struct client *client)
{
    const bool worked = engine_step(client->engine, on_event, client);
    client->steps++;
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

void client_run_jobs(struct client *client)
{
    while (client->ended < client->count)
        assert_true(client_step(client));
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

/* ---- comparing ---- */

static void assert_same_ids(const struct client_reply *a, const struct client_reply *b, bool logprobs,
                            uint32_t alternatives)
{
    const size_t cells = (size_t)a->count * alternatives;
    assert_int_equal(a->count, b->count);
    if (a->count == 0)
        return;
    assert_memory_equal(a->ids, b->ids, a->count * sizeof a->ids[0]);
    if (!logprobs)
        return;
    assert_memory_equal(a->logprobs, b->logprobs, a->count * sizeof a->logprobs[0]);
    if (cells == 0)
        return;
    assert_memory_equal(a->alternative_ids, b->alternative_ids, cells * sizeof a->alternative_ids[0]);
    assert_memory_equal(a->alternative_logprobs, b->alternative_logprobs, cells * sizeof a->alternative_logprobs[0]);
}

void assert_same_tokens(const struct client_job *a, const struct client_job *b)
{
    assert_int_equal(a->choices, b->choices);
    assert_int_equal(a->end.kind, b->end.kind);
    assert_int_equal(a->end.prompt_tokens, b->end.prompt_tokens);
    assert_true(a->logprobs == b->logprobs && a->alternatives == b->alternatives &&
                a->prompt_logprobs == b->prompt_logprobs);
    assert_same_ids(&a->prompt, &b->prompt, a->prompt_logprobs, a->alternatives);
    for (unsigned i = 0; i < a->choices; i++) {
        const struct client_reply *x = &a->replies[i], *y = &b->replies[i];
        assert_same_ids(x, y, a->logprobs, a->alternatives);
        assert_int_equal(a->end.finish[i], b->end.finish[i]);
        assert_int_equal(x->text_size, y->text_size);
        if (x->text_size > 0)
            assert_memory_equal(x->text, y->text, x->text_size);
    }
}

void assert_same_reply(const struct client_job *a, const struct client_job *b)
{
    assert_same_tokens(a, b);
    for (unsigned i = 0; i < a->choices; i++) {
        assert_int_equal(a->replies[i].draws, b->replies[i].draws);
        assert_true(a->replies[i].logits == b->replies[i].logits);
    }
}

static uint64_t fold(uint64_t digest, const void *data, size_t size)
{
    return size > 0 ? hash_fast(data, size, digest) : hash_mix(digest, 0);
}

uint64_t client_digest(const struct client_job *job)
{
    uint64_t digest = hash_mix(job->choices, job->end.prompt_tokens);
    digest = fold(digest, job->prompt.logprobs, job->prompt.count * sizeof(float));
    for (unsigned i = 0; i < job->choices; i++) {
        const struct client_reply *reply = &job->replies[i];
        digest = fold(digest, reply->ids, reply->count * sizeof reply->ids[0]);
        digest = fold(digest, reply->text, reply->text_size);
        if (job->logprobs)
            digest = fold(digest, reply->logprobs, reply->count * sizeof(float));
        digest = hash_mix(digest, reply->logits);
        digest = hash_mix(digest, (uint64_t)job->end.finish[i]);
    }
    return digest;
}

/* ---- conversations ---- */

void talk_say(struct talk *talk, enum engine_role role, const char *text, size_t size)
{
    assert_true(talk->count < TALK_MESSAGES);
    size = size < TALK_TEXT ? size : TALK_TEXT;
    while (!utf8_valid(text, size))
        size--;
    talk->messages[talk->count].role = role;
    if (size > 0)
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
