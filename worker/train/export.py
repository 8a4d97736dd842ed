"""Quantises a checkpoint and writes the model directory: model.safetensors and config.json.

Every matrix becomes I8 (out, in), symmetric in [-127, 127] per output channel, beside its F32
`<name>_scale` (out); norms stay F32. tokenizer.model is expected in the directory already.
"""
import argparse
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import sentencepiece

import data
import model
import train

METADATA = {"format": "roost-int8", "activation_scheme": "dynamic"}
DTYPES = {"I8": np.dtype("int8"), "F32": np.dtype("<f4")}
DATA_ALIGNMENT = 64           # of the first tensor in the file; every tensor's size is a multiple of it


def quantise(weight):
    """(int8 (out, in), float32 scale (out)) of a float matrix; an all-zero row gets scale 1."""
    top = np.abs(weight).max(axis=1)
    scale = np.where(top > 0, top / np.float32(127), np.float32(1)).astype(np.float32)
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8), scale


def quantise_params(params):
    """The file's tensors in file order, {name: array}."""
    tensors = {}
    for name, value in params.items():
        value = np.asarray(value, np.float32)
        if model.is_quantised(name):
            tensors[name], tensors[name + "_scale"] = quantise(value)
        else:
            tensors[name] = value
    return tensors


def write_safetensors(path, tensors, metadata):
    """Writes atomically: u64 LE header length, JSON header padded with spaces, then the data."""
    header, at = {"__metadata__": metadata}, 0
    for name, array in tensors.items():
        dtype = next(d for d, t in DTYPES.items() if t == array.dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
        if array.nbytes % DATA_ALIGNMENT:
            raise ValueError(f"{name}: {array.nbytes} bytes would misalign what follows")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % DATA_ALIGNMENT)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
    os.replace(partial, path)


def read_safetensors(path):
    """({name: array}, metadata) of a file written above."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    metadata = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def read_params(path):
    """Float parameters of an exported file: int8 times scale."""
    tensors, _ = read_safetensors(path)
    params = {}
    for name, value in tensors.items():
        if name + "_scale" in tensors:
            value = value.astype(np.float32) * tensors[name + "_scale"][:, None]
        if not name.endswith("_scale"):
            params[name] = jnp.asarray(value)
    return params


def write_golden(path, params, tokenizer, prompt_ids=150):
    """Top logits at the last of about `prompt_ids` ids, float32 and with int8 activations simulated."""
    scene = next(s for s in data.load_scenes() if s["play"] == "As You Like It" and (s["act"], s["scene"]) == (1, 3))
    messages, ids = data.scene_messages(scene), []
    for count in range(2, len(messages)):
        ids = data.encode_request(tokenizer, messages[:count], messages[count][0])
        if len(ids) >= prompt_ids:
            break
    golden = {"messages": messages[:count], "reply_name": messages[count][0], "ids": ids}
    row = np.asarray([ids], np.int32)
    for key, quant in (("float32", False), ("int8_simulated", True)):
        last = np.asarray(model.logits(params, row, np.ones_like(row), model.CONFIG, quant))[0, -1]
        top = np.argsort(-last, kind="stable")[:10]
        golden[key] = {"top_ids": top.tolist(), "top_logits": [float(last[i]) for i in top]}
    path.write_text(json.dumps(golden, indent=1) + "\n")


def development_losses(float_params, exported, tokenizer, length):
    """Nats per target: the float parameters, the exported weights, and those with int8 activations."""
    _, dev = data.split_scenes(data.load_scenes())
    rows = data.development_rows(data.encode_scenes(tokenizer, dev), length)
    evaluate = train.make_evaluate(model.CONFIG, rows, length)
    return {
        "targets": int(rows[2][:, 1:].sum()),
        "float": evaluate(float_params, False),
        "int8_weights": evaluate(exported, False),
        "int8": evaluate(exported, True),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="model directory, with tokenizer.model")
    parser.add_argument("--golden", type=pathlib.Path, help="also write reference logits there (JSON)")
    parser.add_argument("--evaluate", action="store_true", help="also print development losses")
    args = parser.parse_args()

    float_params, step = train.load_params(args.checkpoint)
    tensors = quantise_params(float_params)
    target = args.out / "model.safetensors"
    write_safetensors(target, tensors, METADATA)
    (args.out / "config.json").write_text(json.dumps(model.CONFIG, indent=2) + "\n")
    back, metadata = read_safetensors(target)
    if metadata != METADATA or any(not np.array_equal(back[n], t) for n, t in tensors.items()):
        raise SystemExit(f"{target}: does not read back as written")
    print(f"step {step}: {len(tensors)} tensors, {target.stat().st_size} bytes")

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.out / "tokenizer.model"))
    exported = read_params(target)
    if args.golden:
        write_golden(args.golden, exported, tokenizer)
    if args.evaluate:
        print(json.dumps(development_losses(float_params, exported, tokenizer, length=2048)))


if __name__ == "__main__":
    main()
