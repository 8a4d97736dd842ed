/* wire.h - the frame codec: our own structs to bytes and back. Generated protobuf-c types stop at wire.c.
 *
 * A frame is 4 bytes and a protobuf message: 'R', version (WIRE_VERSION), kind (enum wire_kind), 0. A request is two frames:
 * WIRE_HEAD and WIRE_BODY; every other message is one frame. The version byte lets a receiver answer a peer from the future.
 *
 * Decoding never trusts its input: sizes and counts are checked before anything is allocated, memory comes from one arena
 * of at most WIRE_ARENA_FACTOR times the frame (+ 4 KiB, + WIRE_ARENA_ELEMENT_BYTES for each message of a body and each stop
 * string), unknown fields are skipped and counted, a singular field given twice is refused, ids are [A-Za-z0-9._:-]{1,64},
 * text is valid UTF-8 without NUL, columns agree in length, numbers are in range. A failed decode leaves *out untouched and
 * a detail that names the field.
 *
 * Spans in a decoded message point into the frame or the arena: both must live as long as the message. Thread-safe: no state. */
#ifndef ROOST_PROTO_WIRE_H
#define ROOST_PROTO_WIRE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/status.h"

#define WIRE_VERSION 1
#define WIRE_HEADER_BYTES 4
#define WIRE_ID_BYTES 16                     /* request ids, sessions, incarnations, cache ids */
#define WIRE_NAME_MAX 64                     /* tenant, conversation, model, worker names */
#define WIRE_BODY_BYTES_MAX (1u << 20)       /* 1 MiB: 5,600 prompt tokens are about 25 KB; 40 times that */
#define WIRE_HEAD_BYTES_MAX (320u << 10)     /* fixed fields and links take 2 KiB; a resume carries up to 65,536 ids of 4 bytes */
#define WIRE_FRAME_BYTES_MAX (2u << 20)      /* ZMQ_MAXMSGSIZE: drops the connection */
#define WIRE_MESSAGES_MAX 4096               /* messages in a body: 180 is usual; each costs up to 176 bytes of arena: 704 KiB */
#define WIRE_STOPS_MAX 16                    /* stop strings, of at most 256 bytes each */
#define WIRE_STOP_BYTES_MAX 256
#define WIRE_STOP_IDS_MAX 64
#define WIRE_BIAS_MAX 1024
#define WIRE_LINKS_MAX 32
#define WIRE_CHOICES_MAX 16
#define WIRE_CHOICE_PROMPT WIRE_CHOICES_MAX  /* rows of tokens with this choice are of the prompt, from its second token on */
#define WIRE_SEQUENCES_MAX (WIRE_CHOICES_MAX + 1)   /* that one stream counts: its choices and the prompt */
#define WIRE_ALTERNATIVES_MAX 20
#define WIRE_DETAIL_MAX 512                  /* words in an error */
#define WIRE_TOKENS_BYTES_MAX (256u << 10)   /* a token batch is split here */
#define WIRE_SMALL_BYTES_MAX (64u << 10)     /* frames of every kind but head, body, tokens, lease and attach */
#define WIRE_LEASE_BYTES_MAX (256u << 10)    /* 12 bytes of credit a stream: 21,000 streams */
#define WIRE_ARENA_FACTOR 4
#define WIRE_ARENA_ELEMENT_BYTES 256
#define WIRE_DEADLINE_MS_DEFAULT 120000u
#define WIRE_DEADLINE_MS_MAX 3600000u

struct wire_span {                           /* borrowed bytes; data may be NULL when size is 0 */
    const uint8_t *data;
    size_t size;
};

enum wire_kind {
    WIRE_HELLO = 1, WIRE_WELCOME, WIRE_LEASE, WIRE_HEAD, WIRE_BODY, WIRE_TOKENS, WIRE_DONE, WIRE_ERROR,
    WIRE_NEED_HISTORY, WIRE_RESEND, WIRE_WRONG_OWNER, WIRE_ACK, WIRE_CANCEL, WIRE_ATTACH, WIRE_ATTACH_REPLY,
    WIRE_GOAWAY, WIRE_SUPERSEDED, WIRE_DRAIN, WIRE_DRAIN_STATUS,
    WIRE_KIND_COUNT
};
const char *wire_kind_name(enum wire_kind kind);

/* Enum values are those of roost.proto. */
enum wire_role { WIRE_ROLE_UNKNOWN, WIRE_ROLE_CLIENT, WIRE_ROLE_GATEWAY, WIRE_ROLE_ROUTER, WIRE_ROLE_WORKER, WIRE_ROLE_OPERATOR, WIRE_ROLE_AUTOSCALER };
enum wire_connection { WIRE_CONNECTION_UNKNOWN, WIRE_CONNECTION_CONTROL, WIRE_CONNECTION_DATA };
enum wire_life { WIRE_LIFE_UNKNOWN, WIRE_LIFE_STARTING, WIRE_LIFE_READY, WIRE_LIFE_DRAINING, WIRE_LIFE_SAFE_TO_DELETE, WIRE_LIFE_GONE };
enum wire_message_role { WIRE_MESSAGE_USER, WIRE_MESSAGE_ASSISTANT, WIRE_MESSAGE_SYSTEM };
enum wire_finish { WIRE_FINISH_UNKNOWN, WIRE_FINISH_STOP, WIRE_FINISH_LENGTH, WIRE_FINISH_STOP_STRING };
enum wire_error_code {
    WIRE_ERROR_UNKNOWN, WIRE_ERROR_INVALID, WIRE_ERROR_UNAUTHORISED, WIRE_ERROR_UNKNOWN_MODEL, WIRE_ERROR_TOO_LARGE,
    WIRE_ERROR_OVER_CAPACITY, WIRE_ERROR_DEADLINE, WIRE_ERROR_CANCELLED, WIRE_ERROR_SLOW_READER, WIRE_ERROR_CONFLICT,
    WIRE_ERROR_NOT_EXACT, WIRE_ERROR_UNSUPPORTED, WIRE_ERROR_WORKER_LOST, WIRE_ERROR_INTERNAL,
    WIRE_ERROR_COUNT
};
const char *wire_error_name(enum wire_error_code code);   /* "over capacity"; never NULL */
const char *wire_life_name(enum wire_life life);
const char *wire_finish_name(enum wire_finish finish);

enum wire_capability { WIRE_CAN_RESUME = 1, WIRE_CAN_ATTACH = 2, WIRE_CAN_CREDIT = 4, WIRE_CAN_DRAIN = 8,
                       WIRE_CAN_TELL_START = 16 };   /* bits */

struct wire_attempt { uint32_t client, router; };

struct wire_limits {
    uint64_t body_bytes_max, head_bytes_max, unacknowledged_bytes_max;
    uint32_t streams_max, stream_credit_tokens, prompt_tokens_max, messages_max;
};

struct wire_device {                   /* what is not known is 0 */
    uint64_t memory_bytes, memory_used_bytes, ecc_uncorrected;
    uint32_t sm_mhz, memory_mhz;
    uint64_t throttle_reasons;         /* NVML's bits */
};

struct wire_load {
    uint32_t queued_requests, running_requests;
    uint64_t queued_tokens, running_tokens, kv_tokens_used, kv_tokens_max, steps;
    uint32_t step_age_ms, step_median_us;
    uint32_t token_ns;                 /* measured time of a computed prompt token; 0: not known */
    bool has_device;
    struct wire_device device;
};

struct wire_hello {
    uint32_t version_min, version_max;
    struct wire_span session;          /* 16 bytes, required */
    enum wire_role role;               /* required */
    enum wire_connection connection;   /* required */
    struct wire_span name, build;
    uint32_t lease_ms;
    uint32_t capabilities;             /* bits of enum wire_capability; others are kept as they are */
};

struct wire_welcome {
    uint32_t version;
    struct wire_span session, name, build, data_endpoint, model, weights_digest, numerics_id;
    uint32_t lease_ms, lease_expiry_ms;
    struct wire_limits limits;
    enum wire_life state;
    uint64_t kv_tokens_max;
    uint32_t capabilities;
};

struct wire_lease {
    struct wire_span session;
    uint64_t number, echo;
    enum wire_life state;
    bool has_load;
    struct wire_load load;
    struct wire_span credit_streams, credit_tokens;   /* columns u32 and u64, equal rows */
    uint64_t credit_connection_bytes, acknowledged_bytes;
};

struct wire_resume {
    struct wire_span counts;           /* column u32 */
    struct wire_span ids;              /* column u32; as many as the counts add up to */
};

struct wire_head {
    struct wire_span request_id;       /* 16 bytes, required */
    struct wire_span session;          /* 16 bytes, required */
    uint32_t stream;
    struct wire_span tenant;           /* name, required */
    struct wire_span conversation;     /* name or empty */
    struct wire_span model;            /* name or empty */
    struct wire_span links;            /* 0 to 32 times 32 bytes */
    uint32_t deadline_ms;              /* 0 decodes to WIRE_DEADLINE_MS_DEFAULT */
    int32_t priority;                  /* -100 to 100 */
    struct wire_resume resume;
    struct wire_attempt attempt;
    uint32_t loss_count;
    uint64_t seed;
    bool seed_given;
    struct wire_span incarnation;      /* 16 bytes or empty */
    struct wire_span cache_id;         /* 16 bytes or empty */
    uint64_t epoch;
    struct wire_span numerics_id;      /* 32 bytes or empty */
    bool inexact_allowed;
    uint32_t body_bytes;
    struct wire_span placement;        /* 16 bytes or empty */
};

struct wire_chat_message {
    enum wire_message_role role;
    struct wire_span name;             /* free text, at most 256 bytes */
    struct wire_span text;
};

struct wire_sampling {
    float temperature;                 /* 0 to 100; finite */
    float top_p, min_p;                /* 0 to 1 */
    uint32_t top_k;
    float repetition_penalty;          /* 0, or 0.01 to 10 */
    float presence_penalty, frequency_penalty;   /* -10 to 10 */
    uint32_t tokens_max, tokens_min;   /* at most 2^24; min <= max when max is given */
    uint32_t choices;                  /* decodes 0 to 1; at most WIRE_CHOICES_MAX */
    struct wire_span *stops;           /* in the arena */
    unsigned stop_count;
    struct wire_span stop_ids;         /* column u32, at most WIRE_STOP_IDS_MAX */
    struct wire_span bias_ids, bias_values;      /* columns u32 and float32 bits, equal rows; values -100 to 100 */
    uint32_t logprobs;                 /* alternatives per token, at most WIRE_ALTERNATIVES_MAX; above 0 implies token_logprobs */
    bool token_logprobs, prompt_logprobs;
};

struct wire_body {
    struct wire_chat_message *messages;          /* in the arena; exactly one of messages and prompt_ids is given */
    unsigned message_count;
    struct wire_span prompt_ids;       /* column u32 */
    struct wire_sampling sampling;
    struct wire_span reply_name;       /* free text, at most 256 bytes */
    struct wire_span history;          /* 32 bytes or empty */
    bool truncate;
};

struct wire_tokens {                   /* columns; wire_tokens_row reads a row, wire_batch builds them */
    unsigned row_count;
    struct wire_span stream, choice, attempt_client, attempt_router, first, count, ids, text_bytes, text, logprobs;
    struct wire_span alternatives, alternative_ids, alternative_logprobs;
};

struct wire_tokens_row {
    uint32_t stream;
    uint16_t choice;                   /* below WIRE_SEQUENCES_MAX; that of WIRE_CHOICE_PROMPT has no text */
    struct wire_attempt attempt;
    uint32_t first;                    /* sequence number of ids[0] */
    uint16_t count;                    /* 0 with text: what its choice says after its last token, before a stop string; its last row */
    struct wire_span ids;              /* column u32 (wire_u32_at) */
    struct wire_span text;
    struct wire_span logprobs;         /* column of float32 bits; empty, and NaN in the frame: not asked for */
    uint8_t alternatives;              /* of each token; above 0 there are logprobs too */
    struct wire_span alternative_ids, alternative_logprobs;   /* columns u32 and float32 bits: (count, alternatives) */
};

struct wire_done {
    struct wire_span request_id;
    uint32_t stream;
    struct wire_attempt attempt;
    struct wire_span finish;           /* column u8 of enum wire_finish, one per choice */
    uint32_t prompt_tokens, cached_tokens, reply_tokens;
    uint32_t queue_us, prefill_us, decode_us, route_us;
    struct wire_span worker, numerics_id, cache_id, route;
    bool inexact;
    uint64_t epoch;
    uint32_t released;
    uint32_t dropped_messages;         /* by truncation */
};

struct wire_error {
    struct wire_span request_id;       /* empty: about the connection */
    uint32_t stream;
    struct wire_attempt attempt;
    enum wire_error_code code;
    struct wire_span detail;
    uint32_t retry_after_ms;
};

struct wire_stream_ref {               /* NEED_HISTORY, RESEND, WRONG_OWNER, ACK, SUPERSEDED */
    struct wire_span request_id;
    uint32_t stream;
    struct wire_attempt attempt;
    struct wire_span owner;            /* WRONG_OWNER: name */
    uint64_t epoch;                    /* WRONG_OWNER */
    struct wire_span cache_id;         /* ACK */
    struct wire_span numerics_id;      /* ACK: 32 bytes or empty */
    bool started;                      /* ACK: its computation begins */
};

struct wire_cancel {
    struct wire_span request_id, tenant, conversation, session;
    struct wire_attempt attempt;       /* {0, 0}: every attempt; else up to this one */
};

struct wire_attach {
    struct wire_span request_id, tenant, conversation, session;
    uint32_t stream;
    struct wire_resume resume;
    struct wire_attempt attempt;
};
struct wire_attach_reply {
    struct wire_span request_id;
    bool known;
    struct wire_span released;         /* column u32, one per choice */
    struct wire_span tenant;           /* name or empty */
    bool running;
};
struct wire_goaway { struct wire_span session; uint32_t deadline_ms; struct wire_span detail; };
struct wire_drain { struct wire_span worker; uint32_t deadline_ms; bool cancel; };
struct wire_drain_status { struct wire_span worker; enum wire_life state; uint32_t streams; uint64_t bytes_left; uint32_t abandoned; };

struct wire_message {
    enum wire_kind kind;
    union {
        struct wire_hello hello;
        struct wire_welcome welcome;
        struct wire_lease lease;
        struct wire_head head;
        struct wire_body body;
        struct wire_tokens tokens;
        struct wire_done done;
        struct wire_error error;
        struct wire_stream_ref stream_ref;
        struct wire_cancel cancel;
        struct wire_attach attach;
        struct wire_attach_reply attach_reply;
        struct wire_goaway goaway;
        struct wire_drain drain;
        struct wire_drain_status drain_status;
    };
    void *arena;                       /* owned; wire_message_free */
};

/* The kind of a frame without decoding it. STATUS_INVALID: not a roost frame. STATUS_UNSUPPORTED: another version or an unknown
 * kind; *version (may be NULL) is then set. */
enum status wire_peek(const void *frame, size_t size, enum wire_kind *kind, uint8_t *version);

/* Decodes one frame. The frame must outlive *out. Free with wire_message_free. STATUS_INVALID: it breaks a rule.
 * STATUS_LIMIT: over a size or a count. STATUS_UNSUPPORTED: as wire_peek. STATUS_NO_MEMORY. */
enum status wire_decode(const void *frame, size_t size, struct wire_message *out);
void wire_message_free(struct wire_message *message);    /* accepts a zeroed one */

/* The rules that wire_decode applies to values, for senders: what passes here (and fits its size limit) the peer accepts.
 * STATUS_INVALID or STATUS_LIMIT with a detail that names the field. */
enum status wire_validate(const struct wire_message *message);
size_t wire_frame_bytes_max(enum wire_kind kind);         /* largest frame of a kind, header included */

/* The size that wire_encode will write. message->kind says which member is used. */
size_t wire_encoded_size(const struct wire_message *message);
/* Writes a frame into buffer of at least wire_encoded_size bytes; returns the bytes written. Does not validate. Both return 0
 * for an unknown kind and for more than WIRE_STOPS_MAX stop strings. */
size_t wire_encode(const struct wire_message *message, void *buffer);

/* Columns. */
uint16_t wire_u16_at(struct wire_span column, size_t row);
uint32_t wire_u32_at(struct wire_span column, size_t row);
uint64_t wire_u64_at(struct wire_span column, size_t row);
float wire_f32_at(struct wire_span column, size_t row);
struct wire_span wire_span_of(const void *data, size_t size);
struct wire_span wire_span_str(const char *text);
bool wire_span_equal(struct wire_span a, struct wire_span b);
bool wire_name_valid(struct wire_span name);             /* [A-Za-z0-9._:-]{1,64} */
bool wire_utf8_valid(struct wire_span text);             /* no NUL, no overlong, no surrogates */

/* Rows of a decoded token batch, in order. *cursor starts zeroed. False at the end. */
struct wire_tokens_cursor { unsigned row; size_t ids, text, alternatives; };
bool wire_tokens_next(const struct wire_tokens *tokens, struct wire_tokens_cursor *cursor, struct wire_tokens_row *row);

/* Builds token batches: add rows, then take frames. One builder per receiver and step.
 *
 *     if (wire_batch_add(batch, &row) == STATUS_AGAIN) { send(wire_batch_take(batch)); wire_batch_add(batch, &row); }
 */
#define WIRE_BATCH_RESERVE_BYTES (8u << 10)
struct wire_batch;
enum status wire_batch_create(struct wire_batch **out);
void wire_batch_destroy(struct wire_batch **batch);
/* Copies the row. row->ids has count ids; row->logprobs is empty or has count values (a row without gets NaN in a frame with); the columns
 * of alternatives have count times alternatives values.
 * STATUS_AGAIN: no room left in this frame: take it, then add the row again. STATUS_LIMIT: larger than any frame.
 * STATUS_INVALID: the spans of the row disagree. */
enum status wire_batch_add(struct wire_batch *batch, const struct wire_tokens_row *row);
bool wire_batch_empty(const struct wire_batch *batch);
/* Less than WIRE_BATCH_RESERVE_BYTES are left of WIRE_TOKENS_BYTES_MAX: take it now. While false, a row that small fits. */
bool wire_batch_full(const struct wire_batch *batch);
/* The frame; borrowed until the next call on the batch; the batch is empty afterwards. Empty span: there were no rows, or no memory. */
struct wire_span wire_batch_take(struct wire_batch *batch);

#endif
