"""Outliers injected into the trained model by rescaling that keeps its function: a few norm channels times 100, the columns that read them
over 100. Naive int8 must fail, the default recipe must stay within 1% of the loss without them. A second model has them inside the MLP,
where no norm is that could take them back: rows of up_proj times 100, columns of down_proj over 100."""
import json
import struct
import sys

import numpy as np
import pytest

import tools

sys.path.insert(0, str(tools.SOURCE_DIR / "worker" / "train"))
import data                                               # noqa: E402  (which plays are held out)

TOKENS = 300 if tools.SANITIZED else 3000
KEPT_TOKENS = 10 if tools.SANITIZED else 100
FACTOR = np.float32(100)
LAYERS = range(tools.MODEL_CONFIG["num_hidden_layers"])   # all: local and global ones, with K and V and without
CHANNELS = 4                                              # of a norm's, or of the MLP's
NORMS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
GEMMA_TENSORS = [{"match": "model.embed_tokens.weight", "scheme": "wide"}, {"match": "*.mlp.down_proj.weight", "scheme": "wide"}]
GEMMA = "the same, smoothed"                              # roost-convert's default for Gemma
RECIPES = {                                               # None: the default
    "naive dynamic": {"default": "dynamic", "smooth": False, "tensors": []},
    "dynamic, smoothed": {"default": "dynamic", "smooth": True, "tensors": []},
    "rotated": {"default": "rotated", "smooth": False, "tensors": GEMMA_TENSORS[:1]},
    "wide": {"default": "wide", "smooth": False, "tensors": []},
    "rotated and wide as for Gemma": {"default": "rotated", "smooth": False, "tensors": GEMMA_TENSORS},
    GEMMA: {"default": "rotated", "smooth": True, "tensors": GEMMA_TENSORS},
    "default recipe": None,
}
if tools.SANITIZED:
    RECIPES = {name: RECIPES[name] for name in ("naive dynamic", GEMMA, "default recipe")}


class FloatFile:
    """model.safetensors of a float directory, changed in place. All tensors that are touched are F32."""

    def __init__(self, path):
        self.path, self.bytes = path, bytearray(path.read_bytes())
        (size,) = struct.unpack_from("<Q", self.bytes)
        self.header, self.base = json.loads(self.bytes[8:8 + size]), 8 + size

    def tensor(self, name):
        """A view; None where the model has no such tensor."""
        if name not in self.header:
            return None
        entry = self.header[name]
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        return np.frombuffer(self.bytes, "<f4", (end - begin) // 4, self.base + begin).reshape(entry["shape"])

    def write(self):
        self.path.write_bytes(self.bytes)


def loud_channels(file):
    """Those of the residual that the embedding and all layers write most into: where trained models have their outliers."""
    power = (file.tensor("model.embed_tokens.weight") ** 2).mean(axis=0)
    for layer in LAYERS:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            power = power + (file.tensor(f"model.layers.{layer}.{name}.weight") ** 2).sum(axis=1)
    return np.argsort(-power)[:CHANNELS]


def inject_norms(file):
    """How many channels were scaled."""
    count, channels = 0, loud_channels(file)
    for layer in LAYERS:
        for norm, consumers in NORMS.items():
            at = f"model.layers.{layer}."
            file.tensor(f"{at}{norm}.weight")[channels] *= FACTOR
            matrices = [file.tensor(f"{at}{name}.weight") for name in consumers]
            assert sum(matrix is not None for matrix in matrices) > 0
            for matrix in matrices:
                if matrix is not None:
                    matrix[:, channels] /= FACTOR
            count += len(channels)
    return count


def inject_mlp(file):
    count = 0
    for layer in LAYERS:
        up, down = (file.tensor(f"model.layers.{layer}.mlp.{name}_proj.weight") for name in ("up", "down"))
        channels = np.argsort(-(up ** 2).sum(axis=1) * (down ** 2).sum(axis=0))[:CHANNELS]
        up[channels] *= FACTOR
        down[:, channels] /= FACTOR
        count += len(channels)
    return count


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory):
    """The scenes that the shipped model was not trained on, as `roost model eval` reads them."""
    path = tmp_path_factory.mktemp("text") / "dialogue.jsonl"
    parts = data.split(data.load_scenes())
    with open(path, "w", encoding="utf-8") as out:
        for scene in parts["development"] + parts["test"]:
            messages = [{"role": "user", "name": name, "text": text} for name, text in data.scene_messages(scene)]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Float directories: without outliers, behind norms, inside the MLP."""
    scratch = tmp_path_factory.mktemp("models")
    found = {"without": tools.convert(tools.MODEL_DIR, scratch / "plain", "--format", "float")}
    for name, inject in (("norms", inject_norms), ("MLP", inject_mlp)):
        found[name] = tools.convert(tools.MODEL_DIR, scratch / name, "--format", "float")
        file = FloatFile(found[name] / "model.safetensors")
        print(f"\n{name}: {inject(file)} channels times {FACTOR:.0f}")
        file.write()
    return found


def evaluate(directory, dialogue, tokens, *options):
    _, out, _ = tools.run("bin/roost", "model", "eval", directory, "--conversations", dialogue, "--tokens", tokens, "--json", *options)
    return json.loads(out)["score"]


@pytest.mark.parametrize("kind", ["norms", "MLP"])
def test_function_is_kept(models, dialogue, kind):
    found = evaluate(models[kind], dialogue, KEPT_TOKENS, "--against", models["without"])
    assert found["kl"] < 1e-9 and found["agreement"] == 1.0 and 0 < found["distance_max"] < 1e-3


def test_naive_fails_and_the_default_holds(models, dialogue, tmp_path):
    shipped, rows = evaluate(tools.MODEL_DIR, dialogue, TOKENS)["loss"], {}
    for number, (name, recipe) in enumerate(RECIPES.items()):
        options = []
        if recipe is not None:
            path = tmp_path / f"recipe-{number}.json"
            path.write_text(json.dumps(recipe))
            options = ["--recipe", path]
        rows[name] = {kind: evaluate(tools.convert(source, tmp_path / f"int8-{number}-{kind}", *options), dialogue, TOKENS)["loss"]
                      for kind, source in models.items()}
    print(f"\nloss over {TOKENS} tokens of held-out dialogue: {shipped:.4f} nats as shipped; with outliers, and the change\n"
          f"  {'int8 recipe':32} {'without':>9} {'behind norms':>18} {'inside the MLP':>18}")
    for name, row in rows.items():
        changes = [f"{row[kind]:9.4f} {100 * (row[kind] / shipped - 1):+7.2f}%" for kind in ("norms", "MLP")]
        print(f"  {name:32} {row['without']:9.4f} {changes[0]:>18} {changes[1]:>18}")
    change = {name: {kind: loss / shipped - 1 for kind, loss in row.items()} for name, row in rows.items()}
    assert change["naive dynamic"]["norms"] > 0.03 and change["naive dynamic"]["MLP"] > 0.003, "they do no harm: the test tests nothing"
    assert abs(change["default recipe"]["norms"]) < 0.01
    assert all(abs(value) < 0.01 for value in change[GEMMA].values())
    assert all(abs(row["without"]) < 0.01 for row in change.values())
