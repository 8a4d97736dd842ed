"""What a run's best weights lose on held-out scenes, in nats per token, and how far the forward passes are from one another.

    evaluate.py --run RUN --tokenizer T [--part test]            the loss of every arithmetic
    evaluate.py ... --positions                                  by position, on consecutive scenes of 8,192 tokens
    evaluate.py ... --distance                                   framework int8 against the reference kernels

Each scene stands alone: <bos>, its setting, all its turns, cut at the context; every id but <bos> is a target.
The last line is one JSON object.
"""
import argparse
import json
import pathlib

import sentencepiece
import torch

import data
import export
import model
import ops
import train

ARITHMETICS = {
    "float": lambda: ops.FrameworkOps(),
    "int8 weights": lambda: ops.FrameworkOps(weights=True),
    "int8 weights, activations": lambda: ops.FrameworkOps(weights=True, activations=True),
    "int8 weights, activations, KV": lambda: ops.FrameworkOps(weights=True, activations=True, kv=True),
    "kernels": ops.KernelOps,
}
POSITION_BOUNDS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 6144, 8192)


def target_losses(logits, ids):
    """-log p of each next id: logits (n, vocab) of ids (n + 1)."""
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").double()


@torch.no_grad()
def losses_by_position(params, sequences, config, operations):
    """[(first position, targets, mean loss)]"""
    sums, counts = torch.zeros(config["max_position_embeddings"], dtype=torch.float64), torch.zeros(config["max_position_embeddings"])
    for ids in map(torch.from_numpy, sequences):
        found = target_losses(model.logits(params, ids[:-1], config, operations), ids)
        sums[:len(found)] += found
        counts[:len(found)] += 1
    rows = []
    for first, end in zip(POSITION_BOUNDS, POSITION_BOUNDS[1:]):
        count = counts[first:end].sum().item()
        if count:
            rows.append((first, int(count), sums[first:end].sum().item() / count))
    return rows


@torch.no_grad()
def compare(params, sequences, config, reference, other):
    """How far the logits of two forward passes are apart, over all positions.

    A flipped position is one where they prefer different tokens. Rounding excuses it where the reference's first two are close:
    `flip_gap_max`, the widest such pair, should be below `distance_max`.
    """
    found = {"positions": 0, "distance_max": 0.0, "distance_mean": 0.0, "flipped": 0, "flip_gap_max": 0.0}
    for ids in map(torch.from_numpy, sequences):
        a, b = (model.logits(params, ids[:-1], config, operations) for operations in (reference, other))
        distance = (a - b).abs()
        top = a.topk(2, -1).values
        flipped = a.argmax(-1) != b.argmax(-1)
        gaps = (top[:, 0] - top[:, 1])[flipped].tolist()
        found["positions"] += len(a)
        found["distance_max"] = max(found["distance_max"], distance.max().item())
        found["distance_mean"] += distance.mean(-1).double().sum().item()
        found["flipped"] += len(gaps)
        found["flip_gap_max"] = max([found["flip_gap_max"], *gaps])
    found["distance_mean"] /= found["positions"]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--part", choices=("development", "test"), default="test")
    parser.add_argument("--arithmetic", choices=ARITHMETICS, action="append", help="only this one; may be given again")
    parser.add_argument("--scenes", type=int, help="only the first so many")
    parser.add_argument("--length", type=int, help="cut scenes at so many ids; default: the context")
    parser.add_argument("--positions", action="store_true")
    parser.add_argument("--distance", action="store_true")
    args = parser.parse_args()
    train.keep_memory()
    params, config, step, dev_loss = export.load_best(args.run)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer))
    plays = data.encode_plays(tokenizer, data.split(data.load_scenes())[args.part])
    length = min(args.length or config["max_position_embeddings"], config["max_position_embeddings"])
    scenes = data.scene_sequences(plays, length)[:args.scenes]
    result = {"run": args.run.name, "part": args.part, "step": step, "targets": sum(len(s) - 1 for s in scenes)}
    arithmetics = args.arithmetic or list(ARITHMETICS)
    if args.positions:
        for name in arithmetics:
            rows = losses_by_position(params, data.consecutive_sequences(plays, length), config, ARITHMETICS[name]())
            result[name] = rows
            print(name, *(f"{first}+: {loss:.4f}" for first, _, loss in rows), sep="  ", flush=True)
    elif args.distance:
        result["distance"] = compare(params, scenes, config, ARITHMETICS["kernels"](), ARITHMETICS["int8 weights, activations, KV"]())
        print(*(f"{name} {value}" for name, value in result["distance"].items()), sep="\n")
    else:
        for name in arithmetics:
            result[name] = train.evaluate(params, scenes, config, ARITHMETICS[name]())
            print(f"{name:32} {result[name]:.5f}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
