"""From a checkpoint to a reply: converted (or made up), described, served. The checkpoints are those of tests/golden/parity: small, with the
tensor names, configuration keys and tokenizer files of Gemma's."""
import json
import re
import struct
import subprocess
import sys

import pytest

from cluster import BIN_DIR, SOURCE_DIR
from test_chat import run
from wire_client import Conversation, Peer

sys.path.insert(0, str(SOURCE_DIR / "tests" / "golden" / "parity"))
import checkpoint                              # noqa: E402
import families                                # noqa: E402

TURNS = ("Who is there?", "Stand, and unfold yourself.", "Long live the king!")
TOKENS = 12


def convert(*arguments):
    done = subprocess.run([BIN_DIR / "roost-convert", *map(str, arguments), "--quiet"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "runtime error:" not in done.stderr


def make_checkpoint(name, directory):
    directory.mkdir()
    families.write_checkpoint(name, 1, directory)
    return directory


def make_flat_gemma4(directory):
    """Gemma4ForCausalLM: text_config on top, tensor names without the wrapper's."""
    config, tensors = families.FAMILIES["gemma4-e2b"](1)
    directory.mkdir()
    flat = {"architectures": ["Gemma4ForCausalLM"], **config["text_config"]}
    (directory / "config.json").write_text(json.dumps(flat))
    checkpoint.write_safetensors(directory / "model.safetensors", {
        name.replace("model.language_model.", "model."): bits for name, bits in tensors.items() if ".language_model." in name})
    checkpoint.write_tokenizer(directory / "tokenizer.model", families.VOCAB, "<|turn>", "<turn|>")
    return directory


def make_random(arguments):
    return lambda directory: ("--random", *arguments)


MODELS = {
    "gemma3": lambda directory: (make_checkpoint("gemma3", directory),),
    "gemma4-wrapped": lambda directory: (make_checkpoint("gemma4-e2b", directory),),
    "gemma4-flat": lambda directory: (make_flat_gemma4(directory),),
    "random-roost-small": make_random(["roost-small", "--vocab", "1024"]),
    "random-gemma3-270m": make_random(["gemma3-270m", "--layers", "7", "--vocab", "1024"]),
    "random-gemma4": lambda directory: ("--random", make_checkpoint("gemma4-e4b", directory) / "config.json"),
}


class Seeded(Conversation):
    """A random model whose head is its embedding repeats the last token: others are drawn, very hot, from the same seed each time."""

    def head(self):
        return {**super().head(), "seed": 7, "seed_given": True}


def talk(peer, tenant):
    """The replies of a few turns, each token with a finite log probability."""
    conversation = Seeded(peer, "models", tenant=tenant, setting="Elsinore. A platform before the castle.", me="BERNARDO", other="FRANCISCO")
    replies = []
    for number, text in enumerate(TURNS):
        reply = conversation.turn(text, tokens_max=TOKENS, tokens_min=TOKENS, temperature=30.0, token_logprobs=True)
        (choice,) = (choice for choice in reply.choices if choice.ids)
        assert len(choice.ids) == len(choice.logprobs) == TOKENS
        assert all(-1000 < value <= 0 for value in choice.logprobs)
        if number > 0:
            assert reply.done.usage.cached_tokens > 0.3 * reply.done.usage.prompt_tokens
        replies.append(choice.ids)
    return replies


@pytest.mark.parametrize("name", MODELS)
def test_served(name, tmp_path, new_cluster):
    model = tmp_path / "model"
    convert(*MODELS[name](tmp_path / "source"), model)
    cluster = new_cluster(workers=1, redis=False, model=model)
    with Peer(cluster.routers[0].ready["control"]) as peer:
        replies = talk(peer, "one")
        assert len({token for reply in replies for token in reply}) > 8, "the model says the same thing again and again"
        assert talk(peer, "two") == replies
    if name == "gemma4-flat":                  # the same model as in the wrapper
        convert(make_checkpoint("gemma4-e2b", tmp_path / "wrapped"), tmp_path / "again")
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


# ---- roost model describe


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("gemma4")
    convert(make_checkpoint("gemma4-e2b", scratch / "source"), scratch / "model")
    return scratch / "model"


def describe(*arguments):
    done = run("model", "describe", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def file_bytes(directory):
    """Of all tensors in model.safetensors."""
    with open(directory / "model.safetensors", "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        tensors = json.loads(file.read(size))
    tensors.pop("__metadata__", None)
    return sum(end - begin for begin, end in (tensor["data_offsets"] for tensor in tensors.values()))


def test_describe_json(gemma4):
    found = json.loads(describe(gemma4, "--json"))
    config, tensors = families.FAMILIES["gemma4-e2b"](1)
    text = config["text_config"]
    shared = text["num_hidden_layers"] - text["num_kv_shared_layers"]
    reused = [f".layers.{i}.self_attn.{part}" for i in range(shared, 15) for part in ("k_", "v_")]
    mine = {name: bits for name, bits in tensors.items() if ".language_model." in name and not any(part in name for part in reused)}
    assert found["family"] == "gemma4" and len(found["weights_digest"]) == 64
    assert found["parameters"] == sum(bits.size for bits in mine.values()) == sum(part["parameters"] for part in found["parts"].values())
    assert found["bytes"] == file_bytes(gemma4) == sum(part["bytes"] for part in found["parts"].values())
    assert found["bytes"] == sum(scheme["bytes"] for scheme in found["schemes"].values())
    assert found["schemes"]["wide"]["tensors"] == 1 + 2 * 15 and found["schemes"]["static"]["tensors"] == 0
    assert [layer["type"] for layer in found["layers"]] == [kind.replace("sliding_attention", "local").replace("full_attention", "global")
                                                            for kind in text["layer_types"]]
    assert [layer["kv_producer"] for layer in found["layers"]] == [*range(10), 8, 8, 8, 8, 9]
    assert [layer["intermediate_size"] for layer in found["layers"]] == 10 * [families.INTERMEDIATE] + 5 * [2 * families.INTERMEDIATE]
    assert found["kv_bytes_per_token"] == 2 * (8 * (256 + 4) + 2 * (512 + 4))
    assert found["kv_bytes_per_token_beyond_windows"] == 2 * 2 * (512 + 4)
    assert [row["tokens"] for row in found["kv"]] == [1024, 2048, 4096, 5740, 8192, 16384, 32768]
    for row in found["kv"]:
        window, tokens = text["sliding_window"], row["tokens"]
        assert row["elements"] == 2 * (8 * 256 * window + 2 * 512 * tokens)
        assert row["bytes"] == 2 * (8 * (256 + 4) * window + 2 * (512 + 4) * tokens)
        assert row["plain_bytes"] == 2 * 2 * 8 * (12 * 256 + 3 * 512) * tokens
        assert row["factor_heads"] == 8
        assert row["factor_heads"] * row["factor_horizon"] * row["factor_sharing"] == pytest.approx(row["factor_elements"], rel=1e-4)
        assert row["plain_bytes"] / row["bytes"] == pytest.approx(row["factor_bytes"], rel=1e-4)
        assert (row["kept_bytes"] or 0) > row["bytes"] if tokens <= text["max_position_embeddings"] else row["kept_bytes"] is None


def test_describe_text(gemma4):
    """The tables say what the JSON says."""
    found, text = json.loads(describe(gemma4, "--json")), describe(gemma4)
    assert re.search(r"^hidden +128, gated MLP of 256 to 512$", text, re.M)
    assert re.search(r"^global +3 layers, 2 keep KV; 4 heads of 512, 1 for KV \(MQA\)$", text, re.M)
    assert re.search(r"^local +12 layers, 8 keep KV; 4 heads of 256, 1 for KV \(MQA\); window 24$", text, re.M)
    assert re.search(r"^order +LLLLGLLLLGllllg ", text, re.M) and re.search(r"^readers +10<-8 11<-8 12<-8 13<-8 14<-9$", text, re.M)
    assert re.search(rf"^weights digest +{found['weights_digest']}$", text, re.M)
    for name, part in [*found["parts"].items(), ("all", found)]:
        assert re.search(rf"^{name} +{part['parameters']} +{part['bytes']}$", text, re.M), name
    for name, scheme in found["schemes"].items():
        line = rf"^{name} +{scheme['tensors']} +{scheme['bytes']}$"
        assert bool(re.search(line, text, re.M)) == (scheme["tensors"] > 0), name
    for row in found["kv"]:
        assert re.search(rf"^ +{row['tokens']} +{row['elements']} +{row['bytes']} +{row['kept_bytes'] or '-'} +{row['factor_heads']:.2f}x "
                         rf"+{row['factor_horizon']:.2f}x +{row['factor_sharing']:.2f}x +{row['factor_int8']:.2f}x "
                         rf"+{row['factor_elements']:.1f}x +{row['factor_bytes']:.1f}x ", text, re.M), row


def test_describe_configuration_alone(gemma4, tmp_path):
    (tmp_path / "config.json").write_bytes((gemma4 / "config.json").read_bytes())
    whole, alone = json.loads(describe(gemma4, "--json")), json.loads(describe(tmp_path, "--config-only", "--json"))
    assert "weights_digest" not in alone and "weights digest" not in describe(tmp_path, "--config-only")
    assert {key: alone[key] for key in ("parameters", "bytes", "parts", "layers", "kv")} == \
        {key: whole[key] for key in ("parameters", "bytes", "parts", "layers", "kv")}
    done = run("model", "describe", tmp_path)
    assert done.returncode == 1 and "model.safetensors" in done.stderr
