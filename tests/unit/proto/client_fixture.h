/* client_fixture.h - for tests of clients: fake routers that follow a plan, and replies that notice a gap, a repeat or a wrong
 * token. Token i of choice c has the id 1000 c + i, and is one letter of text. */
#ifndef CLIENT_FIXTURE_H
#define CLIENT_FIXTURE_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "fake_router.h"
#include "proto/client.h"

#define CHOICES_MAX  2u
#define REQUESTS_MAX 16u
#define CAN          (WIRE_CAN_RESUME | WIRE_CAN_CREDIT)

struct reply {
    atomic_uint tokens[CHOICES_MAX], prompt, ends;
    atomic_uint unread, unread_max; /* of a call with credit */
    char last[32];                  /* text after the last token of choice 0 */
    struct client_end end;
    char detail[WIRE_DETAIL_MAX + 1];
    const char *wrong;
};

struct plan {                      /* atomic: what a test changes or reads while the router runs */
    unsigned choices;              /* of the reply */
    uint32_t total;                /* tokens of each choice; 0: it says nothing at all */
    atomic_uint upto[CHOICES_MAX]; /* where it falls silent, per choice; 0: it goes to the end */
    unsigned rows;                 /* tokens of a row; 0: 1 */
    bool from_start;               /* whatever the resume says */
    uint8_t numerics;              /* byte of what its ACKs name; 0: 0x5a */
    bool unnamed; /* assert_resume: whoever was lost had not said its numerics */
    bool no_ack, no_done, credit, prompt, last_text;
    const char *_Atomic refuse; /* it answers OVER_CAPACITY with this */
    unsigned resends;           /* it answers so many requests with RESEND behind their tokens */
    unsigned resend_ms;         /* so much later */
    bool die;                   /* it answers with an ERROR about the connection */
    atomic_bool old_first;      /* it says first what the attempt before should have had */

    /* what came */
    struct fake_request requests[REQUESTS_MAX]; /* a later one is not kept */
    atomic_uint count, cancels;
    struct wire_attempt cancel;
    uint32_t sent; /* with credit: where the open stream is */
    bool open;
    atomic_ullong bytes_credit_max;
};

void nap(void); /* 2 ms */
void wait_until(atomic_uint *counter, unsigned at_least); /* fails after 10 s */

/* The deadline is 10 s unless the request says otherwise. */
struct client_call *ask(struct client *client, struct client_request request, struct reply *reply);
void finish(struct client_call *call, struct reply *reply, enum wire_error_code expected);

/* A router with a window of 8 tokens; endpoint NULL: any port. */
struct fake_router *start(struct plan *plan, const char *endpoint, uint32_t capabilities);
/* The routers (second may be NULL) are ready, and taken in this order. */
struct client *connect_to(struct fake_router *first, struct fake_router *second);

const struct fake_request *request_of(struct plan *plan, unsigned number); /* waits for it */
/* The request asks to go on behind these tokens of each choice. */
void assert_resume(struct plan *plan, unsigned number, unsigned attempt, unsigned choices, const uint32_t *counts);

#endif
