"""Makes NAME.json and NAME.logits for the parity test, with the `transformers` library. How to run it: README.md."""
import argparse
import json
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

import families

HERE = pathlib.Path(__file__).parent
PROMPT_TOKENS = 200
GREEDY_TOKENS = 64
CACHED_MAX = 1e-4              # between the library's own two ways, with a cache and without: a model that magnifies rounding tests nothing
GAP_MIN = 1e-2                 # ten times the distance that the test allows
SPREAD = (2.0, 4.0)            # standard deviation of the scores that a row sees, mean over rows and heads, of every layer
DISTINCT_MIN = 20              # different ids in the greedy reply, so that it is no loop


def load(directory):
    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager",
                                                         output_loading_info=True)
    text = [key for key in report["missing_keys"] if "vision" not in key and "audio" not in key and "lm_head" not in key]
    if text or report["mismatched_keys"]:
        raise SystemExit(f"{directory}: transformers misses {text}, mismatches {report['mismatched_keys']}")
    return model.eval()


@torch.no_grad()
def greedy(model, prompt):
    """One token at a time with the library's cache: (ids, logits of the last prompt position and of each reply token)."""
    cache, row, ids, rows = None, list(prompt), [], []
    for _ in range(GREEDY_TOKENS):
        out = model(input_ids=torch.tensor([row]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        rows.append(out.logits[0, -1])
        row = [int(rows[-1].argmax())]
        ids += row
    return ids, torch.stack(rows)


@torch.no_grad()
def whole(model, ids, attentions=False):
    """All logits in one pass without a cache, and the spread of the scores of each layer."""
    out = model(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=attentions)
    spreads = []
    for layer in out.attentions or ():
        rows = torch.log(layer[0, :, 16:])
        rows = torch.where(torch.isfinite(rows), rows, torch.nan)
        count = (~rows.isnan()).sum(-1)
        mean = rows.nanmean(-1, keepdim=True)
        spreads.append(float((((rows - mean) ** 2).nansum(-1) / count).sqrt().mean()))
    return out.logits[0], spreads


def watch_inputs(model, absmax):
    """Fills absmax with the largest input of each linear layer, by the names of roost's tensors."""
    def hook(name):
        def note(module, inputs):
            absmax[name] = max(absmax.get(name, 0.0), float(inputs[0].abs().max()))
        return note
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "tower" not in name and "embed_" not in name and "projector" not in name:
            name = name.replace("language_model.", "")
            module.register_forward_pre_hook(hook("model.embed_tokens.weight" if name == "lm_head" else f"{name}.weight"))


def attempt(name, seed):
    """(the golden entry, logits) of one seed, or why it is not used."""
    prompt = families.prompt_ids(name, seed, PROMPT_TOKENS)
    with tempfile.TemporaryDirectory() as directory:
        families.write_checkpoint(name, seed, directory)
        model = load(directory)
    ids, stepwise = greedy(model, prompt)
    absmax = {}
    watch_inputs(model, absmax)
    logits, spreads = whole(model, prompt + ids[:-1], attentions=True)
    reply = logits[PROMPT_TOKENS - 1:]
    top = reply.topk(2, dim=-1).values
    gap, distance = float((top[:, 0] - top[:, 1]).min()), float((reply - stepwise).abs().max())
    if min(spreads) < SPREAD[0] or max(spreads) > SPREAD[1]:
        raise SystemExit(f"{name}: scores spread by {min(spreads):.2f} to {max(spreads):.2f}: change the query and key norms")
    words = f"gap {gap:.4f}, {len(set(ids))} different ids, cache {distance:.1e}"
    if reply.argmax(-1).tolist() != ids or gap <= GAP_MIN or distance > CACHED_MAX or len(set(ids)) < DISTINCT_MIN:
        return None, words
    positions = [0, 1, 23, 24, 63, 64, 100, 128, 150, 175, 198, 199] + list(range(200, 263, 8))
    entry = {
        "seed": seed, "prompt": prompt, "greedy": ids, "positions": positions, "vocab_size": logits.shape[1],
        "top2_gap_min": round(gap, 5), "cached_distance_max": float(f"{distance:.2e}"), "logit_std": round(float(reply.std()), 3),
        "score_spread": [round(value, 2) for value in spreads],
        "input_absmax": {key: round(value, 4) for key, value in absmax.items()},
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__,
                     "python": sys.version.split()[0]},
    }
    return (entry, logits[positions].numpy().astype("<f4")), words


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(families.FAMILIES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=60, help="how many to try (default 60)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in args.names:
        for seed in range(1, args.seeds + 1):
            found, words = attempt(name, seed)
            print(f"{name}, seed {seed}: {words}", flush=True)
            if found:
                break
        else:
            raise SystemExit(f"{name}: no seed serves")
        entry, logits = found
        (HERE / f"{name}.json").write_text(json.dumps(entry).replace('], "', '],\n "').replace(', "v', ',\n "v') + "\n")
        (HERE / f"{name}.logits").write_bytes(logits.tobytes())
        print(f"{name}: spread {entry['score_spread']}, logits {entry['logit_std']}", flush=True)


if __name__ == "__main__":
    main()
