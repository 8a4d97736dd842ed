"""The corpus as training rows: scenes, the "speaker" template, the split, and packing.

A scene is one conversation. In the template it becomes

    <bos> [<turn> SCENE <text> setting <end>] [<turn> NAME <text> words <end>] ...

where name and text are encoded separately, so no text can ever become a control token.
A crop is the scene's prefix (<bos> and the SCENE message) and a run of consecutive turns;
a row is one or more crops packed side by side that do not see each other.
"""
import bisect
import json
import lzma
import pathlib

import numpy as np

CORPUS = pathlib.Path(__file__).parent / "corpus" / "shakespeare.jsonl.xz"
DEVELOPMENT_PLAYS = ("As You Like It", "Winter's Tale")

BOS, END, TURN, TEXT = 1, 2, 3, 4


def load_scenes(path=CORPUS):
    """All scenes, in file order: dicts with play, act, scene, setting, turns."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def split_scenes(scenes):
    """(training scenes, development scenes): two whole plays are held out."""
    found = {s["play"] for s in scenes}
    missing = set(DEVELOPMENT_PLAYS) - found
    if missing:
        raise ValueError(f"development plays not in the corpus: {sorted(missing)}")
    train = [s for s in scenes if s["play"] not in DEVELOPMENT_PLAYS]
    dev = [s for s in scenes if s["play"] in DEVELOPMENT_PLAYS]
    return train, dev


def scene_messages(scene):
    """A scene as a conversation: [(name, text)], the setting first."""
    return [("SCENE", scene["setting"])] + [(t["speaker"], t["text"]) for t in scene["turns"]]


def encode_message(tokenizer, name, text):
    """Ids of one whole message."""
    return [TURN, *tokenizer.encode(name), TEXT, *tokenizer.encode(text), END]


def encode_request(tokenizer, messages, reply_name):
    """Ids that ask for the next message of `reply_name`; generation stops at END."""
    ids = [BOS]
    for name, text in messages:
        ids += encode_message(tokenizer, name, text)
    return ids + [TURN, *tokenizer.encode(reply_name), TEXT]


def encode_scenes(tokenizer, scenes):
    """[(prefix ids, [turn ids])], one entry a scene."""
    encoded = []
    for scene in scenes:
        setting, *turns = scene_messages(scene)
        prefix = [BOS, *encode_message(tokenizer, *setting)]
        encoded.append((prefix, [encode_message(tokenizer, *turn) for turn in turns]))
    return encoded


def crop_scene(prefix, turns, limit, first_limit):
    """Cuts a scene into crops of at most `limit` ids (the first: `first_limit`).

    Returns [(ids, learn)] where learn[i] says whether ids[i] counts as a target: the prefix
    counts only in the first crop. A turn that fits no crop is cut at the limit.
    """
    crops, ids = [], list(prefix)
    room = max(first_limit, len(prefix) + 8)

    def close():
        learn = np.ones(len(ids), bool)
        if crops:
            learn[:len(prefix)] = False
        crops.append((np.asarray(ids, np.int32), learn))

    for turn in turns:
        if len(ids) > len(prefix) and len(ids) + len(turn) > room:
            close()
            ids, room = list(prefix), limit
        ids += turn[:limit - len(ids)]
    close()
    return crops


def pack_rows(crops, row_ids):
    """Best-fit packing of crops into rows of `row_ids` ids.

    Returns ids (rows, row_ids) int32, segment (rows, row_ids) int32 with 0 for padding, and
    learn (rows, row_ids) bool. The first id of a segment is never a target.
    """
    rows, free = [], []                      # free: sorted (ids left, row index)
    for crop in sorted(crops, key=lambda c: -len(c[0])):
        size = len(crop[0])
        at = bisect.bisect_left(free, (size, -1))
        if at < len(free):
            left, row = free.pop(at)
        else:
            left, row = row_ids, len(rows)
            rows.append([])
        rows[row].append(crop)
        bisect.insort(free, (left - size, row))

    ids = np.zeros((len(rows), row_ids), np.int32)
    segment = np.zeros((len(rows), row_ids), np.int32)
    learn = np.zeros((len(rows), row_ids), bool)
    for r, row in enumerate(rows):
        at = 0
        for s, (crop_ids, crop_learn) in enumerate(row):
            end = at + len(crop_ids)
            ids[r, at:end] = crop_ids
            segment[r, at:end] = s + 1
            learn[r, at:end] = crop_learn
            learn[r, at] = False
            at = end
    return ids, segment, learn


def epoch_rows(encoded, length, rng):
    """One pass over the scenes, cut at random places, in random order.

    `length` is the number of inputs a row; rows carry one id more, the last target.
    """
    limit, crops = length + 1, []
    for prefix, turns in encoded:
        crops += crop_scene(prefix, turns, limit, int(rng.integers(limit // 4, limit + 1)))
    ids, segment, learn = pack_rows(crops, limit)
    order = rng.permutation(len(ids))
    return ids[order], segment[order], learn[order]


def development_rows(encoded, length):
    """The development scenes, cut the same way every time."""
    crops = []
    for prefix, turns in encoded:
        crops += crop_scene(prefix, turns, length + 1, length + 1)
    return pack_rows(crops, length + 1)


def batches(encoded, length, rows, seed):
    """Endless batches of `rows` rows, a pure function of its arguments.

    Yields (epoch as a float, (ids, segment, learn)), each array (rows, length + 1).
    """
    epoch = 0
    while True:
        rng = np.random.default_rng([seed, length, epoch])
        packed = epoch_rows(encoded, length, rng)
        count = len(packed[0]) // rows
        for i in range(count):
            yield epoch + i / count, tuple(a[i * rows:(i + 1) * rows] for a in packed)
        epoch += 1
