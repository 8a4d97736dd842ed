"""Models of every shape, small enough for a test, with fresh weights. Also finds worker/train and tests/parity."""
import os
import pathlib
import sys

import torch

SOURCE_DIR = pathlib.Path(os.environ.get("ROOST_SOURCE_DIR") or pathlib.Path(__file__).resolve().parents[2])
sys.dont_write_bytecode = True
sys.path[:0] = [str(SOURCE_DIR / "worker" / "train"), str(SOURCE_DIR / "tests" / "parity")]
import model                                              # noqa: E402

HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}                    # KV heads of four
LAYERS = {"full": 1, "hybrid": 3}                         # one global layer in so many
SHAPES = [(heads, layers, sharing) for heads in HEADS for layers in LAYERS for sharing in model.SHARINGS
          if (layers, sharing) != ("full", "neighbours")]         # neighbours are local layers


def make(heads="MQA", layers="hybrid", sharing="all", seed=1, **changes):
    """(config, parameters); norm weights are not ones, so that none can stand for another."""
    shape = {"hidden": 48, "inner": 80, "layers": 6, "heads": 4, "kv_heads": HEADS[heads], "head_dim": 16, "window": 24,
             "global_every": LAYERS[layers], "sharing": sharing, "context": 2048, "vocab": 304, "name": "small"}
    config = model.make_config(**{**shape, **changes})
    params, generator = model.init_params(config, seed), torch.Generator().manual_seed(seed)
    for name, value in params.items():
        if not model.is_matrix(name):
            value += 0.3 * torch.randn(value.shape, generator=generator)
    return config, params


def random_ids(config, *shape, seed=1):
    return torch.randint(config["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))
