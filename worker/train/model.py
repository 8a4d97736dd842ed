"""The roost-native model: configuration, parameters and forward pass over the operations of ops.py.

Parameters are a dict, keyed by the names of the model file:

    model.embed_tokens.weight                            (vocab, hidden), embedding and head
    model.layers.N.self_attn.{q,o}_proj.weight           (out, in)
    model.layers.N.self_attn.{k,v}_proj.weight           (KV heads * head_dim, hidden), producing layers only
    model.layers.N.self_attn.{q,k}_norm.weight           (head_dim); k_norm in producing layers only
    model.layers.N.mlp.{gate,up,down}_proj.weight        (out, in)
    model.layers.N.{input,post_attention}_layernorm.weight, model.norm.weight    (hidden)
"""
import torch

import kernels

EMBED = "model.embed_tokens.weight"
LOCAL, GLOBAL = "sliding_attention", "full_attention"
SHARINGS = ("none", "neighbours", "all")
WIDTH_MULTIPLE = 16           # of floats: tensors of a model file begin at multiples of 64 bytes


def share_kv(layer_types, sharing):
    """kv_producer of each layer. neighbours: local layers in pairs between global ones; all: globals read the first global too."""
    producers, run, first_global = [], 0, None
    for layer, kind in enumerate(layer_types):
        producer = layer
        if kind == GLOBAL:
            run = 0
            if sharing == "all" and first_global is not None:
                producer = first_global
            first_global = layer if first_global is None else first_global
        else:
            if sharing != "none" and run % 2 == 1:
                producer = layer - 1
            run += 1
        producers.append(producer)
    return producers


def make_config(hidden=256, inner=640, layers=12, heads=4, kv_heads=1, head_dim=64, window=128, global_every=6, sharing="all",
                context=8192, vocab=4096, name="folio"):
    """config.json of a model directory. global_every 1: every layer is global. ValueError says what no engine takes."""
    if sharing not in SHARINGS:
        raise ValueError(f"sharing is one of {', '.join(SHARINGS)}, not {sharing}")
    if min(hidden, inner, layers, heads, kv_heads, head_dim, window, global_every, context, vocab) < 1:
        raise ValueError("hidden, inner, layers, heads, kv_heads, head_dim, window, global_every, context and vocab are at least 1")
    if layers % global_every or heads % kv_heads:
        raise ValueError(f"layers ({layers}) is a multiple of global_every ({global_every}), heads ({heads}) of kv_heads ({kv_heads})")
    if any(width % WIDTH_MULTIPLE for width in (hidden, inner, head_dim, vocab)) or head_dim > kernels.DIM_MAX:
        raise ValueError(f"hidden, inner, head_dim and vocab are multiples of {WIDTH_MULTIPLE}, head_dim at most {kernels.DIM_MAX}")
    types = [GLOBAL if i % global_every == global_every - 1 else LOCAL for i in range(layers)]
    return {
        "architectures": ["RoostForCausalLM"],
        "model_type": "roost",
        "name": name,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_activation": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 100000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": window,
        "layer_types": types,
        "kv_producer": share_kv(types, sharing),
        "tie_word_embeddings": True,
        "attention_scale": head_dim ** -0.5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "turn_token_id": 3,
        "text_token_id": 4,
        "chat_template": "speaker",
    }


def is_matrix(name):
    """Whether a parameter is stored as int8: every matrix; norms stay float32."""
    return "norm" not in name


def layer_name(layer, leaf):
    return f"model.layers.{layer}.{leaf}.weight"


def parameter_shapes(config):
    """{name: shape}, in the order of the model file."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    width, kv_width = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {EMBED: (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        shapes[layer_name(i, "self_attn.q_proj")] = (width, hidden)
        if config["kv_producer"][i] == i:
            shapes[layer_name(i, "self_attn.k_proj")] = (kv_width, hidden)
            shapes[layer_name(i, "self_attn.v_proj")] = (kv_width, hidden)
            shapes[layer_name(i, "self_attn.k_norm")] = (dim,)
        shapes[layer_name(i, "self_attn.o_proj")] = (hidden, width)
        shapes[layer_name(i, "self_attn.q_norm")] = (dim,)
        shapes[layer_name(i, "mlp.gate_proj")] = (inner, hidden)
        shapes[layer_name(i, "mlp.up_proj")] = (inner, hidden)
        shapes[layer_name(i, "mlp.down_proj")] = (hidden, inner)
        shapes[layer_name(i, "input_layernorm")] = (hidden,)
        shapes[layer_name(i, "post_attention_layernorm")] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def init_params(config, seed):
    """Fresh parameters: normal matrices, outputs to the residual scaled down, norms at one. The same on every device."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in parameter_shapes(config).items():
        if not is_matrix(name):
            params[name] = torch.ones(shape)
            continue
        spread = 0.02 if name == EMBED else shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            spread *= (2 * config["num_hidden_layers"]) ** -0.5
        params[name] = torch.randn(shape, generator=generator) * spread
    return params


def drop(x, rate):
    return torch.nn.functional.dropout(x, rate) if rate else x


def hidden_states(params, ids, config, ops, dropout=0.0):
    """The last norm's output (sequences * length, hidden) of ids (sequences, length)."""
    sequences, length = ids.shape
    dim, epsilon, scale = config["head_dim"], config["rms_norm_eps"], config["attention_scale"]
    bases = {GLOBAL: config["rope_theta"], LOCAL: config["rope_local_base_freq"]}
    tables = {kind: ops.rope_table(base, dim, length, ids.device) for kind, base in bases.items()}
    stored = {}                                        # producer: (k, v)

    def heads_of(x):
        return x.view(sequences, length, -1, dim)

    x = drop(ops.embed(params[EMBED], ids.reshape(-1)), dropout)
    for layer, kind in enumerate(config["layer_types"]):
        def weight(leaf):
            return params[layer_name(layer, leaf)]

        h = ops.norm(x, weight("input_layernorm"), epsilon)
        producer = config["kv_producer"][layer]
        if producer == layer:
            q, k, v = ops.linear(h, weight("self_attn.q_proj"), weight("self_attn.k_proj"), weight("self_attn.v_proj"))
            k = ops.norm(heads_of(k), weight("self_attn.k_norm"), epsilon)
            stored[layer] = ops.rows(ops.rope(k, tables[kind])), ops.rows(heads_of(v))
        else:
            (q,) = ops.linear(h, weight("self_attn.q_proj"))
        q = ops.rows(ops.rope(ops.norm(heads_of(q), weight("self_attn.q_norm"), epsilon), tables[kind]))
        window = config["sliding_window"] if kind == LOCAL else 0
        attended = ops.attend(q, *stored[producer], window, scale).view(sequences * length, -1)
        x = x + drop(ops.linear(attended, weight("self_attn.o_proj"))[0], dropout)

        h = ops.norm(x, weight("post_attention_layernorm"), epsilon)
        gated = ops.gate(*ops.linear(h, weight("mlp.gate_proj"), weight("mlp.up_proj")))
        x = x + drop(ops.linear(gated, weight("mlp.down_proj"))[0], dropout)
    return ops.norm(x, params["model.norm.weight"], epsilon)


def logits(params, ids, config, ops):
    """(length, vocab) of one sequence of ids (length)."""
    return ops.logits(hidden_states(params, ids[None], config, ops), params[EMBED])


def loss(params, ids, learn, config, ops, dropout=0.0):
    """(sum of the targets' negative log likelihoods in nats, number of targets); ids, learn (sequences, length + 1)."""
    h = hidden_states(params, ids[:, :-1], config, ops, dropout)
    weights = learn[:, 1:].reshape(-1).float()
    return ops.loss(h, params[EMBED], ids[:, 1:].reshape(-1), weights), weights.sum()
