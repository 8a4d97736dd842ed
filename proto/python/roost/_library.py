"""libroost_client.so through ctypes: the structures of client.h and client_events.h, and the functions with their types.

Nothing here is public. The library is looked for in $ROOST_CLIENT_LIBRARY, beside this package, in build/*/lib of the source
tree that holds the package (the newest), and where the system's loader looks. A library of another build is refused.
"""
from __future__ import annotations

import ctypes
import os
import pathlib
import struct
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Optional, Union

ID_BYTES = 16
CHOICES_MAX = 16


class Span(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("size", c_size_t)]


class Config(ctypes.Structure):
    _fields_ = [("routers", POINTER(c_char_p)), ("router_count", c_uint), ("keep_order", c_bool), ("tenant", c_char_p),
                ("name", c_char_p)]


class Message(ctypes.Structure):
    _fields_ = [("role", c_int), ("name", c_char_p), ("text", c_char_p), ("text_size", c_size_t)]


class Sampling(ctypes.Structure):
    _fields_ = [("temperature", c_float), ("top_p", c_float), ("min_p", c_float), ("top_k", c_uint32),
                ("repetition_penalty", c_float), ("presence_penalty", c_float), ("frequency_penalty", c_float),
                ("tokens_max", c_uint32), ("tokens_min", c_uint32), ("choices", c_uint32), ("stops", POINTER(Span)),
                ("stop_count", c_uint), ("stop_ids", Span), ("bias_ids", Span), ("bias_values", Span), ("logprobs", c_uint32),
                ("token_logprobs", c_bool), ("prompt_logprobs", c_bool)]


class Request(ctypes.Structure):
    _fields_ = [("conversation", c_char_p), ("model", c_char_p), ("messages", POINTER(Message)), ("message_count", c_uint),
                ("prompt_ids", c_void_p), ("prompt_id_count", c_uint), ("reply_name", c_char_p), ("sampling", Sampling),
                ("truncate", c_bool), ("deadline_ms", c_uint32), ("priority", c_int32), ("seed", c_uint64),
                ("seed_given", c_bool), ("request_id", c_char_p), ("inexact_allowed", c_bool), ("credit_tokens", c_uint32)]


class Stats(ctypes.Structure):
    _fields_ = [("dropped", c_uint64), ("moves", c_uint64), ("resends", c_uint64), ("resumed", c_uint64),
                ("routers_ready", c_uint), ("routers", c_uint)]


# struct client_event: size, kind, choice, tag, first, count, text_bytes, has_logprobs, alternatives, reserved
EVENT = struct.Struct("=IHHQIIIBBH")
EVENT_TOKENS, EVENT_PROMPT, EVENT_END = 1, 2, 3
# struct client_event_end: twelve numbers, the finishes, the lengths of the three texts, reserved
EVENT_END_BODY = struct.Struct("=12I16s4I")

_FUNCTIONS = {
    "client_create": (c_int, [POINTER(Config), POINTER(c_void_p)]),
    "client_destroy": (None, [POINTER(c_void_p)]),
    "client_cancel": (None, [c_void_p]),
    "client_consumed": (None, [c_void_p, c_uint32]),
    "client_call_release": (None, [POINTER(c_void_p)]),
    "client_call_request_id": (c_void_p, [c_void_p]),
    "client_stats": (None, [c_void_p, POINTER(Stats)]),
    "client_events_create": (c_int, [POINTER(c_void_p)]),
    "client_events_destroy": (None, [POINTER(c_void_p)]),
    "client_events_fd": (c_int, [c_void_p]),
    "client_events_generate": (c_int, [c_void_p, POINTER(Request), c_void_p, c_uint64, POINTER(c_void_p)]),
    "client_events_take": (None, [c_void_p, POINTER(c_void_p), POINTER(c_size_t)]),
    "client_events_sizes": (None, [POINTER(c_uint32)]),
    "status_name": (c_char_p, [c_int]),
    "status_detail": (c_char_p, []),
}
_SIZES = [ctypes.sizeof(kind) for kind in (Config, Request, Message, Sampling, Stats)] + [EVENT.size, EVENT_END_BODY.size]

_loaded: Optional[ctypes.CDLL] = None


def _candidates() -> list[Union[str, pathlib.Path]]:
    chosen = os.environ.get("ROOST_CLIENT_LIBRARY")
    if chosen:
        return [chosen]
    package = pathlib.Path(__file__).resolve().parent
    built = list(package.parents[2].glob("build/*/lib/libroost_client.so")) if len(package.parents) > 2 else []
    built.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path for path in (package / "libroost_client.so", *built) if path.exists()] + ["libroost_client.so.0"]


def load() -> ctypes.CDLL:
    """The library; the same one every time. ImportError says where it was looked for, or that it does not fit."""
    global _loaded
    if _loaded is not None:
        return _loaded
    troubles = []
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            troubles.append(str(error))
            continue
        try:
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except AttributeError as error:
            raise ImportError(f"{path} is not the client library that this package was made for: {error}") from None
        sizes = (c_uint32 * len(_SIZES))()
        library.client_events_sizes(sizes)
        if list(sizes) != _SIZES:
            raise ImportError(f"{path} is of another version than this package: its structures have {list(sizes)} bytes "
                              f"instead of {_SIZES}; use both of one build")
        _loaded = library
        return library
    raise ImportError("libroost_client.so was not found; build it (ninja roost_client_shared) or set ROOST_CLIENT_LIBRARY: "
                      + "; ".join(troubles))
