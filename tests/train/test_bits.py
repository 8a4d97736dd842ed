"""No mismatch: the forward pass that trains gives the bits that the engine serves, at every position.

    test_bits.py --all [--model DIR]      every position of every test scene; exit code 1 if one differs

The engine is tests/parity-forward on a model directory, in chunks as it likes; the trainer runs whole sequences at once.
"""
import argparse
import json
import pathlib
import struct
import sys
import tempfile

import numpy as np
import pytest
import torch

import small_model
import data
import evaluate
import export
import kernels
import model
import ops
import tools
import train

SAMPLE_SCENES, SAMPLE_IDS, LONG_IDS = (2, 100, 300) if tools.SANITIZED else (5, 300, 2500)
SHAPES = small_model.SHAPES[::4] if tools.SANITIZED else small_model.SHAPES


def read_model(directory):
    """(config, parameters) of an int8 model directory: floats on the grid of the file's integers.

    Fails unless making them int8 gives the file's integers and scales again, as the forward pass does.
    """
    config, content = json.loads((directory / "config.json").read_text()), (directory / "model.safetensors").read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + size])

    def tensor(name):
        first, end = header[name]["data_offsets"]
        dtype = export.DTYPES[header[name]["dtype"]]
        values = np.frombuffer(content, dtype, (end - first) // dtype.itemsize, 8 + size + first)
        return torch.from_numpy(values.reshape(header[name]["shape"]).copy())

    params = {}
    for name in model.parameter_shapes(config):
        params[name] = tensor(name)
        if model.is_matrix(name):
            q, scale = params[name], tensor(name + "_scale")
            params[name] = kernels.dequantize_rows(q, scale)
            again_q, again_scale = kernels.quantize_rows(params[name])
            if not (torch.equal(again_q, q) and torch.equal(again_scale, scale)):
                raise ValueError(f"{directory}: {name} is not what dynamic rows make of it: the trainer did not write it")
    return config, params


def engine_logits(directory, ids):
    with tempfile.TemporaryDirectory() as scratch:
        return tools.forward(directory, ids, pathlib.Path(scratch))[0]


@torch.no_grad()
def differing(directory, params, config, ids):
    """The positions where the trainer's logits of ids have other bits than the engine's."""
    trained = model.logits(params, torch.as_tensor(ids), config, ops.KernelOps()).numpy()
    served = engine_logits(directory, ids)
    assert trained.shape == served.shape == (len(ids), config["vocab_size"])
    return np.flatnonzero((trained.view(np.uint32) != served.view(np.uint32)).any(-1))


def held_out_scenes(directory):
    """(the ids of every test scene, cut at the model's context; how many are longer)"""
    import sentencepiece

    config = json.loads((directory / "config.json").read_text())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    whole = data.scene_sequences(data.encode_plays(tokenizer, data.split(data.load_scenes())["test"]), None)
    context = config["max_position_embeddings"]
    return [scene[:context] for scene in whole], sum(len(scene) > context for scene in whole)


# ---- the shipped model ----


@pytest.fixture(scope="module")
def shipped():
    return read_model(tools.MODEL_DIR)


@pytest.fixture(scope="module")
def scenes():
    return held_out_scenes(tools.MODEL_DIR)[0]


def test_shipped_model_on_test_scenes(shipped, scenes):
    config, params = shipped
    longest = max(range(len(scenes)), key=lambda i: len(scenes[i]))
    sample = [scene[:SAMPLE_IDS] for scene in scenes[::len(scenes) // SAMPLE_SCENES]] + [scenes[longest][:LONG_IDS]]
    positions = 0
    for ids in sample:
        wrong = differing(tools.MODEL_DIR, params, config, ids)
        assert not len(wrong), f"{len(wrong)} of {len(ids)} positions differ, first {wrong[0]}"
        positions += len(ids)
    print(f"\n{tools.MODEL_CONFIG['name']}: {positions} positions of {len(sample)} test scenes have the engine's bits")


def test_framework_forward_is_close(shipped, scenes):
    """It prefers another token only where the first two are closer than the logits are apart."""
    config, params = shipped
    sequences = [scene[:SAMPLE_IDS] for scene in scenes[1::len(scenes) // SAMPLE_SCENES]]
    found = evaluate.compare(params, sequences, config, ops.KernelOps(), ops.FrameworkOps(weights=True, activations=True, kv=True))
    print("\n" + "\n".join(f"{name} {value}" for name, value in found.items()))
    assert found["positions"] == sum(len(ids) - 1 for ids in sequences)
    assert 0 < found["distance_mean"] < 0.1 and found["flipped"] < 0.1 * found["positions"]
    assert found["flip_gap_max"] < found["distance_max"]


# ---- fresh models of every shape ----


def write_model(directory, config, params):
    """As export.py does, but for the tokenizer."""
    directory.mkdir()
    export.write_safetensors(directory / "model.safetensors", export.file_tensors(params, "int8"), export.METADATA["int8"])
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def check_bits(tmp_path, config, params, length):
    directory = write_model(tmp_path / "model", config, params)
    wrong = differing(directory, params, config, small_model.random_ids(config, length).numpy())
    assert not len(wrong), f"{len(wrong)} of {length} positions differ, first {wrong[0]}"


@pytest.mark.parametrize("heads, layers, sharing", SHAPES)
def test_fresh_models(heads, layers, sharing, tmp_path):
    check_bits(tmp_path, *small_model.make(heads, layers, sharing), 150)


def test_fresh_model_over_a_unit(tmp_path):
    check_bits(tmp_path, *small_model.make(window=130), 1100)


@pytest.mark.parametrize("widths", [{"head_dim": 64, "hidden": 64}, {"head_dim": 128, "hidden": 32, "inner": 192}], ids=str)
def test_fresh_model_of_other_widths(widths, tmp_path):
    check_bits(tmp_path, *small_model.make(**widths), 100)


def test_one_weight_is_noticed(tmp_path):
    """The comparison itself: one integer of one matrix, moved by one."""
    config, params = small_model.make()
    directory = write_model(tmp_path / "model", config, params)
    name = "model.layers.4.mlp.up_proj.weight"
    q, scale = kernels.quantize_rows(params[name])
    q[3, 5] += 1 if q[3, 5] < 100 else -1
    params[name] = kernels.dequantize_rows(q, scale)
    assert len(differing(directory, params, config, small_model.random_ids(config, 50).numpy())) > 0


def test_written_model_is_read_as_it_was(tmp_path):
    config, params = small_model.make()
    read_config, read = read_model(write_model(tmp_path / "model", config, params))
    assert read_config == config and list(read) == list(params)
    again = export.file_tensors(read, "int8")
    for name, values in export.file_tensors(params, "int8").items():
        assert np.array_equal(again[name], values) and again[name].dtype == values.dtype, name


# ---- training and evaluation are one forward pass ----


def test_rows_of_a_batch_do_not_touch_each_other():
    config, params = small_model.make()
    ids = small_model.random_ids(config, 3, 90)
    with torch.no_grad():
        batch = model.hidden_states(params, ids, config, ops.KernelOps()).view(3, 90, -1)
        for row, alone in zip(batch, ids):
            assert torch.equal(row, model.hidden_states(params, alone[None], config, ops.KernelOps()))


@pytest.mark.parametrize("operations", [ops.KernelOps(), ops.FrameworkOps(weights=True, activations=True, kv=True)], ids=lambda o: o.name)
def test_loss_is_that_of_the_logits(operations):
    """With gradients and without; and evaluate's mean is the mean of the engine's own negative log likelihoods."""
    config, params = small_model.make()
    ids = small_model.random_ids(config, 2, 90)
    learn = small_model.random_ids(config, 2, 90, seed=2) % 3 > 0
    with torch.no_grad():
        found, count = model.loss(params, ids, learn, config, operations)
        wanted = sum(evaluate.target_losses(model.logits(params, row[:-1], config, operations), row)[chosen[1:]].sum()
                     for row, chosen in zip(ids, learn))
    assert count == learn[:, 1:].sum() and found.item() == pytest.approx(wanted.item(), rel=1e-6)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    training, _ = model.loss(leaves, ids, learn, config, operations)
    assert training.item() == found.item()
    everything = sum(evaluate.target_losses(model.logits(params, row[:-1], config, operations), row).sum() for row in ids)
    assert train.evaluate(params, list(ids.numpy()), config, operations) == pytest.approx(everything.item() / (2 * 89), rel=1e-6)


def test_dropout_is_only_in_training():
    config, params = small_model.make()
    ids, learn = small_model.random_ids(config, 1, 60), torch.ones(1, 60, dtype=torch.bool)
    still, other = (model.loss(params, ids, learn, config, ops.KernelOps(), rate)[0].item() for rate in (0.0, 0.3))
    assert still == model.loss(params, ids, learn, config, ops.KernelOps())[0].item() != other


# ---- as a program ----


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", required=True, help="every position of every test scene")
    parser.add_argument("--model", type=pathlib.Path, default=tools.MODEL_DIR, help="model directory")
    args = parser.parse_args()
    config, params = read_model(args.model)
    scenes, cut = held_out_scenes(args.model)
    positions = different = 0
    for number, ids in enumerate(scenes, 1):
        wrong = differing(args.model, params, config, ids)
        positions, different = positions + len(ids), different + len(wrong)
        print(f"scene {number} of {len(scenes)}: {len(ids)} positions, {len(wrong)} differ", flush=True)
    print(f"{config['name']}: {len(scenes)} test scenes ({cut} of them cut at the context), {positions} positions, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
