#include "wire_samples.h"
#include <string.h>

/* Little-endian columns, written out. */
static const uint8_t id_a[16] = "request-id-aaaaa", id_b[16] = "session-id-bbbbb", id_c[16] = "incarnation-cccc",
                     id_d[16] = "cache-id-ddddddd";
static const uint8_t digest_a[32] = "weights-digest-weights-digest-we",
                     digest_b[32] = "numerics-id-numerics-id-numerics";
static const uint8_t links[64] = "link-link-link-link-link-link-1.link-link-link-link-link-link-2";
static const uint8_t column_u32[] = {1, 0, 0, 0, 2, 1, 0, 0, 0xff, 0xff, 0xff, 0xff};
static const uint8_t column_u64[] = {1, 0, 0, 0, 0,    0,    0,    0,    2,    0,    0,    0,
                                     1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
static const uint8_t counts[] = {2, 0, 0, 0, 1, 0, 0, 0};
static const uint8_t floats[] = {0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0, 0, 0xc8, 0x42}; /* 1, -2, 100 */

static struct wire_span s(const char *text)
{
    return wire_span_str(text);
}

#define BYTES(array) wire_span_of(array, sizeof(array))

static struct wire_chat_message messages[] = {
    {WIRE_MESSAGE_SYSTEM, {NULL, 0}, {(const uint8_t *)"You speak in verse.", 19}},
    {WIRE_MESSAGE_USER,
     {(const uint8_t *)"HAMLET", 6},
     {(const uint8_t *)"Wer da? \xc3\xa4\xe2\x82\xac\xf0\x9f\x90\x93", 17}},
    {WIRE_MESSAGE_ASSISTANT, {(const uint8_t *)"HORATIO", 7}, {(const uint8_t *)"Friends to this ground.", 23}},
};
static struct wire_span stops[] = {{(const uint8_t *)"\n\n", 2}, {(const uint8_t *)"HAMLET:", 7}};

struct wire_message wire_sample(enum wire_kind kind)
{
    struct wire_message m;
    memset(&m, 0, sizeof m);
    m.kind = kind;
    switch (kind) {
    case WIRE_HELLO:
        m.hello = (struct wire_hello){
            1, 3, BYTES(id_b), WIRE_ROLE_CLIENT, WIRE_CONNECTION_DATA, s("example.client:1"), s("0.1.0"), 1000, 5};
        break;
    case WIRE_WELCOME:
        m.welcome = (struct wire_welcome){
            .version = 1,
            .session = BYTES(id_c),
            .name = s("router-1"),
            .build = s("0.1.0"),
            .data_endpoint = s("tcp://*:7401"),
            .model = s("folio"),
            .weights_digest = BYTES(digest_a),
            .numerics_id = BYTES(digest_b),
            .lease_ms = 1000,
            .lease_expiry_ms = 5000,
            .limits = {1u << 20, 320u << 10, 4u << 20, 4096, 512, 8192, 4096},
            .state = WIRE_LIFE_READY,
            .kv_tokens_max = 1ull << 40,
            .capabilities = 0x8000000fu,
        };
        break;
    case WIRE_LEASE:
        m.lease = (struct wire_lease){
            .session = BYTES(id_b),
            .number = 77,
            .echo = 76,
            .state = WIRE_LIFE_DRAINING,
            .has_load = true,
            .load = {1, 2, 3, 4, 5, 6, 1ull << 33, 250, 12345, 71000, true, {80ull << 30, 61ull << 30, 1ull << 40, 1980, 2619, 1ull << 33}},
            .credit_streams = BYTES(column_u32),
            .credit_tokens = BYTES(column_u64),
            .credit_connection_bytes = 1ull << 34,
            .acknowledged_bytes = 1ull << 35,
        };
        break;
    case WIRE_HEAD:
        m.head = (struct wire_head){
            .request_id = BYTES(id_a),
            .session = BYTES(id_b),
            .stream = 4000000000u,
            .tenant = s("acme"),
            .conversation = s("c:1.2_3-4"),
            .model = s("folio"),
            .links = BYTES(links),
            .deadline_ms = 30000,
            .priority = -100,
            .resume = {BYTES(counts), BYTES(column_u32)},
            .attempt = {2, 3},
            .loss_count = 1,
            .seed = 0xfedcba9876543210u,
            .seed_given = true,
            .incarnation = BYTES(id_c),
            .cache_id = BYTES(id_d),
            .epoch = 1ull << 50,
            .numerics_id = BYTES(digest_b),
            .inexact_allowed = true,
            .body_bytes = 38700,
            .placement = BYTES(id_a),
        };
        break;
    case WIRE_BODY:
        m.body = (struct wire_body){
            .messages = messages,
            .message_count = 3,
            .sampling = {.temperature = 0.7f,
                         .top_p = 0.9f,
                         .min_p = 0.05f,
                         .top_k = 40,
                         .repetition_penalty = 1.1f,
                         .presence_penalty = -0.5f,
                         .frequency_penalty = 0.5f,
                         .tokens_max = 140,
                         .tokens_min = 1,
                         .choices = 2,
                         .stops = stops,
                         .stop_count = 2,
                         .stop_ids = BYTES(column_u32),
                         .bias_ids = BYTES(column_u32),
                         .bias_values = BYTES(floats),
                         .logprobs = 5,
                         .token_logprobs = true,
                         .prompt_logprobs = true},
            .reply_name = s("OPHELIA"),
            .history = BYTES(digest_a),
            .truncate = true,
        };
        break;
    case WIRE_TOKENS: {
        static const uint8_t stream[] = {1, 0, 0, 0, 2, 0, 0, 0}, choice[] = {0, 0, 15, 0},
                             client[] = {1, 0, 0, 0, 2, 0, 0, 0};
        static const uint8_t router[] = {0, 0, 0, 0, 3, 0, 0, 0}, first[] = {10, 0, 0, 0, 0, 1, 0, 0},
                             count[] = {2, 0, 1, 0};
        static const uint8_t text_bytes[] = {5, 0, 0, 0, 3, 0, 0, 0};
        static const uint8_t alternatives[] = {2, 1};
        static const uint8_t alternative_ids[] = {1, 0, 0, 0, 9, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0};
        static const uint8_t alternative_logprobs[] = {0, 0, 0, 0x80, 0,    0,    0,    0xbf, 0, 0,
                                                       0, 0xc0, 0, 0, 0x80, 0xff, 0, 0, 0x40, 0xc0};
        m.tokens = (struct wire_tokens){
            .row_count = 2,
            .stream = BYTES(stream),
            .choice = BYTES(choice),
            .attempt_client = BYTES(client),
            .attempt_router = BYTES(router),
            .first = BYTES(first),
            .count = BYTES(count),
            .ids = BYTES(column_u32),
            .text_bytes = BYTES(text_bytes),
            .text = s("to be\xe2\x82\xac"),
            .logprobs = BYTES(floats),
            .alternatives = BYTES(alternatives),
            .alternative_ids = BYTES(alternative_ids),
            .alternative_logprobs = BYTES(alternative_logprobs), /* -0, -0.5, -2, -infinity, -3 */
        };
        break;
    }
    case WIRE_DONE: {
        static const uint8_t finish[] = {WIRE_FINISH_STOP, WIRE_FINISH_LENGTH, WIRE_FINISH_STOP_STRING};
        m.done =
            (struct wire_done){BYTES(id_a), 7,  {1, 2},        BYTES(finish),   5600,        5500,       140,  10, 20,
                               30,          40, s("worker-3"), BYTES(digest_b), BYTES(id_d), s("owner"), true, 9,  140,
                               6};
        break;
    }
    case WIRE_ERROR:
        m.error = (struct wire_error){BYTES(id_a), 7, {1, 2}, WIRE_ERROR_OVER_CAPACITY, s("try later"), 250};
        break;
    case WIRE_NEED_HISTORY:
    case WIRE_RESEND:
        m.stream_ref = (struct wire_stream_ref){.request_id = BYTES(id_a), .stream = 8, .attempt = {3, 4}};
        break;
    case WIRE_WRONG_OWNER:
        m.stream_ref = (struct wire_stream_ref){
            .request_id = BYTES(id_a), .stream = 8, .attempt = {3, 4}, .owner = s("worker-2"), .epoch = 99};
        break;
    case WIRE_ACK:
        m.stream_ref = (struct wire_stream_ref){.request_id = BYTES(id_a),
                                                .stream = 8,
                                                .attempt = {3, 4},
                                                .cache_id = BYTES(id_d),
                                                .numerics_id = BYTES(digest_b),
                                                .started = true};
        break;
    case WIRE_SUPERSEDED: m.stream_ref = (struct wire_stream_ref){.request_id = BYTES(id_a), .attempt = {3, 4}}; break;
    case WIRE_CANCEL: m.cancel = (struct wire_cancel){BYTES(id_a), s("acme"), s("c1"), BYTES(id_b), {2, 3}}; break;
    case WIRE_ATTACH:
        m.attach = (struct wire_attach){
            BYTES(id_a), s("acme"), s("c1"), BYTES(id_b), 9, {BYTES(counts), BYTES(column_u32)}, {5, 6}};
        break;
    case WIRE_ATTACH_REPLY: m.attach_reply = (struct wire_attach_reply){BYTES(id_a), true, BYTES(column_u32), s("acme"), true}; break;
    case WIRE_GOAWAY: m.goaway = (struct wire_goaway){BYTES(id_c), 30000, s("upgrade")}; break;
    case WIRE_DRAIN: m.drain = (struct wire_drain){s("worker-1"), 30000, true}; break;
    case WIRE_DRAIN_STATUS:
        m.drain_status = (struct wire_drain_status){s("worker-1"), WIRE_LIFE_SAFE_TO_DELETE, 1, 1ull << 36, 2};
        break;
    case WIRE_KIND_COUNT: break;
    }
    return m;
}

struct wire_message wire_sample_failover(enum wire_kind kind)
{
    struct wire_message m = wire_sample(kind);
    if (kind == WIRE_ACK)
        m.stream_ref.started = false;
    if (kind == WIRE_LEASE) {
        m.lease.load.has_device = false;
        memset(&m.lease.load.device, 0, sizeof m.lease.load.device);
    }
    return m;
}

struct wire_message wire_sample_first(enum wire_kind kind)
{
    struct wire_message m = wire_sample_failover(kind);
    const struct wire_span none = {NULL, 0};
    if (kind == WIRE_BODY)
        m.body.sampling.token_logprobs = false;
    if (kind == WIRE_TOKENS)
        m.tokens.alternatives = m.tokens.alternative_ids = m.tokens.alternative_logprobs = none;
    if (kind == WIRE_DONE)
        m.done.dropped_messages = 0;
    if (kind == WIRE_HELLO)
        m.hello.capabilities = 0;
    if (kind == WIRE_WELCOME)
        m.welcome.capabilities = 0;
    if (kind == WIRE_LEASE)
        m.lease.load.token_ns = 0;
    if (kind == WIRE_HEAD)
        m.head.placement = none;
    if (kind == WIRE_ACK)
        m.stream_ref.numerics_id = none;
    if (kind == WIRE_CANCEL)
        m.cancel.attempt = (struct wire_attempt){0, 0};
    if (kind == WIRE_ATTACH_REPLY) {
        m.attach_reply.tenant = none;
        m.attach_reply.running = false;
    }
    return m;
}
