"""Lets the exported model continue a scene, with the engine's int8 arithmetic simulated.

Slow and simple: the whole prompt is recomputed for every token.
"""
import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

import data
import export
import model

SCENES = (
    ("Romeo and Juliet", 2, 2, 3, "JULIET"),
    ("The Tragedy of Hamlet, Prince of Denmark", 3, 1, 6, "HAMLET"),
    ("As You Like It", 1, 3, 4, "CELIA"),
)


def sample_reply(last_logits, ids, limit, temperature, rng):
    """Appends up to `limit` sampled ids to `ids` and returns those before END."""
    reply = []
    for _ in range(limit):
        scores = last_logits(ids + reply).astype(np.float64) / temperature
        scores[[0, data.BOS, data.TURN, data.TEXT]] = -np.inf
        chances = np.exp(scores - scores.max())
        choice = int(rng.choice(len(chances), p=chances / chances.sum()))
        if choice == data.END:
            break
        reply.append(choice)
    return reply


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="model directory")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=80, help="most per reply")
    parser.add_argument("--replies", type=int, default=2, help="per scene")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    config = json.loads((args.model / "config.json").read_text())
    params = export.read_params(args.model / "model.safetensors")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.model / "tokenizer.model"))

    @jax.jit
    def at_position(row, position):
        h = model.hidden_states(params, row, jnp.ones_like(row), config, quant_activations=True)
        return h[0, position] @ params[model.EMBED].T

    def last_logits(ids):
        row = np.zeros((1, -(-len(ids) // 256) * 256), np.int32)
        row[0, :len(ids)] = ids
        return np.array(at_position(row, len(ids) - 1))

    rng = np.random.default_rng(args.seed)
    scenes = data.load_scenes()
    for play, act, number, turns, name in SCENES:
        scene = next(s for s in scenes if (s["play"], s["act"], s["scene"]) == (play, act, number))
        messages = data.scene_messages(scene)[:turns + 1]
        ids = data.encode_request(tokenizer, messages, name)
        print(f"=== {play}, {act}.{number}, {len(ids)} ids; last: {messages[-1][0]}: {messages[-1][1][-200:]}")
        for _ in range(args.replies):
            reply = sample_reply(last_logits, ids, args.tokens, args.temperature, rng)
            print(f"--- {name}: {tokenizer.decode(reply)}")


if __name__ == "__main__":
    main()
