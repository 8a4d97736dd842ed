#!/usr/bin/env python3
"""A complete roost client in Python: two connections, one request, tokens printed as they come.

Needs pyzmq and protobuf (Debian: python3-zmq python3-protobuf protobuf-compiler). The wire is docs/protocol.md.
"""
import argparse
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time

import zmq

SCHEMA = pathlib.Path(__file__).resolve().parents[2] / "proto" / "roost.proto"
with tempfile.TemporaryDirectory() as folder:   # or run protoc once and ship what it writes
    subprocess.run(["protoc", f"--proto_path={SCHEMA.parent}", f"--python_out={folder}", SCHEMA.name], check=True)
    sys.path.insert(0, folder)
    import roost_pb2 as pb
    sys.path.remove(folder)

KINDS = {pb.Hello: 1, pb.Welcome: 2, pb.Lease: 3, pb.Head: 4, pb.Body: 5, pb.Tokens: 6, pb.Done: 7, pb.Error: 8, pb.Resend: 10,
         pb.Ack: 12, pb.GoAway: 16}
TYPES = {kind: message_type for message_type, kind in KINDS.items()}


class Failed(Exception):
    """The request, or the connection, ended with an ERROR."""


def encode(message):
    """A frame: 'R', version 1, kind, 0, then the message."""
    return bytes((ord("R"), 1, KINDS[type(message)], 0)) + message.SerializeToString()


def decode(frame):
    """The message of a frame; None for what this client does not know."""
    if len(frame) < 4 or frame[:2] != b"R\x01" or frame[3] != 0 or frame[2] not in TYPES:
        return None
    return TYPES[frame[2]].FromString(frame[4:])


def column(data, code):
    """Little-endian numbers as a tuple: H has 16 bits, I has 32."""
    return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


PROMPT = 16   # the choice of rows that tell about the prompt


class Row:
    """What one choice released: tokens from number `first` on, and their text."""

    def __init__(self, choice, first, ids, text, logprobs, alternatives):
        self.choice, self.first, self.ids, self.text = choice, first, ids, text
        self.logprobs = logprobs              # one for each id, if asked for
        self.alternatives = alternatives      # for each id a list of (id, log probability), likeliest first


def rows_of(tokens, stream):
    """The rows of one stream in a TOKENS message."""
    ids, logprobs = column(tokens.ids, "I"), column(tokens.logprobs, "f")
    others = list(zip(column(tokens.alternative_ids, "I"), column(tokens.alternative_logprobs, "f")))
    streams, at, text_at, other_at = column(tokens.stream, "I"), 0, 0, 0
    for number, choice, first, count, size, width in zip(
            streams, column(tokens.choice, "H"), column(tokens.first, "I"), column(tokens.count, "H"), column(tokens.text_bytes, "I"),
            tokens.alternatives or bytes(len(streams))):
        if number == stream:
            yield Row(choice, first, ids[at:at + count], tokens.text[text_at:text_at + size].decode(),
                      logprobs[at:at + count], [others[i:i + width] for i in range(other_at, other_at + count * width, width or 1)])
        at, text_at, other_at = at + count, text_at + size, other_at + count * width


class Received:
    """Counts what came, for each choice and for the prompt."""

    def __init__(self):
        self.due, self.ended = [0] * (PROMPT + 1), set()

    def is_new(self, row):
        """False: a repeat."""
        due, last = self.due[row.choice], not row.ids     # text alone: the end of a choice, before a stop string
        if (row.first < due and row.first + len(row.ids) <= due) or (last and row.first == due and row.choice in self.ended):
            return False
        if row.first != due or row.choice in self.ended:
            raise Failed(f"choice {row.choice}: tokens from {row.first} came, from {due} were due")
        self.due[row.choice] += len(row.ids)
        if last:
            self.ended.add(row.choice)
        return True

    @property
    def released(self):
        return sum(self.due[:PROMPT])


def check_error(message, stream=0):
    if isinstance(message, pb.Error) and message.stream in (0, stream):
        hint = f" (try again in {message.retry_after_ms} ms)" if message.retry_after_ms else ""
        raise Failed(f"{pb.ErrorCode.Name(message.code)}: {message.detail.decode()}{hint}")


class Connection:
    """One of the two sockets: HELLO when it opens, and leases that keep the session alive."""

    def __init__(self, endpoint, which, session):
        self.session, self.sent, self.received = session, 0, 0
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 100
        self.socket.connect(endpoint)
        self.socket.send(encode(pb.Hello(version_min=1, version_max=1, session=session, role=pb.ROLE_CLIENT, connection=which,
                                         name=b"python-example", lease_ms=1000)))
        self.welcome = None
        while not isinstance(self.welcome, pb.Welcome):
            if not self.socket.poll(5000):
                raise Failed(f"{endpoint} did not answer within 5 s")
            self.welcome = decode(self.socket.recv())
            check_error(self.welcome)

    def lease(self):
        self.sent += 1
        self.socket.send(encode(pb.Lease(session=self.session, number=self.sent, echo=self.received)))


class Client:
    def __init__(self, router):
        self.session, self.stream, self.lease_due = os.urandom(16), 0, 0.0
        self.control = Connection(router, pb.CONNECTION_CONTROL, self.session)
        host = router.split("://")[1].rsplit(":", 1)[0]   # "*" in the data endpoint stands for the host we know
        endpoint = self.control.welcome.data_endpoint.decode().replace("://*:", f"://{host}:")
        self.data = Connection(endpoint, pb.CONNECTION_DATA, self.session)

    def close(self):
        self.control.socket.send(encode(pb.GoAway(session=self.session)))   # whatever still runs is cancelled
        self.control.socket.close()
        self.data.socket.close()

    def receive(self):
        """The messages that have come, after waiting for at most one lease interval. Renews the leases."""
        connections, lease_s = (self.control, self.data), self.control.welcome.lease_ms / 1000
        if time.monotonic() >= self.lease_due:
            self.lease_due = time.monotonic() + lease_s
            for connection in connections:
                connection.lease()
        zmq.select([connection.socket for connection in connections], [], [], lease_s)
        for connection in connections:
            while connection.socket.poll(0):
                message = decode(connection.socket.recv())
                if isinstance(message, pb.Lease):
                    connection.received = message.number
                elif message is not None:
                    yield message

    def generate(self, body, conversation, deadline_ms=120000):
        """Yields rows as they come; returns the DONE message."""
        self.stream += 1
        body = encode(body)
        head = pb.Head(request_id=os.urandom(16), session=self.session, stream=self.stream, tenant=b"default", conversation=conversation,
                       deadline_ms=deadline_ms, attempt=pb.Attempt(client=1), body_bytes=len(body))
        self.data.socket.send_multipart([encode(head), body])
        received, give_up = Received(), time.monotonic() + deadline_ms / 1000 + 1
        while time.monotonic() < give_up:
            for message in self.receive():
                check_error(message, self.stream)
                if isinstance(message, pb.Tokens):
                    yield from filter(received.is_new, rows_of(message, self.stream))
                elif isinstance(message, pb.Resend) and received.released == 0:
                    head.attempt.client += 1          # a worker was lost, and the body with it: once more
                    self.data.socket.send_multipart([encode(head), body])
                elif isinstance(message, pb.Done) and message.stream == self.stream:
                    if message.released != received.released:
                        raise Failed(f"{message.released} tokens were released and {received.released} arrived")
                    return message
        raise Failed("no answer within the deadline")


def show(row, texts):
    """The first choice as it comes; the others when all is there."""
    texts[row.choice] = texts.get(row.choice, "") + row.text
    if row.choice == 0:
        print(row.text, end="", flush=True)
        for token, value, others in zip(row.ids, row.logprobs, row.alternatives):
            print(f" [{token} {value:.2f}: {', '.join(f'{other} {likely:.2f}' for other, likely in others)}]", end="", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Asks a roost router for one reply and prints it as it is written.")
    parser.add_argument("--router", default="tcp://127.0.0.1:7400", help="control endpoint of a router")
    parser.add_argument("--conversation", default="", help="turns of one conversation go to the worker that holds it")
    parser.add_argument("--message", default="Who is there?", help="what is said")
    parser.add_argument("--name", default="", help="who says it")
    parser.add_argument("--reply-name", default="", help="who is to answer")
    parser.add_argument("--temperature", type=float, default=0, help="0: always the likeliest token")
    parser.add_argument("--top-p", type=float, default=0, help="only the likeliest tokens that make up this much together")
    parser.add_argument("--stop", action="append", default=[], help="the reply ends before this text; may be given again")
    parser.add_argument("--tokens-max", type=int, default=200, help="most tokens of a reply")
    parser.add_argument("--choices", type=int, default=1, help="how many replies")
    parser.add_argument("--logprobs", type=int, default=0, help="print so many alternatives of each token")
    options = parser.parse_args()
    sampling = pb.Sampling(temperature=options.temperature, top_p=options.top_p, stop=[stop.encode() for stop in options.stop],
                           tokens_max=options.tokens_max, choices=options.choices, logprobs=options.logprobs)
    body = pb.Body(messages=[pb.Message(role=pb.MESSAGE_USER, name=options.name.encode(), text=options.message.encode())],
                   reply_name=options.reply_name.encode(), sampling=sampling)
    texts = {}
    try:
        client = Client(options.router)
        reply = client.generate(body, options.conversation.encode())
        while True:
            try:
                show(next(reply), texts)
            except StopIteration as end:
                done = end.value
                break
        client.close()
    except Failed as failure:
        sys.exit(f"python_client: {failure}")
    for choice in range(1, len(done.finish)):
        print(f"\n\n[choice {choice}] {texts.get(choice, '')}", end="")
    print(f"\n[{done.usage.prompt_tokens} prompt tokens, {done.usage.cached_tokens} of them from cache; {done.usage.reply_tokens} in the "
          f"reply; by {done.worker.decode()}, {done.route.decode()}]")


if __name__ == "__main__":
    main()
