"""Trains the model: AdamW, warm-up and cosine; long rows and fake quantisation at the end.

Progress goes to standard output, losses to <run>/losses.csv, and the state to
<run>/checkpoint.npz, from which the same command continues. The run is a pure function of its
arguments on one machine; another processor may round differently.
"""
import argparse
import csv
import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sentencepiece

import data
import model

EVAL_TOKENS = 4096            # inputs per evaluation batch
LOG_COLUMNS = ["step", "row_length", "int8", "train_loss", "dev_loss_float", "dev_loss_int8"]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="tokenizer.model")
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of checkpoint and losses")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="inputs per step")
    parser.add_argument("--length", type=int, default=512, help="row length of most steps")
    parser.add_argument("--long-length", type=int, default=2048, help="row length of the last steps")
    parser.add_argument("--long-from", type=float, default=0.88, help="share of steps after which rows are long")
    parser.add_argument("--quant-from", type=float, default=0.8, help="share of steps after which int8 is simulated")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak")
    parser.add_argument("--final-rate", type=float, default=0.02, help="share of the peak at the end")
    parser.add_argument("--warm-up", type=int, default=100, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=400, help="steps")
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    return parser.parse_args()


def make_optimizer(args):
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, args.learning_rate, args.warm_up, args.steps, args.learning_rate * args.final_rate)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.98, eps=1e-9, weight_decay=args.weight_decay,
                    mask=lambda params: {n: model.is_quantised(n) and n != model.EMBED for n in params}))


def make_step(optimizer, config, dropout, quant):
    """A jitted (params, state, rows, key) -> (params, state, mean loss)."""
    def mean_loss(params, rows, key):
        total, count = model.token_losses(params, rows, config, quant, quant, dropout, key)
        return total / count

    def step(params, state, rows, key):
        loss, grads = jax.value_and_grad(mean_loss)(params, rows, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def make_evaluate(config, rows, length):
    """A function of (params, quant) giving the mean loss over all targets of `rows`, in nats."""
    losses = jax.jit(model.token_losses, static_argnums=(2, 3, 4))
    batch = max(1, EVAL_TOKENS // length)
    frozen = FrozenConfig(config)

    def evaluate(params, quant):
        total = count = 0.0
        for at in range(0, len(rows[0]), batch):
            part = [a[at:at + batch] for a in rows]
            short = batch - len(part[0])
            part = tuple(np.pad(a, ((0, short), (0, 0))) for a in part)
            t, c = losses(params, part, frozen, quant, quant)
            total, count = total + float(t), count + float(c)
        return total / count

    return evaluate


class FrozenConfig(dict):
    """A config that jit accepts as a static argument."""
    def __hash__(self):
        return id(self)


def open_log(path, done):
    """losses.csv, open for appending, without the rows of steps after `done`."""
    kept = [LOG_COLUMNS]
    if path.exists():
        with open(path, newline="") as file:
            kept += [row for row in csv.reader(file) if row[0].isdigit() and int(row[0]) <= done]
    file = open(path, "w", newline="")
    csv.writer(file).writerows(kept)
    return file


def save_checkpoint(path, params, state, step):
    leaves = jax.tree.leaves(state)
    arrays = {f"param:{n}": p for n, p in params.items()}
    arrays |= {f"state:{i}": leaf for i, leaf in enumerate(leaves)}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, step=step, **{n: np.asarray(a) for n, a in arrays.items()})
    os.replace(partial, path)


def load_params(path):
    """The parameters alone, and the step they are from."""
    with np.load(path) as arrays:
        params = {n[6:]: jnp.asarray(arrays[n]) for n in arrays.files if n.startswith("param:")}
        return params, int(arrays["step"])


def load_checkpoint(path, optimizer):
    params, step = load_params(path)
    state = optimizer.init(params)
    tree = jax.tree.structure(state)
    with np.load(path) as arrays:
        leaves = [jnp.asarray(arrays[f"state:{i}"]) for i in range(tree.num_leaves)]
    return params, jax.tree.unflatten(tree, leaves), step


def main():
    args = parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    checkpoint, log_path = args.run / "checkpoint.npz", args.run / "losses.csv"
    config = FrozenConfig(model.CONFIG)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.tokenizer))
    train_scenes, dev_scenes = data.split_scenes(data.load_scenes())
    train = data.encode_scenes(tokenizer, train_scenes)
    dev_rows = data.development_rows(data.encode_scenes(tokenizer, dev_scenes), args.long_length)

    optimizer = make_optimizer(args)
    if checkpoint.exists():
        params, state, done = load_checkpoint(checkpoint, optimizer)
    else:
        params, done = model.init_params(config, args.seed), 0
        state = optimizer.init(params)
    print(f"{sum(p.size for p in params.values())} parameters, starting at step {done} of {args.steps}", flush=True)

    evaluate = make_evaluate(config, dev_rows, args.long_length)
    steps_of = {quant: make_step(optimizer, config, args.dropout, quant) for quant in (False, True)}
    long_from, quant_from = math.ceil(args.steps * args.long_from), math.ceil(args.steps * args.quant_from)
    streams = {length: data.batches(train, length, max(1, args.batch_tokens // length), args.seed)
               for length in (args.length, args.long_length)}
    for step in range(done):                                  # resume: the streams go where they were
        next(streams[args.long_length if step >= long_from else args.length])

    with open_log(log_path, done) as file:
        log = csv.writer(file)
        start, recent = time.monotonic(), []
        for step in range(done, args.steps):
            length = args.long_length if step >= long_from else args.length
            quant = step >= quant_from
            epoch, rows = next(streams[length])
            key = jax.random.key(args.seed * 1_000_003 + step, impl="unsafe_rbg")
            params, state, loss = steps_of[quant](params, state, rows, key)
            loss = float(loss)
            if not math.isfinite(loss):
                raise SystemExit(f"loss is {loss} at step {step}; the last checkpoint is kept")
            recent.append(loss)
            at, last = step + 1, step + 1 == args.steps
            dev = ["", ""]
            if at % args.eval_every == 0 or last:
                dev = [round(evaluate(params, False), 4), round(evaluate(params, True), 4)]
            log.writerow([at, length, int(quant), round(loss, 4), *dev])
            file.flush()
            if at % args.save_every == 0 or last or at == 10:
                save_checkpoint(checkpoint, params, state, at)
            if at % 20 == 0 or last or at <= 5:
                spent = time.monotonic() - start
                left = spent / (at - done) * (args.steps - at)
                print(f"step {at}/{args.steps} length {length} epoch {epoch:.2f} int8 {int(quant)} "
                      f"loss {np.mean(recent):.4f} dev {dev[0]} {dev[1]} "
                      f"{spent / (at - done):.2f} s/step, {left / 60:.1f} min left", flush=True)
                recent = []


if __name__ == "__main__":
    main()
