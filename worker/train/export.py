"""Writes the model directory of a run: model.safetensors, config.json, and the tokenizer beside them.

int8: every matrix becomes I8 (out, in), symmetric in [-127, 127] per output channel, beside its F32 `<name>_scale` (out), by the
very function the training forward pass used; norms stay F32. float: everything F32, what `roost-convert` quantises.
"""
import argparse
import json
import os
import pathlib
import shutil

import numpy as np
import torch

import kernels
import model

METADATA = {"int8": {"format": "roost-int8", "activation_scheme": "dynamic"}, "float": {"format": "roost-float"}}
DTYPES = {"I8": np.dtype("int8"), "F32": np.dtype("<f4")}
DATA_ALIGNMENT = 64           # of the first tensor in the file; every tensor's size is a multiple of it


def file_tensors(params, kind):
    """The file's tensors in file order, {name: array}."""
    tensors = {}
    for name, value in params.items():
        if kind == "int8" and model.is_matrix(name):
            q, scale = kernels.quantize_rows(value)
            tensors[name], tensors[name + "_scale"] = q.numpy(), scale.numpy()
        else:
            tensors[name] = value.numpy().astype("<f4")
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


def load_best(run):
    """(parameters, config, step, development loss) of a run's best weights."""
    path = run / "best.pt"
    if not path.exists():
        raise SystemExit(f"{path} is not there: give the folder of a run that has been evaluated once")
    best = torch.load(path, map_location="cpu")
    return best["params"], best["config"], best["step"], best["dev_loss"]


def export(run, out, kind, tokenizer):
    """Writes the directory; returns the bytes of the weights."""
    params, config, _, _ = load_best(run)
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", file_tensors(params, kind), METADATA[kind])
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer.resolve() != (out / "tokenizer.model").resolve():
        shutil.copyfile(tokenizer, out / "tokenizer.model")
    return (out / "model.safetensors").stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of a run")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="tokenizer.model")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="model directory")
    parser.add_argument("--kind", choices=METADATA, default="int8")
    args = parser.parse_args()
    _, _, step, dev_loss = load_best(args.run)
    size = export(args.run, args.out, args.kind, args.tokenizer)
    print(f"{args.out}: step {step}, development loss {dev_loss:.4f}, {size} bytes of weights; "
          "roost model seal writes the known answer")


if __name__ == "__main__":
    main()
