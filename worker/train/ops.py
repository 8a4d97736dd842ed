"""The operations of the model, forward and backward, in two versions that model.py takes its choice of.

`KernelOps`: the forward pass is the engine's own code (kernels.py), int8 throughout, bit for bit what the engine serves. CPU only.
`FrameworkOps`: the same formulas in torch, on any device: floats, or with int8 grids simulated for weights, activations and K/V
apart. It is close to the engine, not equal: it sums in another order and keeps attention weights as floats.

The backward pass is torch in both: rounding passes gradients straight through, scales and maxima are constants. Dynamic rows cannot
clip, so there is no clip mask. Products of the backward pass may be bfloat16 (`gradient_type`), sums and all else are float32.
"""
import torch
import torch.nn.functional as F

import kernels

ATTENTION_CHUNK = 256         # queries of a global layer that are worked on at a time
HEAD_CHUNK = 512              # rows of logits that exist at a time
INT8_MAX = 127.0
SMALLEST = 2.0 ** -100        # rows below this are zeros with scale 1 (docs/numerics.md, section 3)


def _has_bfloat16():
    """Whether products of bfloat16 are faster than of float32 here."""
    try:
        with open("/proc/cpuinfo") as info:
            return "avx512_bf16" in info.read() and int(torch.__version__.split(".")[0]) >= 2
    except OSError:
        return False


gradient_type = torch.bfloat16 if _has_bfloat16() else torch.float32


def _product(a, b):
    """a @ b for a gradient: operands in gradient_type, result float32."""
    return (a.to(gradient_type) @ b.to(gradient_type)).float()


def fast_float_products(fast):
    """Whether float32 products may round their operands to bfloat16 (sums stay float32), where this processor and torch can."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if gradient_type == torch.bfloat16 and hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = "bf16" if fast else "ieee"


def fake_int8(x):
    """x on the grid of dynamic rows over the last axis; the gradient passes straight through."""
    with torch.no_grad():
        top = x.abs().amax(-1, keepdim=True)
        small = top < SMALLEST
        scale = torch.where(small, torch.ones_like(top), top / INT8_MAX)
        grid = torch.where(small, torch.zeros_like(x), torch.round(x * (INT8_MAX / top.clamp_min(SMALLEST))) * scale)
    return x + (grid - x).detach() if x.requires_grad else grid


# ---- backward passes, shared by both versions ----

def _norm_backward(grad, x, weight, epsilon):
    inverse = torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
    normed = x * inverse
    grad_weight = (grad * normed).reshape(-1, x.shape[-1]).sum(0)
    scaled = grad * weight
    return inverse * (scaled - normed * (scaled * normed).mean(-1, keepdim=True)), grad_weight


def _rotate(x, cosine, sine):
    """x (sequences, length, heads, dim); pairs (i, i + dim / 2)."""
    a, b = x.chunk(2, -1)
    cosine, sine = cosine[:x.shape[1], None], sine[:x.shape[1], None]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


def _attention_parts(length, window):
    """[(first query, end, first key)]: parts that need only keys [first key, end)."""
    size = window if window else min(ATTENTION_CHUNK, length)
    return [(at, min(at + size, length), max(0, at - window) if window else 0) for at in range(0, length, size)]


def _mask(first, end, first_key, window, device):
    """(queries, keys): 0 where a key is seen, else -infinity."""
    i, j = torch.arange(first, end, device=device)[:, None], torch.arange(first_key, end, device=device)[None]
    hidden = (j > i) | (j <= i - window) if window else j > i
    return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))


def _fold(x, kv_heads):
    """(sequences, n, heads, dim) -> (sequences * kv_heads, heads per KV head * n, dim)."""
    sequences, n, heads, dim = x.shape
    return x.reshape(sequences, n, kv_heads, heads // kv_heads, dim).permute(0, 2, 3, 1, 4).reshape(sequences * kv_heads, -1, dim)


def _unfold(x, sequences, n, kv_heads):
    dim = x.shape[-1]
    return x.reshape(sequences, kv_heads, -1, n, dim).permute(0, 3, 1, 2, 4).reshape(sequences, n, -1, dim)


def _weights(q, k, mask, scale):
    """Softmax over the keys; q (n, heads * queries, dim), k (n, keys, dim), mask (queries, keys)."""
    every_head = mask.repeat(q.shape[1] // len(mask), 1)
    return torch.softmax(torch.baddbmm(every_head.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=scale), -1)


class _Attention(torch.autograd.Function):
    """Causal attention; q, k, v float (sequences, length, heads, dim), and the same as integers for the kernels, or None."""

    @staticmethod
    def forward(ctx, q, k, v, integers, window, scale):
        ctx.window, ctx.scale = window, scale
        sequences, length, _, _ = q.shape
        kv_heads = k.shape[2]
        if integers is not None:
            out = kernels.attention(*integers, window, scale)
        else:
            out = torch.empty_like(q)
            for first, end, first_key in _attention_parts(length, window):
                mask = _mask(first, end, first_key, window, q.device)
                weights = _weights(_fold(q[:, first:end], kv_heads), _fold(k[:, first_key:end], kv_heads), mask, scale)
                part = torch.matmul(weights, _fold(v[:, first_key:end], kv_heads))
                out[:, first:end] = _unfold(part, sequences, end - first, kv_heads)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out = ctx.saved_tensors
        sequences, length, _, _ = q.shape
        kv_heads, window, scale = k.shape[2], ctx.window, ctx.scale
        share = (grad * out).sum(-1, keepdim=True)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for first, end, first_key in _attention_parts(length, window):
            mask = _mask(first, end, first_key, window, q.device)
            queries, keys, values = _fold(q[:, first:end], kv_heads), _fold(k[:, first_key:end], kv_heads), _fold(v[:, first_key:end], kv_heads)
            weights = _weights(queries, keys, mask, scale)
            above = _fold(grad[:, first:end], kv_heads).to(gradient_type)
            grad_v[:, first_key:end] += _unfold(_product(weights.transpose(1, 2), above), sequences, end - first_key, kv_heads)
            grad_scores = _product(above, values.transpose(1, 2)).sub_(_fold(share[:, first:end], kv_heads)).mul_(weights).to(gradient_type)
            grad_q[:, first:end] = _unfold(_product(grad_scores, keys), sequences, end - first, kv_heads) * scale
            grad_k[:, first_key:end] += _unfold(_product(grad_scores.transpose(1, 2), queries), sequences, end - first_key, kv_heads) * scale
        return grad_q, grad_k, grad_v, None, None, None


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, exact):
        ctx.save_for_backward(gate, up)
        return kernels.silu_gate(gate, up) if exact else F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate), None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, epsilon, exact):
        ctx.epsilon = epsilon
        ctx.save_for_backward(x, weight)
        if exact:
            return kernels.rmsnorm(x, weight, epsilon)
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon) * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return (*_norm_backward(grad, x, weight, ctx.epsilon), None, None)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cosine, sine, exact):
        ctx.save_for_backward(cosine, sine)
        return kernels.rope(x, cosine, sine) if exact else _rotate(x, cosine, sine)

    @staticmethod
    def backward(ctx, grad):
        cosine, sine = ctx.saved_tensors
        return _rotate(grad, cosine, -sine), None, None, None


class _Int8Rows(torch.autograd.Function):
    """x as dynamic rows: (float(q) * scale, q, scale)."""

    @staticmethod
    def forward(ctx, x):
        q, scale = kernels.quantize_rows(x)
        ctx.mark_non_differentiable(q, scale)
        return kernels.dequantize_rows(q, scale), q, scale

    @staticmethod
    def backward(ctx, grad, _q, _scale):
        return grad


def _linear_backward(grads, rows, weights, *between):
    """The gradients of x, of what stands between it and the weights, and of each weight."""
    grads = [grad.to(gradient_type) for grad in grads]
    grad_x = sum((grad @ w.to(gradient_type)).float() for grad, w in zip(grads, weights))
    return (grad_x, *between, *((grad.t() @ rows).float() for grad in grads))


class _Int8Linear(torch.autograd.Function):
    """x (rows, depth) as dynamic rows times several int8 matrices."""

    @staticmethod
    def forward(ctx, x, quantised, *weights):
        q, scale = kernels.quantize_rows(x)
        ctx.quantised = quantised
        ctx.save_for_backward(q, scale)
        return tuple(kernels.linear(q, scale, w, w_scale) for w, w_scale, _ in quantised)

    @staticmethod
    def backward(ctx, *grads):
        q, scale = ctx.saved_tensors
        rows = q.to(gradient_type).mul_(scale.to(gradient_type)[:, None])
        return _linear_backward(grads, rows, [w for _, _, w in ctx.quantised], None)


class _FloatLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *weights):
        ctx.save_for_backward(x, *weights)
        return tuple(F.linear(x, w) for w in weights)

    @staticmethod
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        return _linear_backward(grads, x.to(gradient_type), weights)


class _Int8Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, table, quantised):
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        w, w_scale, _ = quantised
        return kernels.dequantize_rows(w[ids], w_scale[ids])

    @staticmethod
    def backward(ctx, grad):
        (ids,) = ctx.saved_tensors
        total = torch.zeros(ctx.shape, device=grad.device)
        return None, total.index_add_(0, ids.reshape(-1), grad.reshape(-1, ctx.shape[1])), None


class _HeadLoss(torch.autograd.Function):
    """Sum over the rows of weight * cross entropy, a chunk of logits at a time; the gradients are made on the way."""

    @staticmethod
    def forward(ctx, h, table, targets, weights, logits_of, learning):
        total = torch.zeros((), dtype=torch.float64, device=h.device)
        grad_h, grad_table = (torch.empty_like(h), torch.zeros_like(table)) if learning else (None, None)
        for at in range(0, len(h), HEAD_CHUNK):
            part = slice(at, at + HEAD_CHUNK)
            logits, rows, columns = logits_of(h[part])
            log_sum = torch.logsumexp(logits, -1)
            picked = logits.gather(1, targets[part, None])[:, 0]
            total += ((log_sum - picked) * weights[part]).double().sum()
            if not learning:
                continue
            grad = logits.sub_(log_sum[:, None]).exp_()
            grad[torch.arange(len(grad), device=h.device), targets[part]] -= 1
            grad *= weights[part, None]
            grad = grad.to(gradient_type)
            grad_h[part] = (grad @ columns).float()
            grad_table += (grad.t() @ rows.to(gradient_type)).float()
        if learning:
            ctx.save_for_backward(grad_h, grad_table)
        return total.float()

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_table = ctx.saved_tensors
        return grad_h * grad, grad_table * grad, None, None, None, None


# ---- the two versions ----

class KernelOps:
    """The engine's bits. Weights are made int8 once per value: the cache notices that a parameter was changed in place."""
    name = "kernels"

    def __init__(self):
        self._cache = {}

    def _quantised(self, weight):
        """(int8 (out, in), scale (out), their product in gradient_type)"""
        _, version, kept = self._cache.get(id(weight), (None, None, None))
        if version != weight._version:
            q, scale = kernels.quantize_rows(weight.detach())
            kept = q, scale, kernels.dequantize_rows(q, scale).to(gradient_type)
            self._cache[id(weight)] = weight, weight._version, kept       # with the weight itself, so that its id stays its own
        return kept

    def embed(self, table, ids):
        return _Int8Embedding.apply(ids, table, self._quantised(table))

    def norm(self, x, weight, epsilon):
        return _Norm.apply(x, weight, epsilon, True)

    def linear(self, x, *weights):
        return _Int8Linear.apply(x, [self._quantised(w) for w in weights], *weights)

    def rope_table(self, base, dim, count, device):
        return kernels.rope_table(base, dim, count)

    def rope(self, x, table):
        return _Rope.apply(x, *table, True)

    def rows(self, x):
        """What attend takes of q, k or v."""
        return _Int8Rows.apply(x.contiguous())

    def attend(self, q, k, v, window, scale):
        return _Attention.apply(q[0], k[0], v[0], (q[1:], k[1:], v[1:]), window, scale)

    def gate(self, gate, up):
        return _SiluGate.apply(gate, up, True)

    def logits(self, h, table):
        return self.linear(h, table)[0]

    def loss(self, h, table, targets, weights):
        q_table, table_scale, columns = self._quantised(table)

        def logits_of(h):
            q, scale = kernels.quantize_rows(h)
            return kernels.linear(q, scale, q_table, table_scale), kernels.dequantize_rows(q, scale), columns

        return _HeadLoss.apply(h, table, targets, weights, logits_of, torch.is_grad_enabled())


class FrameworkOps:
    """torch, with each kind of int8 rounding on or off."""
    name = "framework"

    def __init__(self, weights=False, activations=False, kv=False):
        self._weights, self._activations, self._kv = weights, activations, kv

    def _weight(self, weight):
        return fake_int8(weight) if self._weights else weight

    def _row(self, x):
        return fake_int8(x) if self._activations else x

    def embed(self, table, ids):
        return F.embedding(ids, self._weight(table))

    def norm(self, x, weight, epsilon):
        return _Norm.apply(x, weight, epsilon, False)

    def linear(self, x, *weights):
        return _FloatLinear.apply(self._row(x), *(self._weight(w) for w in weights))

    def rope_table(self, base, dim, count, device):
        return tuple(t.to(device) for t in kernels.rope_table(base, dim, count))

    def rope(self, x, table):
        return _Rope.apply(x, *table, False)

    def rows(self, x):
        return (fake_int8(x) if self._kv else x,)

    def attend(self, q, k, v, window, scale):
        return _Attention.apply(q[0], k[0], v[0], None, window, scale)

    def gate(self, gate, up):
        return _SiluGate.apply(gate, up, False)

    def logits(self, h, table):
        return F.linear(self._row(h), self._weight(table))

    def loss(self, h, table, targets, weights):
        exact = self._weight(table).detach()
        columns = exact.to(gradient_type)

        def logits_of(h):
            rows = self._row(h)
            return F.linear(rows, exact), rows, columns

        return _HeadLoss.apply(h, table, targets, weights, logits_of, torch.is_grad_enabled())
