"""The training rows: what they hold, what they teach, and that nothing of the plays is left out.

The plays here are made up: each id but TEXT stands at one place alone, so a row tells where it comes from.
"""
import collections
import itertools
import pathlib
import random
import re
import sys

import numpy as np
import pytest

SOURCE_DIR = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE_DIR / "worker" / "train"))
import data

Message = collections.namedtuple("Message", "play scene start ids setting")      # setting: that of its scene


class Plays:
    """Plays of unique ids, as encode_plays gives them, and where each id stands."""

    def __init__(self, seed=1, plays=3):
        draw, self.new = random.Random(seed), itertools.count(100)
        self.plays = [[self.scene(draw) for _ in range(draw.randint(1, 9))] for _ in range(plays)]
        self.plays[0][0][1].append(self.message(150))                            # longer than the short rows below
        self.streams, self.messages, self.place_of = [], [], {}
        for number, play in enumerate(self.plays):
            stream = []
            for scene, (setting, turns) in enumerate(play):
                for ids in (setting, *turns):
                    message = Message(number, scene, len(stream), ids, setting)
                    self.messages.append(message)
                    self.place_of |= {n: (message, len(stream) + i) for i, n in enumerate(ids) if n != data.TEXT}
                    stream += ids
            self.streams.append(stream)

    def message(self, words):
        ids = list(itertools.islice(self.new, words + 3))
        return [*ids[:2], data.TEXT, *ids[2:]]

    def scene(self, draw):
        turns = [self.message(draw.randint(0, 30)) for _ in range(draw.randint(1, 40))]
        return self.message(draw.randint(1, 6)), turns

    def message_at(self, play, place):
        return next(m for m in self.messages if m.play == play and m.start <= place < m.start + len(m.ids))


Row = collections.namedtuple("Row", "front play first behind padding")   # what it teaches: [first, behind) of the play


def read_row(plays, ids, learn):
    """The row's place. Fails unless it is a front, a piece of one play and padding, and only the piece is learnt."""
    taught = np.flatnonzero(learn)
    begin, end = int(taught[0]), int(taught[-1]) + 1
    assert learn[begin:end].all()
    message, place = plays.place_of[int(ids[begin])]
    assert ids[begin:end].tolist() == plays.streams[message.play][place:place + end - begin]
    assert not ids[end:].any()
    return Row(ids[:begin].tolist(), message.play, place, place + end - begin, len(ids) - end)


def epochs(plays, length, seed, count):
    """The rows of the first `count` epochs, a list for each."""
    found = [[] for _ in range(count)]
    for epoch, ids, learn in data.batches(plays.plays, length, 1, seed):
        if epoch >= count:
            return found
        assert ids.dtype == np.int64 and learn.dtype == bool and ids.shape == learn.shape == (1, length + 1)
        found[int(epoch)].append(read_row(plays, ids[0], learn[0]))


CASES = pytest.mark.parametrize("length, seed", [(60, 1), (61, 2), (97, 3), (128, 4), (700, 5), (5000, 6)])


@CASES
def test_row_shows_what_it_must_know_and_does_not_teach_it(length, seed):
    plays = Plays(seed)
    for row in itertools.chain(*epochs(plays, length, seed, 2)):
        message = plays.message_at(row.play, row.first)
        shown = [] if message.ids is message.setting else message.setting
        if row.first > message.start:                                     # inside a turn that no row can hold
            assert len(message.ids) + len(message.setting) + 1 > length + 1
            shown = shown + message.ids[:3] + [plays.streams[row.play][row.first - 1]]
        assert row.front == [data.BOS, *shown]


@CASES
def test_rows_are_padded_only_where_a_play_ends(length, seed):
    plays = Plays(seed)
    for row in itertools.chain(*epochs(plays, length, seed, 2)):
        assert row.padding == 0 or row.behind == len(plays.streams[row.play])


@CASES
def test_epoch_teaches_every_id(length, seed):
    plays = Plays(seed)
    for rows in epochs(plays, length, seed, 3):
        taught = [np.zeros(len(stream), int) for stream in plays.streams]
        for row in rows:
            taught[row.play][row.first:row.behind] += 1
        assert all(times.all() for times in taught)


@CASES
def test_next_row_begins_with_the_turn_that_was_cut(length, seed):
    plays = Plays(seed)
    for rows in epochs(plays, length, seed, 2):
        for play, stream in enumerate(plays.streams):
            firsts = {row.first for row in rows if row.play == play}
            following = set()
            for row in (row for row in rows if row.play == play and row.behind < len(stream)):
                cut = plays.message_at(play, row.behind)
                following.add(cut.start if cut.start > row.first else row.behind)
            assert len(firsts - following) <= 2               # the play's beginning, and where the epoch began
            assert len(following - firsts) <= 1               # where the walk met its own beginning


def test_rows_go_on_with_the_next_scene():
    plays = Plays()
    joined = 0
    for row in epochs(plays, 400, 1, 1)[0]:
        scenes = {plays.message_at(row.play, place).scene for place in range(row.first, row.behind)}
        joined += len(scenes) > 1
    assert joined > 0


def test_epochs_begin_at_other_places_and_are_shuffled():
    plays = Plays()
    one, two = epochs(plays, 100, 1, 2)
    assert {row.first for row in one if row.play == 0} != {row.first for row in two if row.play == 0}
    assert [row.play for row in one] != sorted(row.play for row in one)


def take(plays, count, *arguments, **options):
    return list(itertools.islice(data.batches(plays.plays, *arguments, **options), count))


def same(left, right):
    return len(left) == len(right) and all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2]) for a, b in zip(left, right))


@pytest.mark.parametrize("rows", [1, 4, 7, 200])
def test_skip_resumes_with_the_same_batches(rows):
    plays = Plays()
    whole = take(plays, 90, 100, rows, 3)
    assert whole[-1][0] > 1                                   # more than an epoch
    for skip in (0, 1, 13, 60, 89):
        assert same(take(plays, 90 - skip, 100, rows, 3, skip=skip), whole[skip:])
    assert not same(whole, take(plays, 90, 100, rows, 4))


def test_batches_are_the_rows_in_order_whatever_their_number():
    plays = Plays()
    ones, sevens = take(plays, 210, 100, 1, 3), take(plays, 30, 100, 7, 3)
    assert np.array_equal(np.concatenate([b[1] for b in ones]), np.concatenate([b[1] for b in sevens]))
    assert [b[0] for b in sevens] == [b[0] for b in ones[::7]]
    assert [b[0] for b in ones] == sorted(b[0] for b in ones) and ones[0][0] == 0


def test_bad_arguments_are_refused():
    plays = Plays()
    with pytest.raises(ValueError, match="longer rows"):
        take(plays, 200, 8, 1, 1)
    for arguments in (([], 100, 1, 1), (plays.plays, 100, 0, 1), (plays.plays, 100, 1, 1, -1)):
        with pytest.raises(ValueError, match="batches need"):
            next(data.batches(*arguments))


def test_scene_sequences_are_whole_scenes():
    plays = Plays()
    scenes = [[data.BOS, *setting, *itertools.chain(*turns)] for play in plays.plays for setting, turns in play]
    assert [s.tolist() for s in data.scene_sequences(plays.plays, 10**6)] == scenes
    cut = data.scene_sequences(plays.plays, 50)
    assert [s.tolist() for s in cut] == [scene[:50] for scene in scenes]
    assert all(s.dtype == np.int64 for s in cut)


def test_consecutive_sequences_join_the_scenes_of_a_play():
    plays = Plays()
    assert [s.tolist() for s in data.consecutive_sequences(plays.plays, 10**6)] == [
        [data.BOS, *stream] for stream in plays.streams]
    found = data.consecutive_sequences(plays.plays, 300)
    assert all(s.dtype == np.int64 and s[0] == data.BOS for s in found)
    assert sum(len(s) < 300 for s in found) <= len(plays.plays)
    assert set(itertools.chain(*plays.streams)) == set(np.concatenate(found).tolist()) - {data.BOS}


# ---- the corpus ----


class Bytes:
    """A tokenizer of bytes, so that these tests need no package."""

    def encode(self, text):
        return [5 + byte for byte in text.encode()]

    def decode(self, ids):
        return bytes(i - 5 for i in ids).decode()


@pytest.fixture(scope="module")
def scenes():
    return data.load_scenes()


def test_parts_are_apart_and_are_the_corpus(scenes):
    parts = data.split(scenes)
    plays = {part: {s["play"] for s in found} for part, found in parts.items()}
    assert plays["development"] == set(data.DEVELOPMENT_PLAYS) and plays["test"] == set(data.TEST_PLAYS)
    assert {part: len(found) for part, found in plays.items()} == {"train": 33, "development": 2, "test": 2}
    assert sum(map(len, plays.values())) == len(set().union(*plays.values()))
    keys = [(s["play"], s["act"], s["scene"]) for found in parts.values() for s in found]
    assert sorted(keys) == sorted((s["play"], s["act"], s["scene"]) for s in scenes) and len(keys) == len(set(keys))
    speeches = {part: {t["text"] for s in found for t in s["turns"] if len(t["text"]) > 60}
                for part, found in parts.items()}
    for one, other in itertools.combinations(speeches.values(), 2):
        assert not one & other                                # no play under two names


def test_split_wants_the_held_out_plays(scenes):
    with pytest.raises(ValueError, match="Othello"):
        data.split([s for s in scenes if not s["play"].startswith("Othello")])


def test_encoded_plays_are_the_corpus_in_order(scenes):
    test = data.split(scenes)["test"]
    plays = data.encode_plays(Bytes(), test)
    assert len(plays) == 2
    for scene, (setting, turns) in zip(test, itertools.chain(*plays), strict=True):
        messages = [("SCENE", scene["setting"])] + [(t["speaker"], t["text"]) for t in scene["turns"]]
        for (name, text), ids in zip(messages, [setting, *turns], strict=True):
            middle = ids.index(data.TEXT)
            assert (ids[0], ids[-1]) == (data.TURN, data.END)
            assert (Bytes().decode(ids[1:middle]), Bytes().decode(ids[middle + 1:-1])) == (name, text)


def test_request_ends_where_the_reply_begins():
    messages = [("SCENE", "A wood."), ("JULIET", "O Romeo")]
    ids = data.encode_request(Bytes(), messages, "ROMEO")
    whole = data.encode_request(Bytes(), [*messages, ("ROMEO", "Lady")], "JULIET")
    assert ids[0] == data.BOS and ids[-1] == data.TEXT and whole[:len(ids)] == ids
    assert ids.count(data.END) == 2 and ids.count(data.TURN) == 3


# ---- the tokenizer ----


@pytest.fixture(scope="module")
def folio():
    """The shipped tokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="Debian: python3-sentencepiece; PyPI: sentencepiece")
    return sentencepiece.SentencePieceProcessor(model_file=str(SOURCE_DIR / "deploy/models/folio/tokenizer.model"))


def test_template_is_the_engines(folio):
    """The ids are those which the engine's own test of the template "speaker" expects, for the same messages."""
    source = (SOURCE_DIR / "tests/unit/worker/prompt_golden.inc").read_text()
    plain, play = [list(map(int, re.findall(r"\d+", ids)))
                   for ids in re.findall(r'EXPECT\(\w+, \d+, "\w*",([\d,\s]+)\)', source)][:2]
    assert plain == data.encode_request(folio, [("USER", "Who's there?")], "ASSISTANT")
    messages = [("SCENE", "Elsinore. A platform before the Castle."), ("BERNARDO", "Who's there?"),
                ("FRANCISCO", "Nay, answer me.\nStand and unfold yourself."), ("USER", "")]
    begin = [data.BOS, *itertools.chain(*(data.encode_message(folio, *message) for message in messages))]
    header = data.encode_request(folio, [], "BERNARDO")[1:]
    assert play[:len(begin)] == begin and play[-len(header):] == header


def test_every_text_of_the_corpus_survives_the_tokenizer(folio, scenes):
    import tokenizer

    assert tokenizer.check_tokenizer(folio, scenes) > 60000


def test_tokenizer_is_trained_without_the_held_out_plays(folio, monkeypatch, tmp_path, capsys):
    import tokenizer

    seen, train = set(), tokenizer.train_tokenizer

    def watched(scenes, path):
        seen.update(scene["play"] for scene in scenes)
        train(scenes, path)

    monkeypatch.setattr(tokenizer, "train_tokenizer", watched)
    monkeypatch.setattr(sys, "argv", ["tokenizer.py", "--out", str(tmp_path)])
    tokenizer.main()                                          # with its own checks of the result
    assert len(seen) == 33 and not seen & {*data.DEVELOPMENT_PLAYS, *data.TEST_PLAYS}
    assert str(SOURCE_DIR).encode() not in (tmp_path / "tokenizer.model").read_bytes()
    assert '"train": ' in capsys.readouterr().out
