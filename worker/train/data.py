"""The corpus as training rows: scenes, the "speaker" template, the split, rows and sequences.

A scene is one conversation. In the template it becomes

    <bos> [<turn> SCENE <text> setting <end>] [<turn> NAME <text> words <end>] ...

where name and text are encoded separately, so no text can ever become a control token.

A play is one stream of messages: a setting, its turns, the next setting, and so on. A row is <bos> and a piece of one
such stream. Where the piece begins inside a scene, the setting of that scene is shown first, and is not learnt again:

    stream   S1 t1 t2 t3 t4 S2 t5 t6 ...
    row      <bos> S1 t1 t2 t      the last turn is cut where the row is full
    row      <bos> S1 t2 t3 t4     and opens the next row: S1 is shown
    row      <bos> S2 t5 t6        a scene that ends is followed by the next one
"""
import bisect
import itertools
import json
import lzma
import pathlib

import numpy as np

CORPUS = pathlib.Path(__file__).parent / "corpus" / "shakespeare.jsonl.xz"
DEVELOPMENT_PLAYS = ("As You Like It", "Winter's Tale")
TEST_PLAYS = ("Much Ado About Nothing", "Othello, the Moore of Venice")

BOS, END, TURN, TEXT = 1, 2, 3, 4
PAD = 0


def load_scenes(path=CORPUS):
    """All scenes, in file order: dicts with play, act, scene, setting, turns."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def split(scenes):
    """The scenes as {"train", "development", "test"}: whole plays are held out, and no play is in two parts."""
    missing = {*DEVELOPMENT_PLAYS, *TEST_PLAYS} - {s["play"] for s in scenes}
    if missing:
        raise ValueError(f"held-out plays are not in the corpus: {sorted(missing)}; give the whole corpus")
    part_of = dict.fromkeys(DEVELOPMENT_PLAYS, "development") | dict.fromkeys(TEST_PLAYS, "test")
    parts = {"train": [], "development": [], "test": []}
    for scene in scenes:
        parts[part_of.get(scene["play"], "train")].append(scene)
    return parts


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


def encode_plays(tokenizer, scenes):
    """The plays in order, each a list of its scenes in order: (ids of the setting's message, [ids of each turn])."""
    plays = []
    for _, play in itertools.groupby(scenes, key=lambda s: s["play"]):
        plays.append([])
        for scene in play:
            setting, *turns = [encode_message(tokenizer, *message) for message in scene_messages(scene)]
            plays[-1].append((setting, turns))
    return plays


class Play:
    """A play as one stream of ids, and where its messages begin."""

    def __init__(self, scenes):
        messages, self.settings = [], []                 # settings: of each message, the setting it is played in
        for setting, turns in scenes:
            messages += [setting, *turns]
            self.settings += [setting] * (1 + len(turns))
        self.ids = np.fromiter(itertools.chain.from_iterable(messages), np.int64)
        self.starts = [0, *itertools.accumulate(map(len, messages))][:-1]
        self.opens = [message is setting for message, setting in zip(messages, self.settings)]

    def message_at(self, place):
        """The message that holds the id at `place` of the stream."""
        return bisect.bisect_right(self.starts, place) - 1

    def shown(self, place):
        """What a row that begins at `place` shows after <bos>, as known and not to be learnt.

        That is the setting, unless the row begins with it. Inside a turn, which happens only where the turn is longer
        than a whole row, it is also the turn's header and the last id before `place`.
        """
        message = self.message_at(place)
        start = self.starts[message]
        shown = [] if self.opens[message] else list(self.settings[message])
        if place > start:
            header = self.ids[start:place].tolist()
            shown += [*header[:header.index(TEXT) + 1], header[-1]]
        return shown

    def next_place(self, place, size):
        """Where the row after the one of `size` ids at `place` begins; the stream's length, where none is left."""
        room = size - 1 - len(self.shown(place))
        cut = place + room
        if cut >= len(self.ids):
            return len(self.ids)
        start = self.starts[self.message_at(cut)]
        if start > place:
            return start
        if room <= 0 or TEXT not in self.ids[start:cut]:
            raise ValueError(f"rows of {size} ids leave no room for a turn after its setting; take longer rows")
        return cut

    def walk(self, size, first=0, last=None):
        """The places where rows of `size` ids begin, from `first` on, before `last` (the end of the play)."""
        places, place = [], first
        while place < (len(self.ids) if last is None else last):
            places.append(place)
            place = self.next_place(place, size)
        return places

    def row(self, place, size):
        """(ids, number of ids at its front that are not targets) of the row at `place`; shorter at the play's end."""
        front = [BOS, *self.shown(place)]
        return np.concatenate([front, self.ids[place:place + size - len(front)]]), len(front)


def epoch_rows(plays, size, rng):
    """The rows of one epoch, shuffled: [(play, place)].

    Each play is walked through from a random message to its end, and then from its beginning to that message.
    """
    rows = []
    for play in plays:
        first = play.starts[rng.integers(len(play.starts))]
        rows += [(play, place) for place in play.walk(size, first) + play.walk(size, last=first)]
    return [rows[i] for i in rng.permutation(len(rows))]


def batches(plays, length, rows, seed, skip=0):
    """Endless batches of `rows` rows, a pure function of its arguments; the first `skip` batches are left out.

    Yields (epoch as a float, ids, learn): ids int64 and learn bool, both (rows, length + 1). The end of an epoch and
    the beginning of the next may share a batch. Where learn is False the id is no target: <bos>, a setting that is
    only shown, and the padding of a play's last row.
    """
    if not plays or rows < 1 or skip < 0:
        raise ValueError(f"batches need a play, rows >= 1 and skip >= 0: got {len(plays)} plays, {rows} and {skip}")
    streams, size = [Play(play) for play in plays], length + 1
    epoch, at, queue = 0, skip * rows, []                # at: the next row to give, counted from the queue's front
    while True:
        batch = []
        while len(batch) < rows:
            while at >= len(queue):
                at -= len(queue)
                queue = epoch_rows(streams, size, np.random.default_rng([seed, length, epoch]))
                epoch += 1
            if not batch:
                progress = epoch - 1 + at / len(queue)
            batch.append(queue[at])
            at += 1
        yield progress, *fill_batch(batch, size)


def fill_batch(batch, size):
    """(ids, learn) of the rows [(play, place)], padded to `size` ids."""
    ids, learn = np.full((len(batch), size), PAD, np.int64), np.zeros((len(batch), size), bool)
    for i, (play, place) in enumerate(batch):
        row, front = play.row(place, size)
        ids[i, :len(row)] = row
        learn[i, front:len(row)] = True
    return ids, learn


def scene_sequences(plays, limit):
    """Every scene alone: <bos>, its setting and all its turns, cut at `limit` ids."""
    scenes = [[BOS, *setting, *itertools.chain(*turns)] for play in plays for setting, turns in play]
    return [np.asarray(scene[:limit], np.int64) for scene in scenes]


def consecutive_sequences(plays, limit):
    """The plays as sequences of `limit` ids, scene after scene, cut as rows are; a play's last one is shorter."""
    streams = [Play(play) for play in plays]
    return [play.row(place, limit)[0] for play in streams for place in play.walk(limit)]
