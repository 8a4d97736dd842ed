"""Hugging Face model directories made from integers: the same bytes on every machine, without torch.

A tensor's values depend on its name and the model's seed alone: splitmix64 counts up from a hash of both, the eight bytes of each
number are summed (nearly normal, mean 1020, standard deviation 209) and scaled, all in float32, then rounded to bfloat16 by the
bits. So the file holds what a float32 reader and a bfloat16 reader both see exactly.
"""
import hashlib
import json
import struct

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
BYTES_STD = np.float32(209.02)        # of the sum of eight bytes: sqrt(8 * (256^2 - 1) / 12)


def splitmix(name, seed, count):
    """`count` numbers of 64 bits."""
    start = np.uint64(int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        z = start + GAMMA * np.arange(1, count + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def round_bf16(values):
    """float32 to the bits of bfloat16, half to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def normal(name, seed, shape, std):
    """Weights of a matrix, as bfloat16 bits."""
    sums = splitmix(name, seed, int(np.prod(shape))).view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int32) - 1020
    return round_bf16(sums.astype(np.float32) * np.float32(np.float32(std) / BYTES_STD)).reshape(shape)


def uniform(name, seed, shape, low, high):
    """Weights of a norm, as bfloat16 bits."""
    steps = (splitmix(name, seed, int(np.prod(shape))) >> np.uint64(48)).astype(np.float32)
    return round_bf16(np.float32(low) + steps * np.float32((high - low) / 65536)).reshape(shape)


def write_safetensors(path, tensors):
    """tensors: {name: bfloat16 bits}."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for bits in tensors.values():
            file.write(bits.astype("<u2").tobytes())


# Piece types and field numbers: sentencepiece_model.proto of sentencepiece 0.1.97.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def block(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


TEXT_ID = 262      # of the first piece that is text


def text_pieces(count):
    """Space, line feed, letters, and pairs of frequent ones; a lower place merges first."""
    pairs = [a + b for a in "etaoinshrdl" for b in "etaoinshrdl"]
    return (["\u2581", "\n"] + [chr(code) for code in range(97, 123)] + pairs)[:count]


def write_tokenizer(path, vocab_size, turn, turn_end):
    """A byte-fallback BPE model with Gemma's first ids: <pad>, <eos>, <bos>, <unk>, and two pieces for turns."""
    pieces = [("<pad>", CONTROL), ("<eos>", CONTROL), ("<bos>", CONTROL), ("<unk>", UNKNOWN), (turn, USER_DEFINED), (turn_end, USER_DEFINED)]
    pieces += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    pieces += [(text, NORMAL) for text in text_pieces(vocab_size - len(pieces))]
    if len(pieces) != vocab_size:
        raise ValueError(f"{vocab_size} pieces do not fit this tokenizer")
    out = bytearray()
    for index, (text, kind) in enumerate(pieces):
        score = struct.pack("<f", -float(index)) if kind == NORMAL else bytes(4)
        out += block(1, block(1, text.encode()) + varint(2 << 3 | 5) + score + number(3, kind))
    trainer = number(3, 2) + number(4, vocab_size) + number(35, 1) + number(40, 3) + number(41, 2) + number(42, 1) + number(43, 0)
    normalizer = block(1, b"identity") + block(2, b"") + number(3, 0) + number(4, 0) + number(5, 1)
    with open(path, "wb") as file:
        file.write(bytes(out) + block(2, trainer) + block(3, normalizer))
