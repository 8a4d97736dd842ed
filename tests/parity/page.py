"""docs/numerics.md once more, written from the page: what a roost-int8 model computes and which token is drawn, down to the bit.

Nothing is fast here and nothing is taken from the C code. Floats are float32 arrays, so that every operation rounds once; integers are
int64, so that every sum is exact. Section numbers are the page's. `test_page.py` compares the bits with the engine's."""
import fractions
import json
import math
import pathlib

import numpy as np

F = np.float32
BLOCK, UNIT = 64, 1024
np.seterr(over="ignore")      # an infinity is a result like others


def constant(text):
    return F(float.fromhex(text) if "x" in text else float(text))


# ---- 1: arithmetic ----

LOG2E = constant("0x1.715476p+0")


def fma(a, b, c):
    """a * b + c rounded once: the product is exact in double, the sum is rounded to odd, and float32 is far enough below double."""
    product = np.multiply(a, b, dtype=np.float64)
    c = np.asarray(c, np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)      # what the sum lost, exactly
    odd = np.asarray(total).view(np.int64) & 1
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & (odd == 0), np.nextafter(total, toward), total).astype(F)


def horner(p, x, constants):
    for c in constants:
        p = fma(p, x, c)
    return p


# ---- 2: elementary functions ----

EXP2 = [constant(c) for c in ("1.535336188319500e-4", "1.339887440266574e-3", "9.618437357674640e-3", "5.550332471162809e-2",
                              "2.402264791363012e-1", "6.931472028550421e-1", "1")]
TANH = [constant(c) for c in ("-5.70498872745e-3", "2.06390887954e-2", "-5.37397155531e-2", "1.33314422036e-1", "-3.33332819422e-1")]
LOG = [constant(c) for c in ("7.0376836292e-2", "-1.1514610310e-1", "1.1676998740e-1", "-1.2420140846e-1", "1.4249322787e-1",
                             "-1.6668057665e-1", "2.0000714765e-1", "-2.4999993993e-1", "3.3333331174e-1")]


def exp2(x):
    x = np.clip(np.asarray(x, F), F(-152), F(129))
    n = np.rint(x)
    p = horner(np.broadcast_to(EXP2[0], x.shape), x - n, EXP2[1:])
    n = n.astype(np.int64)
    half = n >> 1
    return (p * np.ldexp(F(1), half).astype(F)) * np.ldexp(F(1), n - half).astype(F)


def tanh(x):
    z = x * x
    p = horner(np.broadcast_to(TANH[0], x.shape), z, TANH[1:])
    small = fma(p * z, x, x)
    large = F(1) - F(2) / (exp2(np.abs(x) * (F(2) * LOG2E)) + F(1))
    return np.where(np.abs(x) < F(0.625), small, np.copysign(large, x))


def log(x):
    x, taken = F(x), 0
    if x < F(2.0**-126):
        if x == 0:
            return F(-np.inf)
        x, taken = x * F(2.0**24), 24
    m, e = math.frexp(float(x))                          # x = m * 2^e, m in [0.5, 1)
    if F(m).view(np.uint32) < 0x3f3504f3:
        m, e = 2 * m, e - 1
    e, f = F(e - taken), F(m) - F(1)
    z = f * f
    p = horner(LOG[0], f, LOG[1:])
    y = (f * z) * p
    y = fma(e, constant("-2.12194440e-4"), y)
    y = fma(z, F(-0.5), y)
    return F(fma(e, F(0.693359375), f + y))


# ---- 3: integers ----

PI_PLACES = 0x243f6a8885a308d313198a2e03707344
SIGN = np.array([-1 if PI_PLACES >> (127 - i) & 1 else 1 for i in range(128)], F)
TINY = F(2.0**-100)


def integers(x, most):
    """(n, scale) of rows, for scheme dynamic (127) and wide (32512)."""
    absmax = np.abs(x).max(axis=-1, keepdims=True)
    assert np.isfinite(absmax).all()
    good = absmax >= TINY
    safe = np.where(good, absmax, F(1))
    n = np.where(good, np.rint(x * (F(most) / safe)), F(0))
    return n.astype(np.int64), np.where(good, safe / F(most), F(1))[..., 0]


def rotated(x):
    t = (x.reshape(len(x), -1, 128) * SIGN).copy()
    for d in (1, 2, 4, 8, 16, 32, 64):
        low = np.array([i for i in range(128) if i & d == 0])
        t[..., low], t[..., low + d] = t[..., low] + t[..., low + d], t[..., low] - t[..., low + d]
    return t.reshape(x.shape)


def lin(matrix, x):
    """(rows, columns) -> (rows, outputs). A wide row is 256 * high + low, and int64 holds its sum as it is."""
    if matrix.scheme == "static":
        inverse = F(1) / matrix.input_scale
        n = np.clip(np.rint(x * inverse), F(-127), F(127)).astype(np.int64)
        scale = np.full(len(x), matrix.input_scale, F)
    else:
        n, scale = integers(rotated(x) if matrix.scheme == "rotated" else x, 32512 if matrix.scheme == "wide" else 127)
    return ((n @ matrix.q.T).astype(F) * scale[:, None]) * matrix.scale


# ---- 4: RMSNorm ----

def rmsnorm(x, weight, epsilon):
    n = x.shape[-1]
    lane = np.zeros(x.shape[:-1] + (128,), F)
    for i in range(n):
        lane[..., i % 128] = fma(x[..., i], x[..., i], lane[..., i % 128])
    for distance in (64, 32, 16, 8, 4, 2, 1):
        lane = lane[..., :distance] + lane[..., distance:2 * distance]
    inverse = F(1) / np.sqrt(lane / F(n) + epsilon)
    return x * inverse if weight is None else (x * inverse) * weight


# ---- 5: rotary positions; Python's floats are doubles ----

def log2(base):
    m, n = math.frexp(base)
    m, n = 2 * m, n - 1
    t = (m - 1) / (m + 1)
    z, s = t * t, 0.0
    for k in range(20, -1, -1):
        s = s * z + 1 / (2 * k + 1)
    return n + (2 * t * s) * float.fromhex("0x1.71547652b82fep+0")


def power_of_two(x):
    n = round(x)
    g, s = (x - n) * float.fromhex("0x1.62e42fefa39efp-1"), 1.0
    for k in range(16, 0, -1):
        s = 1 + (s * g) / k
    return s * 2.0**n


def cos_sin(angle):
    k = round(angle * float.fromhex("0x1.45f306dc9c883p-1"))
    x = (angle - k * float.fromhex("0x1.921fb544p+0")) - k * float.fromhex("0x1.0b4611a6p-34")
    x = x - k * float.fromhex("0x1.3198a2e037073p-69")
    z, c, s = x * x, 1.0, 1.0
    for j in range(10, 0, -1):
        c = 1 - (c * z) * (1 / ((2 * j - 1) * (2 * j)))
        s = 1 - (s * z) * (1 / ((2 * j) * (2 * j + 1)))
    s = x * s
    return (c, -s, -c, s)[k % 4], (s, c, -s, -c)[k % 4]


def rotary(kind, dim, positions):
    """Cosines and sines (positions, 1, dim / 2) of a layer type."""
    exponent = log2(kind["base"])
    table = np.zeros((positions, 1, dim // 2, 2), F)
    for i in range(dim // 2):
        frequency = power_of_two(-(2 * i / dim) * exponent) / kind["scale"] if i < kind["pairs"] else 0.0
        for position in range(positions):
            table[position, 0, i] = cos_sin(position * frequency)
    return table[..., 0], table[..., 1]


def rotate(x, table):
    """(rows, heads, dim), the rows from position 0 on."""
    cos, sin = table
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    turned_a, turned_b = a * cos - b * sin, b * cos + a * sin
    return np.concatenate([np.where(sin == 0, a, turned_a), np.where(sin == 0, b, turned_b)], axis=-1)


# ---- 6: activations ----

def activation(name, x):
    if name == "silu":
        return x / (F(1) + exp2(x * -LOG2E))
    return (F(0.5) * x) * (F(1) + tanh(x * fma(x * x, constant("0x1.24434p-5"), constant("0x1.988454p-1"))))


# ---- 7: attention ----

def fold(state, top, total, o, gain=None):
    """A block (with its gain) into a unit, or a unit into the result."""
    if state is None:
        return top, total, o if gain is None else o.astype(F) * gain[:, None]
    high = np.maximum(state[0], top)
    keep, join = exp2(state[0] - high), exp2(top - high)
    factor = join if gain is None else gain * join
    return high, fma(total, join, state[1] * keep), fma(o.astype(F), factor[:, None], state[2] * keep[:, None])


def attend_block(q, c, k, sk, v, sv):
    """The visible keys of one block: q (heads, d), k and v (heads, keys, d)."""
    s = ((k @ q[:, :, None])[:, :, 0].astype(F) * c[:, None]) * sk
    m = s.max(axis=1)
    e = exp2(s - m[:, None])
    a = e * sv
    most = a.max(axis=1)
    p = np.rint(a * (F(255) / most)[:, None]).astype(np.int64)
    total = np.rint(e * F(65536)).astype(np.int64).sum(axis=1)
    return m, total.astype(F) * F(2.0**-16), (p[:, None, :] @ v)[:, 0], most / F(255)


def attention(q, sq, kv, i, scale, window, sinks):
    """The query row at position i: q (heads, d) -> (heads, d)."""
    k, sk, v, sv = kv
    visible = np.array([j for j in range(i + 1) if window == 0 or j > i - window or j < sinks])
    result = None
    for number in np.unique(visible // UNIT):
        unit = None
        for block in np.unique(visible[visible // UNIT == number] // BLOCK):
            j = visible[visible // BLOCK == block]
            unit = fold(unit, *attend_block(q, sq * scale, k[:, j], sk[:, j], v[:, j], sv[:, j]))
        result = fold(result, *unit)
    _, total, o = result
    return o * (F(1) / total)[:, None]


# ---- 8: forward pass ----

class Matrix:
    def __init__(self, tensors, metadata, name):
        self.q = tensors[name].astype(np.int64)
        self.scale = tensors[name + "_scale"]
        self.scheme = metadata.get("activation_scheme." + name, metadata["activation_scheme"])
        self.input_scale = tensors[name + "_input_scale"][0] if self.scheme == "static" else None


class Model:
    """config.json and model.safetensors, by the names of model_config.h and model.h."""

    def __init__(self, directory):
        directory = pathlib.Path(directory)
        self.config = json.loads((directory / "config.json").read_text())
        data = (directory / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        self.metadata = header.pop("__metadata__")
        kinds = {"I8": np.int8, "F32": np.dtype("<f4")}
        self.tensors = {name: np.frombuffer(data[8 + size:][slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"])
                        for name, t in header.items()}
        get, dim = self.config.get, self.config["head_dim"]
        self.layers = len(self.config["layer_types"])
        heads, global_dim = self.config["num_key_value_heads"], get("global_head_dim", dim)
        self.kinds = {
            "sliding_attention": {"dim": dim, "heads": heads, "window": get("sliding_window"), "sinks": get("attention_sinks", 0),
                                  "base": get("rope_local_base_freq"), "scale": get("rope_local_scale", 1.0),
                                  "pairs": get("rope_local_pairs", dim // 2)},
            "full_attention": {"dim": global_dim, "heads": get("global_num_key_value_heads", heads), "window": 0, "sinks": 0,
                               "base": get("rope_theta"), "scale": get("rope_global_scale", 1.0),
                               "pairs": get("rope_global_pairs", global_dim // 2)},
        }
        self.epsilon = F(self.config["rms_norm_eps"])
        self.score_scale = F(get("attention_scale", 1 / math.sqrt(dim))) * LOG2E
        self.sandwich = get("norm_placement", "pre") == "sandwich"
        self.per_layer = get("hidden_size_per_layer_input", 0)

    def lin(self, name, x):
        return lin(Matrix(self.tensors, self.metadata, f"model.{name}.weight"), x)

    def norm(self, name, x):
        return rmsnorm(x, self.tensors[f"model.{name}.weight"], self.epsilon)

    def dequantised(self, name, tokens):
        return self.tensors[f"model.{name}.weight"][tokens].astype(F), self.tensors[f"model.{name}.weight_scale"][tokens]

    def per_layer_inputs(self, tokens, x):
        p, c = self.per_layer, self.config["hidden_size"]
        f = self.lin("per_layer_model_projection", x).reshape(len(x), self.layers, p)
        u = self.norm("per_layer_projection_norm", f * F(1 / math.sqrt(c)))
        q, scale = self.dequantised("embed_tokens_per_layer", tokens)
        e = (q.reshape(u.shape) * scale[:, :, None]) * F(math.sqrt(p))
        return (u + e) * constant("0x1.6a09e6p-1")

    def heads(self, x, dim, norm):
        x = x.reshape(len(x), -1, dim)
        return x if norm is None else rmsnorm(x, *norm)

    def attend(self, layer, h, stored, tables):
        name, kind = f"layers.{layer}.self_attn.", self.kinds[self.config["layer_types"][layer]]
        dim, table = kind["dim"], tables[self.config["layer_types"][layer]]

        def norm(leaf):
            return (self.tensors[f"model.{name}{leaf}.weight"], self.epsilon) if self.config.get("qk_norm", True) else None

        producer = self.config["kv_producer"][layer]
        if producer == layer:
            k = rotate(self.heads(self.lin(name + "k_proj", h), dim, norm("k_norm")), table)
            v = self.heads(self.lin(name + "v_proj", h), dim, (None, self.epsilon) if self.config.get("v_norm", False) else None)
            stored[layer] = integers(k, 127) + integers(v, 127)
        q, sq = integers(rotate(self.heads(self.lin(name + "q_proj", h), dim, norm("q_norm")), table), 127)
        group = q.shape[1] // kind["heads"]
        kv = [np.repeat(np.swapaxes(part, 0, 1), group, axis=0) for part in stored[producer]]     # (heads, positions, ...)
        rows = [attention(q[i], sq[i], kv, i, self.score_scale, kind["window"], kind["sinks"]) for i in range(len(q))]
        return np.array(rows).reshape(len(q), -1)

    def layer(self, layer, x, stored, tables, per_layer):
        name = f"layers.{layer}."
        a = self.lin(name + "self_attn.o_proj", self.attend(layer, self.norm(name + "input_layernorm", x), stored, tables))
        x = x + (self.norm(name + "post_attention_layernorm", a) if self.sandwich else a)
        h = self.norm(name + ("pre_feedforward_layernorm" if self.sandwich else "post_attention_layernorm"), x)
        act = self.config["hidden_activation"]
        g = activation(act, self.lin(name + "mlp.gate_proj", h)) * self.lin(name + "mlp.up_proj", h)
        d = self.lin(name + "mlp.down_proj", g)
        x = x + (self.norm(name + "post_feedforward_layernorm", d) if self.sandwich else d)
        if per_layer is None:
            return x
        g = activation(act, self.lin(name + "per_layer_input_gate", x)) * per_layer[:, layer]
        x = x + self.norm(name + "post_per_layer_input_norm", self.lin(name + "per_layer_projection", g))
        return x * self.tensors[f"model.{name}layer_scalar"][0]

    def logits(self, tokens):
        """(tokens, vocab) of a text from position 0 on."""
        q, scale = self.dequantised("embed_tokens", tokens)
        x = (q * scale[:, None]) * F(self.config.get("embedding_scale", 1.0))
        per_layer = self.per_layer_inputs(tokens, x) if self.per_layer else None
        tables = {name: rotary(kind, kind["dim"], len(tokens)) for name, kind in self.kinds.items() if name in self.config["layer_types"]}
        stored = {}
        for layer in range(self.layers):
            x = self.layer(layer, x, stored, tables, per_layer)
        logits = self.lin("embed_tokens", self.norm("norm", x))
        cap = F(self.config.get("final_logit_softcapping", 0))
        return cap * tanh(logits / cap) if cap > 0 else logits


# ---- 9: sampling ----

GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
FLOAT_MAX = np.finfo(F).max


def mix(z):
    z &= MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def noise(seed, choice, position, token):
    h = mix(mix(mix(seed + GAMMA) ^ (choice * 2**32 + position)) + (token + 1) * GAMMA)
    return -log(-log(F(2 * (h >> 41) + 1) * F(2.0**-24)))


def weights(v, c):
    """Of values against the highest of them."""
    e = exp2((v - v.max()) * c)
    return [int(w) for w in np.rint(e.astype(np.float64) * 2.0**32)]


def adjusted(logits, o, prompt, reply):
    v = logits.copy()
    for token, bias in o.get("bias", {}).items():
        v[token] = v[token] + F(bias)
    r, presence, frequency = F(o.get("repetition", 1)), F(o.get("presence", 0)), F(o.get("frequency", 0))
    for token in set(prompt) | set(reply):
        if r not in (0, 1):
            v[token] = v[token] / r if v[token] > 0 else v[token] * r
        if token in reply:
            v[token] = (v[token] - presence) - (frequency * F(reply.count(token)))
    return np.where(np.isfinite(logits), np.clip(v, -FLOAT_MAX, FLOAT_MAX), v)


def pick(logits, o, prompt, reply, choice=0):
    """The next token behind prompt and reply, whose options are o: a dictionary of those that are on."""
    v = adjusted(logits, o, prompt, reply)
    out = set(o.get("masked", ())) | (set(o.get("ends", ())) if len(reply) < o.get("tokens_min", 0) else set())
    order = sorted((i for i in range(len(v)) if i not in out), key=lambda i: (-v[i], i))
    t = F(o.get("temperature", 0))
    if t == 0:
        return order[0]
    top = v[order[0]]
    w = weights(v[order], min(LOG2E / t, FLOAT_MAX))
    score = (v - top) / t
    kept = len(order) if o.get("top_k", 0) == 0 else min(o["top_k"], len(order))
    if o.get("top_p", 0) not in (0, 1):
        target = math.ceil(fractions.Fraction(float(F(o["top_p"]))) * sum(w[:kept]))
        reached, kept = 0, 0
        while reached < target:
            reached, kept = reached + w[kept], kept + 1
    least = fractions.Fraction(float(F(o.get("min_p", 0)))) * 2**32
    left = [i for i, weight in zip(order[:kept], w) if weight >= least]
    position = len(prompt) + len(reply)
    return max(left, key=lambda i: (score[i] + noise(o.get("seed", 0), choice, position, i), -i))


def logprobs(logits):
    """Of all ids, and the ids from the most likely on."""
    top = logits.max()
    total = log(F(sum(weights(logits, LOG2E))) * F(2.0**-32))
    return (logits - top) - total, sorted(range(len(logits)), key=lambda i: (-logits[i], i))
