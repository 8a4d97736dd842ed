"""kernels.py and ops.py against plain formulas: the forward pass to the bit where the numerics page gives one, and every gradient."""
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import small_model
import kernels
import model
import ops
import train

EXACT, CLOSE = 1e-6, 2e-5                     # relative, float32 against float64: of an operation, of sums of many
INT8 = 0.01                                   # what int8 softmax weights cost (docs/numerics.md, section 11, says 0.4%)


@pytest.fixture(autouse=True)
def float_gradients(monkeypatch):
    monkeypatch.setattr(ops, "gradient_type", torch.float32)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(1)


@pytest.fixture
def threads():
    """Sets torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def normal(random, *shape, spread=1.0):
    return torch.randn(shape, generator=random) * spread


def error(found, wanted):
    """The size of the difference, as a share of what is wanted."""
    assert found.shape == wanted.shape
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def cosine(one, other):
    return F.cosine_similarity(one.double().flatten(), other.double().flatten(), 0).item()


def same(found, wanted):
    """Equal bits, not only equal values."""
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.numpy().tobytes() == wanted.numpy().tobytes()


def on_grid(x):
    """What rounding to int8 makes of x."""
    return kernels.dequantize_rows(*kernels.quantize_rows(x))


class PlainOps:
    """The operations as a textbook has them, for autograd in float64."""

    def embed(self, table, ids):
        return table[ids]

    def norm(self, x, weight, epsilon):
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight

    def linear(self, x, *weights):
        return tuple(x @ weight.t() for weight in weights)

    def rope_table(self, base, dim, count, device):
        angle = torch.arange(count).double()[:, None] * base ** (-torch.arange(0, dim, 2).double() / dim)
        return angle.cos(), angle.sin()

    def rope(self, x, table):
        cosine, sine = (part[:x.shape[1], None].to(x.dtype) for part in table)
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)

    def rows(self, x):
        return (x,)

    def attend(self, q, k, v, window, scale):
        (q, *_), (k, *_), (v, *_) = q, k, v
        k, v = (part.repeat_interleave(q.shape[2] // k.shape[2], 2) for part in (k, v))
        i, j = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])[None]
        hidden = (j > i) | (j <= i - window) if window else j > i
        scores = torch.einsum("sihd,sjhd->shij", q, k) * scale
        return torch.einsum("shij,sjhd->sihd", torch.softmax(scores.masked_fill(hidden, -math.inf), -1), v).contiguous()

    def gate(self, gate, up):
        return gate / (1 + torch.exp(-gate)) * up

    def logits(self, h, table):
        return h @ table.t()

    def loss(self, h, table, targets, weights):
        return (F.cross_entropy(self.logits(h, table), targets, reduction="none") * weights).sum()


# ---- the forward pass ----


def page_rows(x):
    """Dynamic rows as docs/numerics.md, section 3, has them."""
    top = np.abs(x).max(-1, keepdims=True)
    small = top < np.float32(2.0 ** -100)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        q = np.where(small, 0, np.rint(x * (np.float32(127) / top)))
    return q.astype(np.int8), np.where(small, np.float32(1), top / np.float32(127))[..., 0]


def kinds_of_rows(random):
    x = normal(random, 40, 5, 96)
    ties = torch.randint(-127, 128, (20, 64), generator=random) / 2
    ties[:, 0] = 127.0
    outlier = x.clone()
    outlier[..., 7] = 1e6
    mixed = x * torch.exp2(torch.randint(-90, 90, (40, 5, 1), generator=random).float())
    return {"normal": x, "ties": ties, "outlier": outlier, "mixed": mixed, "zeros": torch.zeros(3, 16), "negative zeros": -torch.zeros(3, 16),
            "denormal": x * 1e-41, "tiny": x * 2.0 ** -100, "huge": x.sign() * 3e38, "one column": x[..., :1],
            "some columns": x[..., :40], "transposed": x.transpose(0, 2)}


def test_rows_follow_the_page(random):
    for name, x in kinds_of_rows(random).items():
        q, scale = kernels.quantize_rows(x)
        wanted_q, wanted_scale = page_rows(x.numpy())
        assert np.array_equal(q.numpy(), wanted_q) and same(scale, torch.from_numpy(wanted_scale)), name
        assert same(kernels.dequantize_rows(q, scale), torch.from_numpy(q.numpy().astype(np.float32) * wanted_scale[..., None])), name


def test_rows_on_their_grid_stay(random):
    """So a model that was exported and read again computes what it did."""
    x = normal(random, 30000, 24) * torch.exp2(torch.randint(-20, 20, (30000, 1), generator=random).float())
    q, scale = kernels.quantize_rows(x)
    again_q, again_scale = kernels.quantize_rows(kernels.dequantize_rows(q, scale))
    assert same(again_q, q) and same(again_scale, scale)


@pytest.mark.parametrize("rows, outputs, depth", [(1, 1, 1), (70, 33, 64), (600, 20, 192), (3, 300, 1000)])
def test_linear_is_exact(random, rows, outputs, depth):
    q, w = (torch.randint(-127, 128, (n, depth), generator=random, dtype=torch.int8) for n in (rows, outputs))
    q_scale, w_scale = normal(random, rows).abs(), normal(random, outputs).abs()
    total = q.numpy().astype(np.int64) @ w.numpy().astype(np.int64).T
    wanted = (total.astype(np.float32) * q_scale.numpy()[:, None]) * w_scale.numpy()
    assert same(kernels.linear(q, q_scale, w, w_scale), torch.from_numpy(wanted))


def test_norm_rope_and_gate_are_close(random):
    plain, exact = PlainOps(), ops.KernelOps()
    x, weight = normal(random, 700, 192, spread=5), normal(random, 192)
    assert error(exact.norm(x, weight, 1e-6), plain.norm(x.double(), weight.double(), 1e-6)) < EXACT
    x = normal(random, 2, 300, 3, 64)
    for base in (1e4, 1e5):
        table, wanted = exact.rope_table(base, 64, 310, "cpu"), plain.rope_table(base, 64, 310, "cpu")
        assert max(error(a, b) for a, b in zip(table, wanted)) < EXACT
        assert error(exact.rope(x, table), plain.rope(x.double(), wanted)) < EXACT
    gate, up = normal(random, 700, 80, spread=6), normal(random, 700, 80)
    assert error(exact.gate(gate, up), plain.gate(gate.double(), up.double())) < EXACT


ATTENTION = pytest.mark.parametrize("kv_heads, window, length", [
    (1, 0, 70), (2, 0, 300), (4, 0, 64), (1, 24, 70), (2, 24, 24), (4, 24, 100), (2, 1, 30), (1, 200, 70), (4, 64, 300), (1, 0, 1)])


@ATTENTION
def test_attention_is_close(random, kv_heads, window, length):
    exact = ops.KernelOps()
    q, k, v = (exact.rows(normal(random, 2, length, heads, 16)) for heads in (4, kv_heads, kv_heads))
    found, wanted = exact.attend(q, k, v, window, 0.25), PlainOps().attend(*([part[0].double()] for part in (q, k, v)), window, 0.25)
    assert error(found, wanted) < INT8


def test_threads_change_no_bit(random, threads):
    config, params = small_model.make()
    operations, ids = ops.KernelOps(), small_model.random_ids(config, 3, 400)
    x = normal(random, 3, 400, 4, 64)
    w, w_scale = kernels.quantize_rows(normal(random, 96, 256))
    rows = [kernels.quantize_rows(normal(random, 3, 400, heads, 64)) for heads in (4, 2, 2)]
    table = kernels.rope_table(1e4, 64, 400)

    def everything():
        q, scale = kernels.quantize_rows(x.view(-1, 256))
        return [q, scale, kernels.dequantize_rows(q, scale), kernels.linear(q, scale, w, w_scale), kernels.silu_gate(x, x),
                kernels.rmsnorm(x, torch.ones(64), 1e-6), kernels.rope(x, *table), kernels.attention(*rows, 24, 0.125),
                model.hidden_states(params, ids, config, operations)]

    threads(1)
    one = everything()
    for number in (2, 3):
        threads(number)
        assert all(map(same, everything(), one))


@pytest.mark.parametrize("weights, activations, kv", itertools.product((False, True), repeat=3))
def test_framework_rounds_what_it_is_told(random, weights, activations, kv):
    operations, x, table = ops.FrameworkOps(weights, activations, kv), normal(random, 60, 64), normal(random, 50, 64)
    targets, ones = torch.randint(50, (60,), generator=random), torch.ones(60)
    rows, columns = on_grid(x) if activations else x, on_grid(table) if weights else table
    for found, wanted in (
            (operations.linear(x, table)[0], rows @ columns.t()), (operations.logits(x, table), rows @ columns.t()),
            (operations.embed(table, targets), columns[targets]), (operations.rows(x)[0], on_grid(x) if kv else x),
            (operations.loss(x, table, targets, ones), PlainOps().loss(rows, columns, targets, ones))):
        assert error(found, wanted) < CLOSE


# ---- gradients ----


def gradients(function, inputs):
    """Of a fixed mixture of the function's results, for each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    random = torch.Generator().manual_seed(2)
    sum((result * torch.randn(result.shape, generator=random).to(result.dtype)).sum() for result in results).backward()
    return [leaf.grad for leaf in leaves]


def check_gradients(function, wanted, inputs, limit=CLOSE):
    found = gradients(function, inputs)
    exact = gradients(wanted, [x.double() for x in inputs])
    errors = [error(a, b) for a, b in zip(found, exact)]
    assert max(errors) < limit, errors


@pytest.mark.parametrize("operations", [ops.FrameworkOps(), ops.KernelOps()], ids=lambda operations: operations.name)
def test_gradients_of_norm_rope_and_gate(random, operations):
    plain = PlainOps()
    for shape in ((50, 48), (2, 30, 3, 16)):
        inputs = normal(random, *shape, spread=3), normal(random, shape[-1])
        check_gradients(lambda x, weight: operations.norm(x, weight, 1e-6), lambda x, weight: plain.norm(x, weight, 1e-6), inputs)
    check_gradients(operations.gate, plain.gate, (normal(random, 50, 80, spread=4), normal(random, 50, 80)))
    tables = [o.rope_table(1e4, 16, 40, "cpu") for o in (operations, plain)]
    check_gradients(lambda x: operations.rope(x, tables[0]), lambda x: plain.rope(x, tables[1]), (normal(random, 2, 33, 3, 16),))


@pytest.mark.parametrize("count", [1, 3])
def test_gradients_of_linear(random, count):
    inputs = [normal(random, 90, 64), *(normal(random, outputs, 64) for outputs in (48, 16, 32)[:count])]
    check_gradients(ops.FrameworkOps().linear, PlainOps().linear, inputs)
    check_gradients(ops.KernelOps().linear, PlainOps().linear, [on_grid(x) for x in inputs])


def test_gradient_of_embedding(random):
    ids, table = torch.tensor([3, 0, 3, 3, 7, 0]), normal(random, 9, 16)
    for operations in (ops.FrameworkOps(), ops.FrameworkOps(weights=True), ops.KernelOps()):
        check_gradients(lambda x: operations.embed(x, ids), lambda x: PlainOps().embed(x, ids), (table,))


@ATTENTION
def test_gradients_of_attention(random, kv_heads, window, length):
    inputs = [normal(random, 2, length, heads, 16) for heads in (4, kv_heads, kv_heads)]

    def attend(operations):
        return lambda *parts: operations.attend(*map(operations.rows, parts), window, 0.25)

    limit = 1e-4 if min(length, window or length) > 1 else None             # a single key has no gradient of q and k
    plain = attend(PlainOps())
    if limit is None:
        found, wanted = gradients(attend(ops.FrameworkOps()), inputs), gradients(plain, [x.double() for x in inputs])
        assert error(found[2], wanted[2]) < CLOSE and max(found[0].abs().max(), found[1].abs().max()) < 1e-5
    else:
        check_gradients(attend(ops.FrameworkOps()), plain, inputs, limit)
        check_gradients(attend(ops.KernelOps()), plain, [on_grid(x) for x in inputs], 2 * INT8)


@pytest.mark.parametrize("rows", [1, 512, 700])
def test_gradients_of_the_loss(random, rows):
    targets, weights = torch.randint(50, (rows,), generator=random), (torch.rand(rows, generator=random) > 0.3).float()
    weights[0] = 1
    inputs = [on_grid(normal(random, rows, 32)), on_grid(normal(random, 50, 32))]
    for operations in (ops.FrameworkOps(), ops.KernelOps()):
        with torch.no_grad():
            found, wanted = (o.loss(*inputs, targets, weights) for o in (operations, PlainOps()))
        assert error(found, wanted) < CLOSE
        check_gradients(lambda h, table: operations.loss(h, table, targets, weights),
                        lambda h, table: PlainOps().loss(h, table, targets, weights.double()), inputs)


def model_gradients(config, params, operations, ids, learn, dtype=torch.float32):
    """(loss, {name: gradient})"""
    leaves = {name: value.clone().to(dtype).requires_grad_() for name, value in params.items()}
    total, count = model.loss(leaves, ids, learn, config, operations)
    assert count == learn[:, 1:].sum()
    total.backward()
    return total, {name: leaf.grad for name, leaf in leaves.items()}


def some_rows(config):
    """Two rows of 70 ids, the second one padded, some ids no targets."""
    ids = small_model.random_ids(config, 2, 70)
    learn = torch.rand(2, 70, generator=torch.Generator().manual_seed(3)) > 0.2
    ids[1, 50:], learn[1, 50:] = 0, False
    return ids, learn


SHAPES = pytest.mark.parametrize("heads, layers, sharing", small_model.SHAPES)


@SHAPES
def test_gradients_of_the_model(heads, layers, sharing):
    config, params = small_model.make(heads, layers, sharing)
    ids, learn = some_rows(config)
    loss, found = model_gradients(config, params, ops.FrameworkOps(), ids, learn)
    wanted_loss, wanted = model_gradients(config, params, PlainOps(), ids, learn, torch.float64)
    assert error(loss, wanted_loss) < EXACT
    errors = {name: error(found[name], wanted[name]) for name in wanted}
    assert max(errors.values()) < 1e-4, errors


def follow(kernel, plain):
    """The kernel's value with the plain formula's gradient."""
    return kernel.detach() + (plain - plain.detach())


class GuidedOps(PlainOps):
    """Autograd of the plain formulas at the values that the kernels compute: roundings pass gradients straight through."""
    rope_table = ops.KernelOps.rope_table
    exact = ops.KernelOps()

    def embed(self, table, ids):
        return super().embed(self.round(table), ids)

    def norm(self, x, weight, epsilon):
        return follow(self.exact.norm(x, weight, epsilon), super().norm(x, weight, epsilon))

    def linear(self, x, *weights):
        x = self.round(x)
        return tuple(follow(self.exact.linear(x, w)[0], x @ self.round(w).t()) for w in weights)

    def rope(self, x, table):
        return follow(self.exact.rope(x, table), super().rope(x, table))

    def round(self, x):
        return follow(on_grid(x.detach()), x)

    def rows(self, x):
        return (self.round(x),)

    def attend(self, q, k, v, window, scale):
        integers = (self.exact.rows(part[0].detach()) for part in (q, k, v))
        return follow(self.exact.attend(*integers, window, scale), super().attend(q, k, v, window, scale))

    def gate(self, gate, up):
        return follow(self.exact.gate(gate, up), super().gate(gate, up))

    def logits(self, h, table):
        return self.linear(h, table)[0]


@SHAPES
def test_gradients_through_the_kernels(heads, layers, sharing):
    """Those of the plain formulas at the same values; and like those of the same roundings in torch, where other sums round otherwise."""
    config, params = small_model.make(heads, layers, sharing)
    ids, learn = some_rows(config)
    loss, found = model_gradients(config, params, ops.KernelOps(), ids, learn)
    guided_loss, guided = model_gradients(config, params, GuidedOps(), ids, learn)
    near_loss, near = model_gradients(config, params, ops.FrameworkOps(weights=True, activations=True, kv=True), ids, learn)
    errors, angles = ({name: measure(found[name], other[name]) for name in found} for measure, other in ((error, guided), (cosine, near)))
    print(f"\n{heads}, {layers}, {sharing}: gradients {max(errors.values()):.5f} from the plain ones at the same values; "
          f"from torch's int8: loss {error(loss, near_loss):.5f}, cosine {min(angles.values()):.4f}")
    assert error(loss, guided_loss) < EXACT and max(errors.values()) < INT8, errors
    assert error(loss, near_loss) < 1e-3 and min(angles.values()) > 0.97, angles


@pytest.mark.parametrize("operations", [ops.FrameworkOps(), ops.KernelOps()], ids=lambda operations: operations.name)
def test_tied_table_gets_both_gradients(operations):
    config, params = small_model.make()
    ids, learn = some_rows(config)
    _, found = model_gradients(config, params, operations, ids, learn)
    tables = [params[model.EMBED].clone().requires_grad_() for _ in range(2)]

    class Apart(type(operations)):
        def embed(self, table, rows):
            return super().embed(tables[0], rows)

        def loss(self, h, table, targets, weights):
            return super().loss(h, tables[1], targets, weights)

    loss, _ = model.loss(params, ids, learn, config, Apart())
    loss.backward()
    assert error(tables[0].grad + tables[1].grad, found[model.EMBED]) < CLOSE
    assert min(table.grad.norm() for table in tables) > 0.01 * found[model.EMBED].norm()


def test_weights_are_made_int8_again_when_they_change(random):
    operations, x = ops.KernelOps(), normal(random, 3, 32)

    def check(weight):
        (found,) = operations.linear(x, weight)
        assert same(found, kernels.linear(*kernels.quantize_rows(x), *kernels.quantize_rows(weight)))

    weight = normal(random, 16, 32)
    for _ in range(3):
        check(weight)
        weight.mul_(1.5).add_(0.1)
    for _ in range(50):                                   # another tensor may come to lie where one was
        check(normal(random, 16, 32))


# ---- what is refused ----


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_an_error(random, wrong):
    x = normal(random, 600, 16)
    x[599, 3] = wrong
    for call in (lambda: kernels.quantize_rows(x), lambda: kernels.rmsnorm(x, torch.ones(16), 1e-6)):
        with pytest.raises(FloatingPointError, match="learning rate"):
            call()
    config, params = small_model.make()
    for name in (model.EMBED, "model.layers.3.mlp.up_proj.weight", "model.layers.5.input_layernorm.weight"):
        broken = {**params, name: params[name].clone()}
        broken[name].view(-1)[5] = wrong
        with pytest.raises(FloatingPointError):
            model.logits(broken, small_model.random_ids(config, 40), config, ops.KernelOps())


def test_tensors_that_the_library_cannot_read(random):
    x, (q, scale) = normal(random, 8, 16), kernels.quantize_rows(normal(random, 8, 16))
    wrong = [
        (lambda: kernels.quantize_rows(x.double()), TypeError, "float32"),
        (lambda: kernels.rmsnorm(x, torch.ones(16).half(), 1e-6), TypeError, "float32"),
        (lambda: kernels.linear(q.t(), scale, q, scale), TypeError, "contiguous"),
        (lambda: kernels.linear(q.float(), scale, q, scale), TypeError, "int8"),
        (lambda: kernels.linear(q[:, :8].contiguous(), scale, q, scale), ValueError, "shape"),
        (lambda: kernels.linear(q, scale[:4], q, scale), ValueError, "shape"),
        (lambda: kernels.dequantize_rows(q, scale[:4]), ValueError, "shape"),
        (lambda: kernels.rmsnorm(x, torch.ones(8), 1e-6), ValueError, "shape"),
        (lambda: kernels.silu_gate(x, x[:4]), ValueError, "shape"),
        (lambda: kernels.silu_gate(x, x.t().contiguous().t()), TypeError, "contiguous"),
        (lambda: kernels.rope(x.view(1, 8, 1, 16), *kernels.rope_table(1e4, 16, 7)), ValueError, "shape"),
        (lambda: kernels.rope_table(1e4, 514, 8), ValueError, "512"),
        (lambda: kernels.rope_table(1e4, 15, 8), ValueError, "even"),
        (lambda: kernels.attention(*[kernels.quantize_rows(normal(random, 1, 8, heads, 16)) for heads in (4, 3, 3)], 0, 1.0), ValueError, "KV heads"),
    ]
    for call, kind, words in wrong:
        with pytest.raises(kind, match=words):
            call()


@pytest.mark.parametrize("change, words", [
    ({"sharing": "some"}, "none, neighbours, all"), ({"layers": 5, "global_every": 3}, "global_every"), ({"heads": 4, "kv_heads": 3}, "kv_heads"),
    ({"hidden": 40}, "16"), ({"inner": 81}, "16"), ({"head_dim": 24}, "16"), ({"head_dim": 528}, "512"), ({"vocab": 4095}, "16"),
    ({"window": 0}, "window"), ({"layers": 0}, "layers")])
def test_shapes_that_no_engine_takes(change, words):
    with pytest.raises(ValueError, match=words):
        model.make_config(**change)


def test_who_shares_kv():
    def producers(**changes):
        return model.make_config(layers=12, **changes)["kv_producer"]

    assert producers(sharing="none") == list(range(12))
    assert producers(sharing="neighbours") == [0, 0, 2, 2, 4, 5, 6, 6, 8, 8, 10, 11]
    assert producers(sharing="all") == [0, 0, 2, 2, 4, 5, 6, 6, 8, 8, 10, 5]
    assert producers(sharing="all", global_every=1) == [0] * 12
    assert producers(sharing="all", global_every=3) == [0, 0, 2, 3, 3, 2, 6, 6, 2, 9, 9, 2]


@pytest.mark.parametrize("arguments, words", [
    ("--arithmetic float --forward kernels", "framework"), ("--device cuda --forward kernels", "framework"),
    ("--length 500", "not a multiple"), ("--length 0", "at least 1"), ("--long-length 1000", "not a multiple"), ("--warm-up 0", "at least 1"),
    ("--evaluate-every 0", "at least 1"), ("--steps 0", "at least 1"), ("--descend-from 1", "descend-from"), ("--hidden 40", "16"),
    ("--layers 10", "global_every"), ("--sharing some", "sharing")])
def test_arguments_that_do_not_fit(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse_args(["--tokenizer", "t", "--run", "r", *arguments.split()])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_library_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("ROOST_BUILD_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=f"{tmp_path}.*ROOST_BUILD_DIR"):
        kernels._find()
