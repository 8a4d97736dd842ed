/* engine_client.h - collects what an engine says about its jobs, and checks its promises on the way: sequence numbers
 * without gaps, valid text, exactly one end, nothing after it. Also small conversations for the equality tests. */
#ifndef ROOST_TESTS_ENGINE_CLIENT_H
#define ROOST_TESTS_ENGINE_CLIENT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "worker/engine/engine.h"

enum { CLIENT_JOBS = 64, CLIENT_TOKENS = 4096, CLIENT_TEXT = 1 << 16, TALK_MESSAGES = 64, TALK_TEXT = 4096 };

struct client_job {
    uint64_t job;
    uint32_t ids[CLIENT_TOKENS], count;
    char text[CLIENT_TEXT];
    size_t text_size;
    bool ended;
    struct engine_event end; /* detail points to detail */
    char detail[512];
    unsigned end_order; /* 1: the first job that ended */
};

struct client {
    struct engine *engine;   /* ref */
    struct client_job *jobs; /* (CLIENT_JOBS), owned */
    unsigned count, ended;
    uint64_t last_job;
    bool check;                                                                /* engine_check after every step */
    void (*on_event)(struct client *client, const struct engine_event *event); /* NULL allowed */
};

void client_setup(struct client *client, struct engine *engine);
void client_free(struct client *client);
void client_reset(struct client *client); /* forgets ended jobs; all must have ended */

/* Fills request->job. On STATUS_OK *job is where its events go. */
enum status client_submit(struct client *client, struct engine_request *request, struct client_job **job);
bool client_step(struct client *client);
void client_run(struct client *client); /* until every job has ended */

struct talk { /* a conversation that can be continued, retried, edited and branched */
    struct {
        enum engine_role role;
        char text[TALK_TEXT];
        size_t size;
    } messages[TALK_MESSAGES];
    unsigned count;
    struct engine_message views[TALK_MESSAGES];
};

void talk_say(struct talk *talk, enum engine_role role, const char *text, size_t size);
void talk_request(struct talk *talk, struct engine_request *request); /* points request at the messages */

/* Runs request alone; fails the test unless it is done. */
struct client_job *client_ask(struct client *client, struct engine_request *request);

/* Both replies the same: ids, text, finish. */
void assert_same_reply(const struct client_job *a, const struct client_job *b);

#endif
