"""Clients and calls. See the package's README.md for what is promised.

The C library's thread collects what happens to all calls of a client in one queue and makes one descriptor readable; the event
loop empties the queue with one call into the library, however many tokens and calls it is about. So the cost follows the number
of times that the loop wakes, and a busy loop wakes less often.

Who holds what: a Client holds the library's objects, and by weak references its calls. What the library still says about a call
that was thrown away is dropped here. Nothing the library calls back is Python.
"""
from __future__ import annotations

import asyncio
import collections
import ctypes
import dataclasses
import enum
import struct
import threading
import uuid
import warnings
import weakref
from array import array
from typing import Any, AsyncIterator, Deque, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

from . import _library

CREDIT_TOKENS = 512      # tokens of a call that may be unread


class RoostError(Exception):
    """The library could not do something: no memory, no descriptors, closed."""


class InvalidRequest(RoostError, ValueError):
    """What was asked for breaks a rule or a limit; the text names the field. Nothing was sent."""


class Role(str, enum.Enum):
    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


_ROLES = {Role.USER: 0, Role.ASSISTANT: 1, Role.SYSTEM: 2}


class Finish(str, enum.Enum):
    UNKNOWN = "unknown"
    STOP = "stop"                    # the model ended its turn
    LENGTH = "length"
    STOP_STRING = "stop string"


_FINISHES = (Finish.UNKNOWN, Finish.STOP, Finish.LENGTH, Finish.STOP_STRING)


class Error(str, enum.Enum):
    """Why a call failed; docs/protocol.md, "Error codes"."""
    INVALID = "invalid"
    UNAUTHORISED = "unauthorised"
    UNKNOWN_MODEL = "unknown model"
    TOO_LARGE = "too large"
    OVER_CAPACITY = "over capacity"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    SLOW_READER = "slow reader"
    CONFLICT = "conflict"
    NOT_EXACT = "not exact"
    UNSUPPORTED = "unsupported"
    WORKER_LOST = "worker lost"
    INTERNAL = "internal"


_ERRORS: Tuple[Optional[Error], ...] = (None, *Error)     # the number on the wire is the place


@dataclasses.dataclass(frozen=True)
class Message:
    role: Union[Role, str]
    text: str
    name: Optional[str] = None       # of the speaker


@dataclasses.dataclass(frozen=True)
class Sampling:
    """All zero: greedy, to the end of the turn. Ranges are those of docs/protocol.md."""
    temperature: float = 0.0
    top_p: float = 0.0
    min_p: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    tokens_max: int = 0
    tokens_min: int = 0
    choices: int = 1
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    logprobs: int = 0                # alternatives of each token
    token_logprobs: bool = False
    prompt_logprobs: bool = False


@dataclasses.dataclass
class Batch:
    """Tokens of one choice, or (prompt) of the prompt from its second token on. Not to be changed."""
    __slots__ = ("choice", "first", "ids", "text", "logprobs", "alternatives", "prompt")
    choice: int
    first: int                       # sequence number of ids[0] within the choice
    ids: List[int]
    text: str                        # whole characters
    logprobs: Optional[List[float]]
    alternatives: Optional[List[List[Tuple[int, float]]]]     # of each token: ids and log probabilities, likeliest first
    prompt: bool


@dataclasses.dataclass(frozen=True)
class End:
    ok: bool
    error: Optional[Error]
    detail: str
    finishes: List[Finish]           # of each choice; empty after an error
    prompt_tokens: int
    cached_tokens: int
    reply_tokens: int                # of all choices
    dropped_messages: int            # by truncation
    queue_us: int
    prefill_us: int
    decode_us: int
    route_us: int
    worker: str
    route: str                       # the router's reason
    retry_after_ms: int
    moves: int                       # times that the library sent the request again
    inexact: bool


@dataclasses.dataclass(frozen=True)
class Stats:
    dropped: int
    moves: int
    resends: int
    resumed: int
    routers_ready: int
    routers: int


def _text(value: Optional[str], what: str) -> Optional[bytes]:
    """As the library takes it: a C string."""
    if value is None:
        return None
    data = _utf8(value, what)
    if b"\0" in data:
        raise InvalidRequest(f"{what}: text must not contain NUL")
    return data


def _utf8(value: str, what: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest(f"{what} must be a string, not {type(value).__name__}")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} is not valid Unicode: it has a surrogate") from None


def _number(value: int, bits: int, what: str, lowest: int = 0) -> int:
    if not isinstance(value, int) or not lowest <= value < 2 ** bits:
        raise InvalidRequest(f"{what}: {value!r} is not a whole number from {lowest} to {2 ** bits - 1}")
    return value


def _real(value: float, what: str) -> float:
    if not isinstance(value, (int, float)):
        raise InvalidRequest(f"{what}: {value!r} is not a number")
    return float(value)


def _ids(values: Sequence[int], what: str) -> "array[int]":
    try:
        return array("I", values)
    except (TypeError, OverflowError):
        raise InvalidRequest(f"{what}: token ids are whole numbers from 0 to {2 ** 32 - 1}") from None


def _span(column: Union["array[int]", "array[float]"]) -> _library.Span:
    address, count = column.buffer_info()
    return _library.Span(address if count else None, count * column.itemsize)


def _raise(status: int, library: ctypes.CDLL) -> None:
    """An exception for what a function of the library returned."""
    if status == 0:
        return
    name = library.status_name(status).decode()
    detail = library.status_detail().decode(errors="replace")
    raise InvalidRequest(detail) if name in ("invalid", "limit", "unsupported") else RoostError(f"{name}: {detail}")


class _Native:
    """The library's objects of one client, and their end. Any thread may close it; the first one does."""

    def __init__(self, library: ctypes.CDLL, config: _library.Config) -> None:
        self.library = library
        self.client, self.events = ctypes.c_void_p(), ctypes.c_void_p()
        self._lock = threading.Lock()
        _raise(library.client_events_create(ctypes.byref(self.events)), library)
        status = library.client_create(ctypes.byref(config), ctypes.byref(self.client))
        if status:
            try:
                _raise(status, library)
            finally:
                library.client_events_destroy(ctypes.byref(self.events))

    def close(self) -> bytes:
        """Blocks for some 20 ms; open calls end as cancelled. Returns the last events."""
        with self._lock:
            if not self.client:
                return b""
            self.library.client_destroy(ctypes.byref(self.client))
            last = self.take()
            self.library.client_events_destroy(ctypes.byref(self.events))
            return last

    def take(self) -> bytes:
        if not self.events:
            return b""
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        self.library.client_events_take(self.events, ctypes.byref(data), ctypes.byref(size))
        return ctypes.string_at(data, size.value) if size.value else b""


class _Handle:
    """A reference to the library's call. client_cancel may come from any thread, so it must not meet the release."""

    def __init__(self, library: ctypes.CDLL, pointer: ctypes.c_void_p) -> None:
        self.library, self.pointer = library, pointer
        self._lock = threading.Lock()

    def cancel(self) -> None:
        with self._lock:
            if self.pointer:
                self.library.client_cancel(self.pointer)

    def consumed(self, tokens: int) -> None:
        with self._lock:
            if self.pointer:
                self.library.client_consumed(self.pointer, tokens)

    def release(self) -> None:
        with self._lock:
            if self.pointer:
                self.library.client_call_release(ctypes.byref(self.pointer))


def _abandon(handle: _Handle, calls: Dict[int, "weakref.ref[Call]"], tag: int) -> None:
    calls.pop(tag, None)
    handle.cancel()
    handle.release()


class Call:
    """A reply under way. Iterate over it for the batches, await end() for how it ended.

    Cancelling a task that waits for a call cancels the call, and so does throwing the call away. Everything but cancel() is for
    the event loop of the client.
    """

    def __init__(self, client: "Client", handle: _Handle, credit_tokens: int) -> None:
        self._client, self._handle = client, handle     # the client lives as long as its calls
        self._batches: Deque[Batch] = collections.deque()
        self._end: Optional[End] = None
        self._waiters: List["asyncio.Future[None]"] = []
        self._unread = 0             # tokens in _batches
        self._unsaid = 0             # read, and the library was not told yet
        self._step = max(1, credit_tokens // 2)
        self._flows = False          # end() was asked for: nothing is held back any more
        address = handle.library.client_call_request_id(handle.pointer)
        self.request_id: bytes = ctypes.string_at(address, _library.ID_BYTES)

    def cancel(self) -> None:
        """Asks; the end still comes. Any thread."""
        self._handle.cancel()

    @property
    def unread(self) -> int:
        """Tokens of the reply that have come and wait to be read."""
        return self._unread

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while not self._batches:
            if self._end is not None:
                raise StopAsyncIteration
            await self._wait()
        batch = self._batches.popleft()
        if not batch.prompt:
            self._unread -= len(batch.ids)
            if not self._flows:
                self._consumed(len(batch.ids))
        return batch

    async def end(self) -> End:
        """How it ended. Waits without holding the reply back; what was not read can still be read afterwards."""
        if not self._flows:
            self._flows = True
            self._consumed(self._unread)
        while self._end is None:
            await self._wait()
        return self._end

    def _consumed(self, tokens: int) -> None:
        self._unsaid += tokens
        if self._unsaid >= self._step:
            self._handle.consumed(self._unsaid)
            self._unsaid = 0

    async def _wait(self) -> None:
        waiter = self._client._check_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _add(self, batch: Batch) -> None:
        self._batches.append(batch)
        if not batch.prompt:
            if self._flows:
                self._consumed(len(batch.ids))
            self._unread += len(batch.ids)

    def _finish(self, end: End) -> None:
        self._end = end
        self._handle.release()


class Client:
    """A connection to a set of routers, for one tenant. Used by one event loop; several clients may live in several threads.

        async with roost.Client(["tcp://10.0.0.1:7400", "tcp://10.0.0.2:7400"], tenant="acme") as client: ...

    spread: calls go to a router chosen at random when the client was made, and to the next ones when it is lost; False: to the
    first that is there. credit_tokens: how many tokens of a call may be unread before its sender has to wait.
    """

    def __init__(self, routers: Sequence[str], tenant: str = "default", name: Optional[str] = None, spread: bool = True,
                 credit_tokens: int = CREDIT_TOKENS) -> None:
        if isinstance(routers, str):
            raise InvalidRequest("routers must be a list of endpoints, not one string")
        self._routers, self._tenant, self._name = list(routers), tenant, name
        self._spread, self._credit_tokens = spread, _number(credit_tokens, 32, "credit_tokens", 1)
        self._native: Optional[_Native] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._closing: Optional["asyncio.Task[None]"] = None
        self._calls: Dict[int, "weakref.ref[Call]"] = {}
        self._last_tag = 0

    async def __aenter__(self) -> "Client":
        await self.open()
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Any) -> None:
        await self.close()

    async def open(self) -> None:
        """Starts connecting; calls may be made at once. Once in the life of a client."""
        if self._native is not None:
            raise RoostError("this client was opened already; make another one")
        library = _library.load()
        routers = [_text(router, "router") for router in self._routers]
        config = _library.Config((ctypes.c_char_p * len(routers))(*routers), len(routers), not self._spread,
                                 _text(self._tenant, "tenant"), _text(self._name, "name"))
        loop = asyncio.get_running_loop()
        native = _Native(library, config)
        self._native, self._loop = native, loop
        descriptor, reference = library.client_events_fd(native.events), weakref.ref(self)
        self._finalizer = weakref.finalize(self, _let_go, native, loop, descriptor)
        loop.add_reader(descriptor, _on_readable, reference, loop, descriptor)

    async def close(self) -> None:
        """Ends the open calls as cancelled and lets go of the routers. Again: waits for the same end."""
        if self._native is None:
            return
        loop = self._check_loop()
        if self._closing is None:
            self._closing = loop.create_task(self._close(loop, self._native))
        await asyncio.shield(self._closing)     # a caller that is cancelled leaves no call without its end

    async def _close(self, loop: asyncio.AbstractEventLoop, native: _Native) -> None:
        loop.remove_reader(native.library.client_events_fd(native.events))
        self._handle_events(native.take())
        self._handle_events(await loop.run_in_executor(None, native.close))
        self._finalizer.detach()

    def __del__(self) -> None:
        if getattr(self, "_native", None) is not None and self._closing is None:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self)

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise RuntimeError("a roost.Client and its calls belong to the event loop in which it was opened; make one per loop")
        return loop

    def stats(self) -> Stats:
        """Counts since the client was opened. Zeros after it was closed."""
        stats = _library.Stats()
        if self._native is not None and self._native.client and self._closing is None:
            self._native.library.client_stats(self._native.client, ctypes.byref(stats))
        return Stats(stats.dropped, stats.moves, stats.resends, stats.resumed, stats.routers_ready, stats.routers)

    def generate(self, *, messages: Optional[Sequence[Message]] = None, prompt_ids: Optional[Sequence[int]] = None,
                 conversation: Optional[str] = None, sampling: Optional[Sampling] = None, seed: Optional[int] = None,
                 deadline_ms: int = 0, request_id: Union[bytes, uuid.UUID, None] = None, reply_name: Optional[str] = None,
                 model: Optional[str] = None, priority: int = 0, truncate: bool = False, inexact_allowed: bool = False,
                 credit_tokens: Optional[int] = None) -> Call:
        """Sends a request, and returns the reply as it comes. InvalidRequest: nothing was sent."""
        if self._native is None or self._closing is not None:
            raise RoostError("the client is not open")
        self._check_loop()
        library = self._native.library
        credit = self._credit_tokens if credit_tokens is None else _number(credit_tokens, 32, "credit_tokens", 1)
        request = _library.Request(
            conversation=_text(conversation, "conversation"), model=_text(model, "model"),
            reply_name=_text(reply_name, "reply_name"), truncate=truncate, inexact_allowed=inexact_allowed,
            deadline_ms=_number(deadline_ms, 32, "deadline_ms"), priority=_number(priority, 31, "priority", -2 ** 31),
            seed=_number(seed or 0, 64, "seed"), seed_given=seed is not None, credit_tokens=credit)
        if request_id is not None:
            name = request_id.bytes if isinstance(request_id, uuid.UUID) else request_id
            if not isinstance(name, bytes) or len(name) != _library.ID_BYTES:
                raise InvalidRequest(f"request_id: {_library.ID_BYTES} bytes or a UUID are needed")
            request.request_id = ctypes.cast(ctypes.create_string_buffer(name, _library.ID_BYTES), ctypes.c_char_p)
        chat = _messages(messages or ())
        request.messages, request.message_count = chat, len(chat)
        prompt = _ids(prompt_ids or (), "prompt_ids")
        request.prompt_ids, request.prompt_id_count = _span(prompt).data, len(prompt)
        kept = _fill_sampling(request.sampling, sampling or Sampling())
        self._last_tag += 1
        tag, pointer = self._last_tag, ctypes.c_void_p()
        _raise(library.client_events_generate(self._native.client, ctypes.byref(request), self._native.events, tag,
                                              ctypes.byref(pointer)), library)
        del kept
        handle = _Handle(library, pointer)
        call = Call(self, handle, credit)
        weakref.finalize(call, _abandon, handle, self._calls, tag).atexit = False
        self._calls[tag] = weakref.ref(call)
        return call

    def _handle_events(self, data: bytes) -> None:
        at, size_all = 0, len(data)
        woken: Dict[int, Call] = {}
        unpack = _library.EVENT.unpack_from
        while at < size_all:
            size, kind, choice, tag, first, count, text_bytes, has_logprobs, alternatives, _ = unpack(data, at)
            reference = self._calls.get(tag)
            call = reference() if reference is not None else None
            if call is not None:
                body = at + _library.EVENT.size
                if kind == _library.EVENT_END:
                    call._finish(_read_end(data, body, count))
                    del self._calls[tag]
                else:
                    call._add(_read_batch(data, body, kind, choice, first, count, text_bytes, has_logprobs, alternatives))
                woken[tag] = call
            at += size
        for call in woken.values():
            call._wake()


def _let_go(native: _Native, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """The end of a client that nobody closed, in any thread. The loop forgets the descriptor before it is closed: the next one
    with its number may be anybody's."""
    def end() -> None:
        if not loop.is_closed():
            loop.remove_reader(descriptor)
        native.close()

    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if loop.is_running() and not here:
        try:
            loop.call_soon_threadsafe(end)
            return
        except RuntimeError:        # closed meanwhile: it watches nothing any more
            pass
    end()


def _on_readable(reference: "weakref.ref[Client]", loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    client = reference()
    if client is None or client._native is None:
        loop.remove_reader(descriptor)
    else:
        client._handle_events(client._native.take())


def _read_batch(data: bytes, at: int, kind: int, choice: int, first: int, count: int, text_bytes: int, has_logprobs: int,
                width: int) -> Batch:
    column, table = struct.unpack_from, count * width
    ids = list(column(f"={count}I", data, at))
    at += 4 * count
    logprobs: Optional[List[float]] = None
    alternatives: Optional[List[List[Tuple[int, float]]]] = None
    if has_logprobs:
        logprobs = list(column(f"={count}f", data, at))
        at += 4 * count
    if width:
        pairs = list(zip(column(f"={table}I", data, at), column(f"={table}f", data, at + 4 * table)))
        alternatives = [pairs[i:i + width] for i in range(0, table, width)]
        at += 8 * table
    text = data[at:at + text_bytes].decode() if text_bytes else ""
    return Batch(choice, first, ids, text, logprobs, alternatives, kind == _library.EVENT_PROMPT)


def _read_end(data: bytes, at: int, choices: int) -> End:
    (error, retry_after_ms, prompt_tokens, cached_tokens, reply_tokens, dropped_messages, queue_us, prefill_us, decode_us,
     route_us, moves, inexact, finishes, *lengths, _) = _library.EVENT_END_BODY.unpack_from(data, at)
    at += _library.EVENT_END_BODY.size
    texts = []
    for length in lengths:
        texts.append(data[at:at + length].decode(errors="replace"))
        at += length
    return End(error == 0, _ERRORS[error] if error < len(_ERRORS) else Error.INTERNAL, texts[0],
               [_FINISHES[finish] for finish in finishes[:choices]], prompt_tokens, cached_tokens, reply_tokens,
               dropped_messages, queue_us, prefill_us, decode_us, route_us, texts[1], texts[2], retry_after_ms, moves,
               bool(inexact))


def _messages(messages: Sequence[Message]) -> "ctypes.Array[_library.Message]":
    chat = (_library.Message * len(messages))()
    for place, message in zip(chat, messages):
        try:
            place.role = _ROLES[Role(message.role)]
        except ValueError:
            raise InvalidRequest(f"role {message.role!r}: use user, assistant or system") from None
        text = _utf8(message.text, "text of a message")
        place.name, place.text, place.text_size = _text(message.name, "name of a speaker"), text, len(text)
    return chat


def _fill_sampling(to: _library.Sampling, sampling: Sampling) -> List[object]:
    """Returns what the structure points to."""
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        setattr(to, name, _real(getattr(sampling, name), name))
    for name in ("top_k", "tokens_max", "tokens_min", "choices", "logprobs"):
        setattr(to, name, _number(getattr(sampling, name), 32, name))
    to.token_logprobs, to.prompt_logprobs = sampling.token_logprobs, sampling.prompt_logprobs
    if isinstance(sampling.stop, str):
        raise InvalidRequest("stop must be a list of strings, not one string")
    stops = [ctypes.create_string_buffer(text, len(text)) for text in (_utf8(stop, "stop string") for stop in sampling.stop)]
    spans = (_library.Span * len(stops))(*[_library.Span(ctypes.addressof(stop), len(stop)) for stop in stops])
    to.stops, to.stop_count = spans, len(stops)
    stop_ids, bias_ids = _ids(sampling.stop_ids, "stop_ids"), _ids(list(sampling.bias), "bias")
    bias_values = array("f", [_real(value, "bias") for value in sampling.bias.values()])
    to.stop_ids, to.bias_ids, to.bias_values = _span(stop_ids), _span(bias_ids), _span(bias_values)
    return [stops, spans, stop_ids, bias_ids, bias_values]
