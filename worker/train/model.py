"""The forward pass of the roost-native model, in float32, with optional fake quantisation.

Parameters are a flat dict, keyed by the names of the model file:

    model.embed_tokens.weight                            (vocab, hidden), embedding and head
    model.layers.N.self_attn.{q,o}_proj.weight           (out, in)
    model.layers.N.self_attn.{k,v}_proj.weight           (head_dim, hidden), producing layers only
    model.layers.N.self_attn.{q,k}_norm.weight           (head_dim); k_norm in producing layers only
    model.layers.N.mlp.{gate,up,down}_proj.weight        (out, in)
    model.layers.N.{input,post_attention}_layernorm.weight, model.norm.weight    (hidden)

Sliding layers use a banded form: blocks of `sliding_window` queries against their own and
the previous block of keys, which is exact and keeps a row's cost linear in its length.
"""
import jax
import jax.numpy as jnp
import numpy as np

CONFIG = {
    "architectures": ["RoostForCausalLM"],
    "model_type": "roost",
    "name": "folio",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "hidden_activation": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 100000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2,
    "kv_producer": [0, 0, 2, 3, 4, 4, 6, 3],
    "tie_word_embeddings": True,
    "attention_scale": 0.125,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "turn_token_id": 3,
    "text_token_id": 4,
    "chat_template": "speaker",
}

EMBED = "model.embed_tokens.weight"
MASKED = -1e30


def is_quantised(name):
    """Whether a parameter is stored as int8: every matrix; norms stay float32."""
    return name.endswith(".weight") and "norm" not in name


def layer_name(layer, leaf):
    return f"model.layers.{layer}.{leaf}.weight"


def init_params(config, seed):
    """Fresh parameters: normal matrices, outputs to the residual scaled down, norms at one."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layers, dim = config["num_hidden_layers"], config["head_dim"]
    heads = config["num_attention_heads"] * dim
    shapes = {EMBED: (config["vocab_size"], hidden)}
    for i in range(layers):
        shapes[layer_name(i, "self_attn.q_proj")] = (heads, hidden)
        if config["kv_producer"][i] == i:
            shapes[layer_name(i, "self_attn.k_proj")] = (dim, hidden)
            shapes[layer_name(i, "self_attn.v_proj")] = (dim, hidden)
            shapes[layer_name(i, "self_attn.k_norm")] = (dim,)
        shapes[layer_name(i, "self_attn.o_proj")] = (hidden, heads)
        shapes[layer_name(i, "self_attn.q_norm")] = (dim,)
        shapes[layer_name(i, "mlp.gate_proj")] = (inner, hidden)
        shapes[layer_name(i, "mlp.up_proj")] = (inner, hidden)
        shapes[layer_name(i, "mlp.down_proj")] = (hidden, inner)
        shapes[layer_name(i, "input_layernorm")] = (hidden,)
        shapes[layer_name(i, "post_attention_layernorm")] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)

    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            value = np.ones(shape)
        else:
            spread = 0.02 if name == EMBED else shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                spread *= (2 * layers) ** -0.5
            value = rng.normal(0, spread, shape)
        params[name] = jnp.asarray(value, jnp.float32)
    return params


def int8_scale(x):
    """Symmetric int8 scale over the last axis, kept as an axis of one: absmax / 127, 1 if all zero."""
    top = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return jnp.where(top > 0, top / 127, 1.0)


def fake_int8(x):
    """x rounded to its int8 grid along the last axis; the gradient passes straight through."""
    scale = int8_scale(x)
    return x + jax.lax.stop_gradient(jnp.round(x / scale) * scale - x)


def rms_norm(x, weight, eps):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope_tables(length, dim, theta):
    """cos and sin (length, dim / 2) of pos * theta^(-2i/dim)."""
    angle = np.arange(length)[:, None] * theta ** (-2 * np.arange(dim // 2) / dim)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rope(x, tables):
    """Half-split rotation of pairs (i, i + dim/2); x is (batch, length, heads, dim)."""
    cos, sin = (t[:, None, :] for t in tables)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q, k, v, visible, scale):
    """Plain attention: q (n, queries, heads, dim), k and v (n, keys, dim), visible (n, queries, keys)."""
    n, queries, heads, dim = q.shape
    folded = q.transpose(0, 2, 1, 3).reshape(n, heads * queries, dim)
    scores = jnp.einsum("nqd,nkd->nqk", folded, k * scale).reshape(n, heads, queries, -1)
    scores = jnp.where(visible[:, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).reshape(n, heads * queries, -1)
    out = jnp.einsum("nqk,nkd->nqd", weights, v)
    return out.reshape(n, heads, queries, dim).transpose(0, 2, 1, 3)


def attend_full(q, k, v, segment, scale):
    """Causal attention within segments; q (batch, length, heads, dim), segment (batch, length)."""
    at = np.arange(q.shape[1])
    visible = (at[None, :] <= at[:, None]) & (segment[:, :, None] == segment[:, None, :])
    return attend(q, k, v, visible, scale)


def attend_sliding(q, k, v, segment, scale, window):
    """The same, a query seeing `window` keys up to its own; the length is padded to whole blocks."""
    batch, length, heads, dim = q.shape
    blocks = -(-length // window)
    pad = blocks * window - length

    def blocked(x):
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, blocks, window, *x.shape[2:])

    def with_previous(x):
        before = jnp.pad(x, [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))[:, :-1]
        both = jnp.concatenate([before, x], axis=2)
        return both.reshape(batch * blocks, 2 * window, *x.shape[3:])

    marks = blocked(segment + 1)                      # 0 marks the block before the first
    i, j = np.arange(window)[:, None], np.arange(2 * window)[None, :]
    band = (j > i) & (j <= i + window)
    visible = band & (marks.reshape(-1, window, 1) == with_previous(marks)[:, None, :])
    out = attend(blocked(q).reshape(-1, window, heads, dim), with_previous(blocked(k)),
                 with_previous(blocked(v)), visible, scale)
    return out.reshape(batch, blocks * window, heads, dim)[:, :length]


def drop(x, rate, key):
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def hidden_states(params, ids, segment, config, quant_activations=False, dropout=0.0, key=None):
    """Final normed hidden states (batch, length, hidden), already on the head's input grid.

    ids and segment are (batch, length) int32; tokens see only their own segment.
    quant_activations puts the input of every projection and of the head, q, k and v on int8 grids.
    """
    eps, dim = config["rms_norm_eps"], config["head_dim"]
    batch, length = ids.shape
    grid = fake_int8 if quant_activations else lambda x: x
    tables = {
        "full_attention": rope_tables(length, dim, config["rope_theta"]),
        "sliding_attention": rope_tables(length, dim, config["rope_local_base_freq"]),
    }
    keys = jax.random.split(key, 2 * config["num_hidden_layers"]) if dropout else None
    producers = {}

    x = params[EMBED][ids]
    for layer, kind in enumerate(config["layer_types"]):
        def weight(leaf):
            return params[layer_name(layer, leaf)]

        h = grid(rms_norm(x, weight("input_layernorm"), eps))
        q = (h @ weight("self_attn.q_proj").T).reshape(batch, length, -1, dim)
        q = grid(rope(rms_norm(q, weight("self_attn.q_norm"), eps), tables[kind]))
        if config["kv_producer"][layer] == layer:
            k = (h @ weight("self_attn.k_proj").T)[:, :, None]
            k = grid(rope(rms_norm(k, weight("self_attn.k_norm"), eps), tables[kind]))[:, :, 0]
            v = grid(h @ weight("self_attn.v_proj").T)
            producers[layer] = k, v
        k, v = producers[config["kv_producer"][layer]]
        if kind == "full_attention":
            out = attend_full(q, k, v, segment, config["attention_scale"])
        else:
            out = attend_sliding(q, k, v, segment, config["attention_scale"], config["sliding_window"])
        out = grid(out.reshape(batch, length, -1)) @ weight("self_attn.o_proj").T
        x = x + (drop(out, dropout, keys[2 * layer]) if dropout else out)

        h = grid(rms_norm(x, weight("post_attention_layernorm"), eps))
        h = jax.nn.silu(h @ weight("mlp.gate_proj").T) * (h @ weight("mlp.up_proj").T)
        out = grid(h) @ weight("mlp.down_proj").T
        x = x + (drop(out, dropout, keys[2 * layer + 1]) if dropout else out)
    return grid(rms_norm(x, params["model.norm.weight"], eps))


def fake_int8_weights(params):
    """Every matrix on its int8 grid, per output channel (the embedding per row, for both uses)."""
    return {name: fake_int8(p) if is_quantised(name) else p for name, p in params.items()}


def logits(params, ids, segment, config, quant_activations=False):
    """(batch, length, vocab) float32."""
    return hidden_states(params, ids, segment, config, quant_activations) @ params[EMBED].T


def token_losses(params, rows, config, quant_weights=False, quant_activations=False, dropout=0.0, key=None):
    """(sum of the targets' negative log likelihoods in nats, number of targets) of packed rows.

    rows is (ids, segment, learn), each (batch, length + 1).
    """
    ids, segment, learn = rows
    if quant_weights:
        params = fake_int8_weights(params)
    h = hidden_states(params, ids[:, :-1], segment[:, :-1], config, quant_activations, dropout, key)
    scores = h @ params[EMBED].T
    target = jnp.take_along_axis(scores, ids[:, 1:, None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(scores, axis=-1) - target
    counts = learn[:, 1:].astype(jnp.float32)
    return jnp.sum(loss * counts), jnp.sum(counts)
