/* frame.h - between the codec's messages and ZeroMQ frames, for both sides of the router. No state. */
#ifndef ROOST_ROUTER_FRAME_H
#define ROOST_ROUTER_FRAME_H
#include <zmq.h>
#include "common/status.h"
#include "proto/wire.h"

struct channel;
struct channel_peer;

/* On success the caller owns *out (zmq_msg_close, or a send takes it). */
enum status frame_make(const struct wire_message *message, zmq_msg_t *out);
/* As channel_send. */
enum status frame_send(struct channel *channel, const struct channel_peer *peer, const struct wire_message *message);
struct wire_span frame_span(zmq_msg_t *frame); /* borrowed */

#endif
