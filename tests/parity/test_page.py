"""The engine against page.py, which says docs/numerics.md once more: the same bits, or the page is no specification."""
import fractions
import random
import subprocess

import numpy as np
import pytest

import page
import tools

F = np.float32


def bits(value):
    return int(F(value).view(np.uint32))


def nearest(exact):
    """The float32 nearest to a fraction, ties to even, without any float on the way."""
    if exact == 0:
        return F(0)
    size = abs(exact)
    exponent = max(size.numerator.bit_length() - size.denominator.bit_length() - 24, -149)
    while round(size / fractions.Fraction(2) ** exponent) > 2**24:
        exponent += 1
    while exponent > -149 and size / fractions.Fraction(2) ** exponent < 2**23:
        exponent -= 1
    value = F(round(size / fractions.Fraction(2) ** exponent)) * np.float64(2.0) ** exponent
    return F(-value if exact < 0 else value)


def test_page_fma_rounds_once():
    draw = random.Random(1)
    for _ in range(1500):
        a, b = (F(draw.uniform(-2, 2) * 2.0 ** draw.randint(-40, 30)) for _ in range(2))
        c = F(-(float(a) * float(b)) * draw.choice([1, 1 + 2.0**-23, 2.0**-24, 2.0**24, draw.uniform(-2, 2)]))
        exact = fractions.Fraction(float(a)) * fractions.Fraction(float(b)) + fractions.Fraction(float(c))
        assert page.fma(a, b, c) == nearest(exact), (a, b, c)


def random_model(scratch, family, recipe):
    directory = scratch / f"{family}-{recipe}"
    directory.mkdir()
    tools.run("tests/page-engine", "model", family, recipe, directory)
    return directory


# Every family with all schemes in turn, each scheme alone once, and a text behind the first unit of 1,024 positions.
CASES = [(family, "mixed", 90) for family in ("small", "gqa", "mha", "sinks", "gemma3", "gemma4")] + [
    ("small", "dynamic", 90), ("gemma3", "static", 80), ("gemma4", "rotated", 80), ("gqa", "wide", 80), ("sinks", "mixed", 1100)]


@pytest.mark.parametrize("family, recipe, count", CASES)
def test_logits_are_those_of_the_page(tmp_path, family, recipe, count):
    model = page.Model(random_model(tmp_path, family, recipe))
    vocab = model.config["vocab_size"]
    tokens = np.random.RandomState(count).randint(0, vocab, count)
    greedy = 4 if count < 1000 else 1
    theirs, drawn = tools.forward(tmp_path / f"{family}-{recipe}", tokens, tmp_path, greedy)
    ours = model.logits(np.concatenate([tokens, drawn[:-1]]).astype(np.int64))
    different = np.argwhere(ours.view(np.uint32) != theirs.view(np.uint32))
    assert len(different) == 0, f"{len(different)} of {ours.size} logits, the first at (position, id) {different[0]}"
    for row, token in zip(ours[-greedy:], drawn):
        assert page.pick(row, {}, [], []) == token


def options(draw, vocab):
    """Some options on, the others absent."""
    def ids(most):
        return draw.sample(range(vocab), draw.randint(1, most))

    every = {
        "top_k": draw.choice([1, 2, 7, 40, vocab, vocab + 5]), "top_p": draw.choice([1e-30, 0.1, 0.5, 0.9, 0.999, 1.0, 1 - 2.0**-24]),
        "min_p": draw.choice([1e-12, 0.01, 0.2, 0.5, 1.0]), "repetition": draw.choice([0.5, 1.0, 1.1, 3.0, 1e-38]),
        "presence": draw.uniform(-10, 10), "frequency": draw.uniform(-10, 10), "tokens_min": draw.randint(0, 6),
        "masked": sorted(ids(vocab // 2)), "ends": ids(5), "bias": {token: draw.uniform(-20, 20) for token in ids(20)},
    }
    on = {name: value for name, value in every.items() if draw.random() < 0.4}
    return on | {"temperature": draw.choice([0, 1e-40, 0.2, 0.7, 1.0, 1.0, 1.5, 100.0]), "seed": draw.getrandbits(64)}


def case_text(o, prompt, reply, choice):
    floats = [bits(o.get(name, 0)) for name in ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")]
    bias = [number for token, value in o.get("bias", {}).items() for number in (token, bits(value))]
    numbers = floats + [o.get("top_k", 0), o.get("tokens_min", 0), o["seed"], choice]
    for values in (prompt, reply, o.get("masked", ()), o.get("ends", ())):
        numbers += [len(values), *values]
    return " ".join(map(str, numbers + [len(bias) // 2, *bias])) + "\n"


def test_tokens_and_log_probabilities_are_those_of_the_page(tmp_path):
    vocab, count, draw = 320, 60 if tools.SANITIZED else 250, random.Random(9)
    spread = np.random.RandomState(9)
    # Wide and flat rows; every third in steps of 1/4, so that many logits are equal, with both zeros among them.
    rows = (spread.standard_normal((count, vocab)) * spread.choice([0.1, 1, 4, 30], (count, 1))).astype(F)
    rows[::3] = np.rint(rows[::3] * 4) / 4
    cases, text = [], ""
    for _ in range(count):
        prompt, reply = ([draw.randrange(vocab) for _ in range(draw.randint(least, 30))] for least in (1, 0))
        cases.append((options(draw, vocab), prompt, reply, draw.randrange(4)))
        text += case_text(*cases[-1])
    (tmp_path / "rows").write_bytes(rows.tobytes())
    program = tools.BUILD_DIR / "tests" / "page-engine"
    done = subprocess.run([program, "pick", str(vocab), tmp_path / "rows"], input=text, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(lines) == count
    for row, case, line in zip(rows, cases, lines):
        values, order = page.logprobs(row)
        token = page.pick(row, *case)
        want = [token, bits(values[token])] + [number for i in order[:20] for number in (i, bits(values[i]))]
        assert line == want, case
