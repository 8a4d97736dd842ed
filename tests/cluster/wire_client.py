"""A peer that speaks version 1 of the wire from Python: an ordinary client, a router (to workers), or a hostile one.

The schema is compiled from proto/roost.proto when this is imported. Everything happens in pump(), on the caller's thread.
"""
import atexit
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

import zmq

from cluster import SLOWER, SOURCE_DIR

_generated = tempfile.mkdtemp(prefix="roost-proto-")
atexit.register(shutil.rmtree, _generated, ignore_errors=True)
subprocess.run(["protoc", f"--proto_path={SOURCE_DIR / 'proto'}", f"--python_out={_generated}", "roost.proto"], check=True)
sys.path.insert(0, _generated)
import roost_pb2 as pb  # noqa: E402  (exists only now)

VERSION = 1
KINDS = ("HELLO", "WELCOME", "LEASE", "HEAD", "BODY", "TOKENS", "DONE", "ERROR", "NEED_HISTORY", "RESEND", "WRONG_OWNER", "ACK",
         "CANCEL", "ATTACH", "ATTACH_REPLY", "GOAWAY", "SUPERSEDED", "DRAIN", "DRAIN_STATUS")
NUMBER = {name: i + 1 for i, name in enumerate(KINDS)}
TYPES = (pb.Hello, pb.Welcome, pb.Lease, pb.Head, pb.Body, pb.Tokens, pb.Done, pb.Error, pb.NeedHistory, pb.Resend, pb.WrongOwner,
         pb.Ack, pb.Cancel, pb.Attach, pb.AttachReply, pb.GoAway, pb.Superseded, pb.Drain, pb.DrainStatus)
REPLY_S = 60 * SLOWER                     # a long prompt on a busy machine

USER, ASSISTANT, SYSTEM = pb.MESSAGE_USER, pb.MESSAGE_ASSISTANT, pb.MESSAGE_SYSTEM


def header(kind, version=VERSION):
    return bytes((ord("R"), version, NUMBER[kind] if isinstance(kind, str) else kind, 0))


def frame(kind, message):
    return header(kind) + message.SerializeToString()


def parse(data):
    """(kind, message) of a frame from a server, which must be a valid one."""
    assert len(data) >= 4 and data[:2] == b"R\x01" and data[3] == 0, f"not a frame: {data[:16]!r}"
    kind = KINDS[data[2] - 1]
    return kind, TYPES[data[2] - 1].FromString(data[4:])


def column(data, code):
    return struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)


def say(text, name="", role=USER):
    """A message of a body."""
    encode = lambda value: value if isinstance(value, bytes) else value.encode()
    return pb.Message(role=role, name=encode(name), text=encode(text))


PROMPT = 16                               # where the choice would be: log probabilities of the prompt


class Reply:
    """One choice of a request, or what is known of its prompt."""

    def __init__(self):
        self.ids, self.text = [], ""
        self.logprobs, self.alternatives = [], []     # one each for each id, if they were asked for; [(id, log probability), ...]


class Request:
    """What became of one request. ids and text are those of its first choice."""

    def __init__(self, request_id, stream):
        self.id, self.stream = request_id, stream
        self.choices, self.prompt = [Reply() for _ in range(16)], Reply()
        self.acknowledged, self.done, self.error = False, None, None
        self.sent_at, self.first_at, self.ended_at = time.monotonic(), None, None

    @property
    def ids(self):
        return self.choices[0].ids

    @property
    def text(self):
        return self.choices[0].text

    @property
    def finish(self):
        """Of each choice: "STOP", "LENGTH" or "STOP_STRING"."""
        return [pb.FinishReason.Name(reason).removeprefix("FINISH_") for reason in self.done.finish]

    @property
    def ended(self):
        return self.done is not None or self.error is not None

    @property
    def worker(self):
        return self.done.worker.decode()

    @property
    def route(self):
        return self.done.route.decode()

    @property
    def usage(self):
        return self.done.usage

    @property
    def code(self):
        """Of the error: "TOO_LARGE", or "OK"."""
        return pb.ErrorCode.Name(self.error.code).removeprefix("ERROR_") if self.error else "OK"


class Peer:
    """Two connections to a server, and the requests sent over them."""

    def __init__(self, control, role=pb.ROLE_CLIENT, name="test", lease=True, connect=True):
        self.context = zmq.Context.instance()
        self.control_endpoint, self.role, self.name, self.lease = control, role, name.encode(), lease
        self.session = os.urandom(16)
        self.control = self.data = self.welcome = None
        self.requests = {}                    # by stream
        self.by_id = {}
        self.connection_errors, self.leases, self.other = [], [], []
        self.ignore_strangers = False         # tokens of requests that were made by accident: damage may leave a request valid
        self.next_stream, self.lease_number, self.lease_due = 1, 0, 0.0
        self.lease_echo, self.echoed = {}, {}     # by connection: their newest number, and the newest of ours that they have
        if connect:
            self.connect()

    # ---- connections

    def _socket(self, endpoint):
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(endpoint)
        return socket

    def hello(self, kind, **changes):
        fields = dict(version_min=VERSION, version_max=VERSION, session=self.session, role=self.role, connection=kind,
                      name=self.name, build=b"test", lease_ms=500)
        return pb.Hello(**{**fields, **changes})

    def connect(self, timeout_s=10 * SLOWER):
        self.control = self._socket(self.control_endpoint)
        self.control.send(frame("HELLO", self.hello(pb.CONNECTION_CONTROL)))
        self.welcome = self._await_welcome(self.control, timeout_s)
        endpoint = self.welcome.data_endpoint.decode()
        if "//*" in endpoint:
            endpoint = endpoint.replace("*", self.control_endpoint.removeprefix("tcp://").rsplit(":", 1)[0], 1)
        self.data = self._socket(endpoint)
        self.data.send(frame("HELLO", self.hello(pb.CONNECTION_DATA)))
        self._await_welcome(self.data, timeout_s)
        self.lease_due = time.monotonic()
        return self

    def _await_welcome(self, socket, timeout_s):
        deadline = time.monotonic() + timeout_s
        while socket.poll(max(1, int((deadline - time.monotonic()) * 1000))):
            kind, message = self._receive(socket)
            if kind == "WELCOME":
                return message
            assert kind in ("LEASE", "GOAWAY"), f"{kind} instead of a welcome: {message}"
        raise AssertionError(f"no welcome from {self.control_endpoint} in {timeout_s} s")

    def close(self):
        """Without a word, as a process that dies."""
        for socket in (self.control, self.data):
            if socket is not None:
                socket.close(0)
        self.control = self.data = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # ---- messages

    def _receive(self, socket):
        frames = socket.recv_multipart()
        assert len(frames) == 1, f"{len(frames)} frames from a server"
        kind, message = parse(frames[0])
        if kind == "LEASE":
            self.lease_echo[socket] = max(self.lease_echo.get(socket, 0), message.number)
            self.echoed[socket] = max(self.echoed.get(socket, 0), message.echo)
        return kind, message

    def _handle(self, kind, message):
        if kind == "TOKENS":
            self._tokens(message)
        elif kind in ("DONE", "ERROR"):
            request = self.by_id.get(message.request_id)
            if request is None:
                self.connection_errors.append(message)
                return
            assert not request.ended, "a second terminal"
            assert message.stream == request.stream
            setattr(request, kind.lower(), message)
            request.ended_at = time.monotonic()
            if kind == "DONE":
                released = sum(len(choice.ids) for choice in request.choices)
                assert message.released == released == message.usage.reply_tokens, "tokens are missing"
                assert not any(choice.ids for choice in request.choices[len(message.finish):]), "more choices than ends"
        elif kind == "ACK" and message.request_id in self.by_id:
            self.by_id[message.request_id].acknowledged = True
        elif kind == "LEASE":
            self.leases.append(message)
        else:
            self.other.append((kind, message))

    def _tokens(self, message):
        rows = [column(getattr(message, field), code) for field, code in
                (("stream", "I"), ("choice", "H"), ("attempt_client", "I"), ("first", "I"), ("count", "H"), ("text_bytes", "I"))]
        ids, logprobs = column(message.ids, "I"), column(message.logprobs, "f")
        others = list(zip(column(message.alternative_ids, "I"), column(message.alternative_logprobs, "f"), strict=True))
        assert len(logprobs) in (0, len(ids))
        at = text_at = others_at = 0
        for stream, choice, attempt, first, count, text_bytes, width in zip(*rows, message.alternatives or bytes(len(rows[0]))):
            end, text_end, others_end = at + count, text_at + text_bytes, others_at + count * width
            request = self.requests.get(stream)
            assert request or self.ignore_strangers, f"tokens of stream {stream}"
            if request:
                assert attempt == 1 and not request.ended
                reply = request.prompt if choice == PROMPT else request.choices[choice]
                assert first == len(reply.ids), f"choice {choice}: token {first} after {len(reply.ids)}"
                assert choice != PROMPT or not request.ids, "the prompt comes before the reply"
                if choice != PROMPT:
                    request.first_at = request.first_at or time.monotonic()
                reply.ids += ids[at:end]
                reply.text += message.text[text_at:text_end].decode()               # whole characters, or this fails
                reply.logprobs += [value for value in logprobs[at:end] if not math.isnan(value)]
                reply.alternatives += [others[i:i + width] for i in range(others_at, others_end, width)] if width else []
            at, text_at, others_at = end, text_end, others_end
        assert at == len(ids) and text_at == len(message.text) and others_at == len(others)

    def send_leases(self):
        self.lease_number += 1
        for socket in (self.control, self.data):
            socket.send(frame("LEASE", pb.Lease(session=self.session, number=self.lease_number, echo=self.lease_echo.get(socket, 0),
                                                state=pb.LIFE_READY)))
        self.lease_due = time.monotonic() + 0.2

    def pump(self, until, timeout_s, what="something"):
        """Handles what comes until until() is true. Returns that; fails after timeout_s (if what is given)."""
        poller = zmq.Poller()
        for socket in (self.control, self.data):
            poller.register(socket, zmq.POLLIN)
        deadline = time.monotonic() + timeout_s
        while not until():
            now = time.monotonic()
            if now > deadline:
                if what:
                    raise AssertionError(f"{self.control_endpoint}: waited {timeout_s} s in vain for {what}")
                return False
            if self.lease and now >= self.lease_due:
                self.send_leases()
            for socket, _ in poller.poll(max(0, min(50, (deadline - now) * 1000))):
                while socket.poll(0):
                    self._handle(*self._receive(socket))
                    if until():
                        return True
        return True

    def pump_for(self, seconds):
        self.pump(lambda: False, seconds, what=None)

    def settle(self):
        """Until the server has read all that was sent by the control connection. (There is no order between the two.)"""
        self.send_leases()
        number = self.lease_number
        self.pump(lambda: self.echoed.get(self.control, 0) >= number, 10 * SLOWER, "an echo of our lease")

    # ---- requests

    def head(self, request_id=None, tenant="default", conversation="", **changes):
        stream, self.next_stream = self.next_stream, self.next_stream + 1
        fields = dict(request_id=request_id or os.urandom(16), session=self.session, stream=stream, tenant=tenant.encode(),
                      conversation=conversation.encode(), attempt=pb.Attempt(client=1), deadline_ms=int(REPLY_S * 1000))
        if self.role == pb.ROLE_ROUTER:
            fields["incarnation"] = self.welcome.session
            fields["attempt"] = pb.Attempt(client=1, router=1)
        return pb.Head(**{**fields, **changes})

    def body(self, messages=None, reply_name="", prompt_ids=None, history=None, truncate=False, **sampling):
        sampling.setdefault("tokens_max", 8)
        body = pb.Body(messages=messages if messages is not None else [] if prompt_ids is not None else [say("Who is there?")],
                       reply_name=reply_name.encode(), sampling=pb.Sampling(**sampling), truncate=truncate)
        if prompt_ids is not None:
            body.prompt_ids = struct.pack(f"<{len(prompt_ids)}I", *prompt_ids)
        if history is not None:
            body.history = history
        return body

    def track(self, head):
        request = Request(head.request_id, head.stream)
        self.requests[head.stream] = self.by_id[head.request_id] = request
        return request

    def send(self, head, body_frame, head_frame=None):
        """Sends a request whose frames the caller may have spoiled."""
        request = self.track(head)
        if self.lease and self.welcome and time.monotonic() > self.lease_due + 1:
            self.send_leases()                # nobody pumped for long: our session may count as lost, and take this along
        self.data.send_multipart([head_frame or frame("HEAD", head), body_frame])
        return request

    def start(self, messages=None, head=None, **body):
        head = self.head(**(head or {}))
        payload = frame("BODY", self.body(messages, **body))
        head.body_bytes = len(payload)
        return self.send(head, payload)

    def wait(self, request, timeout_s=REPLY_S):
        self.pump(lambda: request.ended, timeout_s, f"the end of request {request.id.hex()}")
        return request

    def wait_error(self, request=None, timeout_s=15 * SLOWER):
        """The error of a request, or the next one about the connection."""
        seen = len(self.connection_errors)
        self.pump(lambda: (request is not None and request.ended) or len(self.connection_errors) > seen or
                  (request is None and seen > 0), timeout_s, "an error")
        return request.error if request is not None and request.ended else self.connection_errors[-1]

    def generate(self, messages=None, head=None, **body):
        """A request that must go well."""
        request = self.wait(self.start(messages, head, **body))
        assert request.error is None, f"{request.code}: {request.error.detail.decode()}"
        return request

    def cancel(self, request, tenant="default", conversation=""):
        self.control.send(frame("CANCEL", pb.Cancel(request_id=request.id, tenant=tenant.encode(), conversation=conversation.encode(),
                                                    session=self.session)))


class Conversation:
    """The history of a conversation, sent whole each turn."""

    def __init__(self, peer, name, tenant="default", setting=None, me="", other=""):
        self.peer, self.name, self.tenant, self.me, self.other = peer, name, tenant, me, other
        self.messages = [say(setting, role=SYSTEM)] if setting else []

    def head(self):
        return {"conversation": self.name, "tenant": self.tenant}

    def turn(self, text, name=None, **body):
        """Says text; the reply must come."""
        self.messages.append(say(text, self.me if name is None else name))
        reply = self.peer.generate(self.messages, self.head(), reply_name=self.other, **body)
        self.messages.append(say(reply.text, self.other, ASSISTANT))
        return reply


def router_peer(worker, **options):
    """To a worker, in the role of a router."""
    return Peer(worker.ready["control"], role=pb.ROLE_ROUTER, name="test-router", **options)


NAN, INFINITY = math.nan, math.inf
