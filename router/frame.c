/* frame.c - see frame.h. */
#include "router/frame.h"
#include "common/channel.h"

enum status frame_make(const struct wire_message *message, zmq_msg_t *out)
{
    size_t size = wire_encoded_size(message);
    if (size == 0)
        return STATUS_FAIL(STATUS_INTERNAL, "a message of kind %d cannot be encoded", (int)message->kind);
    if (zmq_msg_init_size(out, size) != 0)
        return STATUS_FAIL(STATUS_NO_MEMORY, "a frame of %zu bytes", size);
    (void)wire_encode(message, zmq_msg_data(out));
    return STATUS_OK;
}

enum status frame_send(struct channel *channel, const struct channel_peer *peer, const struct wire_message *message)
{
    zmq_msg_t frame;
    TRY(frame_make(message, &frame));
    return channel_send(channel, peer, &frame, 1);
}

struct wire_span frame_span(zmq_msg_t *frame)
{
    return wire_span_of(zmq_msg_data(frame), zmq_msg_size(frame));
}
