"""`roost model eval`: its figures against sums done here from the logits, and what it says to wrong use."""
import json
import shutil

import numpy as np
import pytest

import tools
import families

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.\n" * 3
WINDOW = 64


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(int8 directory, float directory) of one random model, with a tokenizer of letters and bytes."""
    scratch = tmp_path_factory.mktemp("eval")
    (scratch / "hf").mkdir()
    families.write_checkpoint("gqa", 1, scratch / "hf")
    return tools.convert(scratch / "hf", scratch / "int8"), tools.convert(scratch / "hf", scratch / "float", "--format", "float")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text(TEXT)
    return path


def evaluate(*arguments):
    _, out, _ = tools.run("bin/roost", "model", "eval", *arguments, "--json")
    return json.loads(out)


def text_ids():
    """This text's ids by the tokenizer that checkpoint.py writes, a merge at a time."""
    pieces = {text: families.checkpoint.TEXT_ID + i
              for i, text in enumerate(families.checkpoint.text_pieces(families.VOCAB - families.checkpoint.TEXT_ID))}
    words, none = list(TEXT.replace(" ", "\u2581")), (families.VOCAB, 0)
    while True:
        piece, at = min(((pieces.get(a + b, families.VOCAB), i) for i, (a, b) in enumerate(zip(words, words[1:]))), default=none)
        if piece == families.VOCAB:
            break
        words[at:at + 2] = [words[at] + words[at + 1]]
    return [pieces[word] if word in pieces else 6 + ord(word) for word in words]


def windows():
    ids = text_ids()
    return [[2] + ids[at:at + WINDOW - 1] for at in range(0, len(ids), WINDOW - 1)]


def losses(directory, scratch):
    """(nats of each predicted id, log probabilities of each position)"""
    nats, rows = [], []
    for window in windows():
        logits, _ = tools.forward(directory, window, scratch)
        log_p = tools.log_softmax(logits)[:-1]
        rows.append(log_p)
        nats += [-row[token] for row, token in zip(log_p, window[1:])]
    return np.array(nats), np.concatenate(rows)


def test_figures_are_the_logits(models, text, tmp_path):
    int8, float_dir = models
    found = evaluate(int8, "--against", float_dir, "--text", text, "--window", WINDOW)
    nats, q = losses(int8, tmp_path)
    reference_nats, p = losses(float_dir, tmp_path)
    assert (found["format"], found["against_format"]) == ("roost-int8", "roost-float")
    assert found["windows"] == len(windows()) and found["score"]["tokens"] == len(nats)
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    expected = {"loss": nats.mean(), "perplexity": np.exp(nats.mean()), "kl": kl.mean(), "kl_max": kl.max(),
                "agreement": (p.argmax(1) == q.argmax(1)).mean()}
    for key, value in expected.items():
        assert found["score"][key] == pytest.approx(value, rel=1e-6), key
    assert found["against_score"]["loss"] == pytest.approx(reference_nats.mean(), rel=1e-6)
    assert found["score"]["kl"] > 0


def test_alone_and_with_a_limit(models, text):
    whole = evaluate(models[0], "--text", text, "--window", WINDOW)
    part = evaluate(models[0], "--text", text, "--window", WINDOW, "--tokens", WINDOW - 1, "--threads", 1)
    assert "against" not in whole and "kl" not in whole["score"]
    assert part["windows"] == 1 and part["score"]["tokens"] == WINDOW - 1 < whole["score"]["tokens"]


def test_per_tensor(models, text):
    int8, float_dir = models
    found = evaluate(int8, "--against", float_dir, "--text", text, "--window", 32, "--tokens", 40, "--per-tensor")
    plain = evaluate(int8, "--against", float_dir, "--text", text, "--window", 32, "--tokens", 40)
    assert found["windows"] == 2
    assert (found["score"], found["against_score"]) == (plain["score"], plain["against_score"])
    tensors = {entry["name"]: entry for entry in found["tensors"]}
    assert len(tensors) == len(found["tensors"]) == 2 + 1 + 7 * 7
    assert tensors["model.layers.6.self_attn.k_proj.weight"]["scheme"] == "rotated"
    kls = [entry["score"]["kl"] for entry in found["tensors"]]
    assert kls == sorted(kls, reverse=True) and kls[-1] > 0
    one = tensors["model.layers.0.self_attn.v_proj.weight"]["score"]
    assert one["kl"] < tensors["every matrix"]["score"]["kl"]
    assert one["tokens"] == 40 and tensors["q, k and v"]["score"]["kl"] > 0


def test_table_for_people(models, text):
    _, out, _ = tools.run("bin/roost", "model", "eval", models[0], "--against", models[1], "--text", text, "--tokens", 20, "--per-tensor")
    for words in ("perplexity", "against", "KL", "same first token", "every matrix", "model.layers.6.mlp.down_proj.weight"):
        assert words in out


def other_vocabulary(int8, scratch):
    shutil.copytree(tools.MODEL_DIR, scratch)
    return scratch


def other_tokenizer(int8, scratch):
    shutil.copytree(int8, scratch)
    families.checkpoint.write_tokenizer(scratch / "tokenizer.model", families.VOCAB, "<turn>", "</turn>")
    return scratch


@pytest.mark.parametrize("make, words", [(other_vocabulary, "384 tokens"), (other_tokenizer, "different tokenizers")])
def test_models_that_cannot_be_compared(models, text, tmp_path, make, words):
    other = make(models[0], tmp_path / "other")
    code, out, err = tools.run("bin/roost", "model", "eval", models[0], "--against", other, "--text", text, check=False)
    assert code == 1 and words in err and not out


def test_bad_input(models, text, tmp_path):
    int8, float_dir = models
    empty, latin = tmp_path / "empty", tmp_path / "latin"
    empty.write_bytes(b"")
    latin.write_bytes("caf\u00e9".encode("latin-1"))
    for code, words, arguments in (
        (2, "directory", ["--text", text]),
        (2, "--text", [int8]),
        (2, "--text", [int8, "--text", text, "--conversations", text]),
        (2, "--against", [int8, "--text", text, "--per-tensor"]),
        (2, "two directories", [int8, float_dir, "--text", text]),
        (2, "no option", [int8, "--text", text, "--per-layer", "1"]),
        (2, "needs a value", [int8, "--text"]),
        (2, "--tokens", [int8, "--text", text, "--tokens", "many"]),
        (2, "--threads", [int8, "--text", text, "--threads", "0"]),
        (2, "--window", [int8, "--text", text, "--window", "0"]),
        (1, "2 to 1024", [int8, "--text", text, "--window", "1"]),
        (1, "2 to 1024", [int8, "--text", text, "--window", "1025"]),
        (1, "no text", [int8, "--text", empty]),
        (1, "UTF-8", [int8, "--text", latin]),
        (1, "line 1", [int8, "--conversations", text]),
        (1, "config.json", [tmp_path / "nothing", "--text", text]),
        (1, "int8 directory", [float_dir, "--against", float_dir, "--text", text, "--per-tensor"]),
        (1, "--format float", [int8, "--against", int8, "--text", text, "--per-tensor"]),
    ):
        got, out, err = tools.run("bin/roost", "model", "eval", *arguments, check=False)
        assert (got, out) == (code, ""), (arguments, err)
        assert words in err, (arguments, err)
