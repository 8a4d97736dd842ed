"""Parity with the `transformers` library (tests/golden/parity), and int8 beside float for each activation scheme."""
import json

import numpy as np
import pytest

import tools
import families

DISTANCE_MAX = 1e-3
GREEDY_TOKENS = 4 if tools.SANITIZED else 64
KL_MAX, TOP1_MIN = 1.0, 0.4      # of random models, which magnify; a scheme computed wrongly gives a KL of 3 or more


class Case:
    """A checkpoint made again from its seed, its float conversion, and what the library computed from it."""

    def __init__(self, name, scratch):
        self.name, self.scratch = name, scratch
        self.golden = json.loads((tools.GOLDEN_DIR / f"{name}.json").read_text())
        self.source = scratch / "hf"
        self.source.mkdir()
        families.write_checkpoint(name, self.golden["seed"], self.source)
        self.float_dir = tools.convert(self.source, scratch / "float", "--format", "float")
        self.logits, self.greedy = tools.forward(self.float_dir, self.golden["prompt"], scratch, GREEDY_TOKENS)
        self.positions = [position for position in self.golden["positions"] if position < len(self.logits)]

    def golden_logits(self):
        return np.fromfile(tools.GOLDEN_DIR / f"{self.name}.logits", "<f4").reshape(-1, self.golden["vocab_size"])[:len(self.positions)]


@pytest.fixture(scope="module", params=list(families.FAMILIES))
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_prompt_is_the_seed_s(case):
    assert case.golden["prompt"] == families.prompt_ids(case.name, case.golden["seed"], len(case.golden["prompt"]))
    assert case.golden["top2_gap_min"] > 10 * DISTANCE_MAX


def test_float_logits_are_the_library_s(case):
    ours, theirs = case.logits[case.positions], case.golden_logits()
    assert ours.shape == theirs.shape
    gap = np.abs(ours.astype(np.float64) - theirs)
    print(f"\n{case.name}: {len(theirs)} positions, distance {gap.max():.1e} at most, {gap.mean():.1e} mean "
          f"(the library with and without its cache: {case.golden['cached_distance_max']:.1e})")
    assert gap.max() < DISTANCE_MAX, f"at position {case.positions[int(gap.max(axis=1).argmax())]}"


def test_greedy_tokens_are_the_library_s(case):
    assert len(case.golden["greedy"]) == 64
    assert case.greedy == case.golden["greedy"][:GREEDY_TOKENS]


def static_recipe(case):
    """Input ranges as the library saw them."""
    entries = [{"match": name, "scheme": "static", "input_scale": absmax / 127} for name, absmax in case.golden["input_absmax"].items()]
    path = case.scratch / "static.json"
    path.write_text(json.dumps({"default": "dynamic", "smooth": False, "tensors": entries}))
    return path


@pytest.mark.skipif(tools.SANITIZED, reason="what int8 computes is tested with sanitizers elsewhere")
def test_int8_beside_float(case):
    """The models are random and have no outliers: what schemes are for shows in test_outliers.py."""
    schemes = {"default recipe": [], **{name: ["--scheme", name] for name in ("dynamic", "rotated", "wide")},
               "static": ["--recipe", static_recipe(case)]}
    ids = case.golden["prompt"] + case.greedy[:-1]
    print(f"\n{case.name}: int8 beside float, {len(ids)} positions\n"
          f"  {'scheme':16} {'max |d|':>9} {'mean |d|':>9} {'KL':>10} {'top 1':>7}")
    kl = {}
    for number, (scheme, options) in enumerate(schemes.items()):
        target = tools.convert(case.source, case.scratch / f"int8-{number}", *options)
        logits, _ = tools.forward(target, ids, case.scratch)
        found = tools.distance(case.logits, logits)
        print(f"  {scheme:16} {found['max']:9.4f} {found['mean']:9.4f} {found['kl']:10.6f} {100 * found['top1']:6.2f}%")
        assert 0 < found["kl"] < KL_MAX and found["top1"] > TOP1_MIN, scheme
        kl[scheme] = found["kl"]
    assert min(kl, key=kl.get) == "wide" and max(kl, key=kl.get) == "static"
