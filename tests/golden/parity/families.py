"""The models of the parity test: real tensor names, layer patterns and head sizes on small widths and vocabularies.

`FAMILIES[name]` is a function of the seed that gives (config, {tensor name: bfloat16 bits}); `write_checkpoint` makes the directory.
What each keeps of its original is said beside it; config.json has the keys that the published checkpoints have.
"""
import json
import math
import pathlib

import checkpoint

VOCAB = 384
HIDDEN = 128
INTERMEDIATE = 256
PER_LAYER = 128
HEADS = 4
EPSILON = 1e-6


class Weights:
    """Draws tensors by name and keeps them in file order."""

    def __init__(self, seed, prefix):
        self.seed, self.prefix, self.tensors = seed, prefix, {}

    def matrix(self, name, rows, columns, gain=1.0):
        """Unit inputs give outputs of standard deviation `gain`."""
        name = self.prefix + name
        self.tensors[name] = checkpoint.normal(name, self.seed, (rows, columns), gain / math.sqrt(columns))

    def norm(self, name, width, low, high):
        name = self.prefix + name
        self.tensors[name] = checkpoint.uniform(name, self.seed, (width,), low, high)

    def other(self, name, *shape):
        """A tensor of a tower that text does not pass through."""
        self.tensors[name] = checkpoint.normal(name, self.seed, shape, 0.02)


def local_global(layers, period):
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]


def gemma3_config(kv_heads, layers, **more):
    """The keys of google/gemma-3-1b-it."""
    return {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 5], "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": HIDDEN, "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE, "max_position_embeddings": 1024, "model_type": "gemma3_text",
        "num_attention_heads": HEADS, "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": EPSILON, "rope_local_base_freq": 10000, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": 24, "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": VOCAB, **more,
    }


def gemma3_weights(config, seed, prefix):
    """Norm weights are stored less one. Query and key norms around 1.7 spread scores by about 3 (two unit norms: by 1). Attention's
    results are large beside the token's own row: a tied random model in which they are small repeats itself."""
    w = Weights(seed, prefix)
    size, kv = HEADS * 256, config["num_key_value_heads"] * 256
    w.matrix("embed_tokens.weight", VOCAB, HIDDEN)
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        w.norm(at + "input_layernorm.weight", HIDDEN, -0.5, 1.5)
        w.matrix(at + "self_attn.q_proj.weight", size, HIDDEN)
        w.matrix(at + "self_attn.k_proj.weight", kv, HIDDEN)
        w.matrix(at + "self_attn.v_proj.weight", kv, HIDDEN)
        w.matrix(at + "self_attn.o_proj.weight", HIDDEN, size)
        w.norm(at + "self_attn.q_norm.weight", 256, 0.3, 1.1)
        w.norm(at + "self_attn.k_norm.weight", 256, 0.3, 1.1)
        w.norm(at + "post_attention_layernorm.weight", HIDDEN, 0.2, 3.2)
        w.norm(at + "pre_feedforward_layernorm.weight", HIDDEN, -0.5, 1.5)
        w.matrix(at + "mlp.gate_proj.weight", INTERMEDIATE, HIDDEN)
        w.matrix(at + "mlp.up_proj.weight", INTERMEDIATE, HIDDEN)
        w.matrix(at + "mlp.down_proj.weight", HIDDEN, INTERMEDIATE)
        w.norm(at + "post_feedforward_layernorm.weight", HIDDEN, -0.6, 0.4)
    w.norm("norm.weight", HIDDEN, 1.0, 3.0)
    return w


def gemma3(seed, kv_heads=1, layers=12):
    """google/gemma-3-270m and 1b: one KV head, five local layers to a global one, norms on both sides."""
    config = gemma3_config(kv_heads, layers)
    return config, gemma3_weights(config, seed, "model.").tensors


def gqa(seed):
    """Gemma 3's layer with two KV heads for four query heads, as its larger models have it."""
    return gemma3(seed, kv_heads=2, layers=7)


def mha(seed):
    """Gemma 3's layer with a KV head for every query head."""
    return gemma3(seed, kv_heads=4, layers=7)


def gemma3_linear_rope(seed):
    """google/gemma-3-4b: positions of global layers divided by 8, inside the wrapper with a vision tower, in the names and with the
    scant text_config that it was published with. The tower is cut to one layer."""
    text = gemma3_config(2, 6, rope_scaling={"factor": 8.0, "rope_type": "linear"})
    kept = ("head_dim", "hidden_size", "intermediate_size", "max_position_embeddings", "model_type", "num_attention_heads",
            "num_hidden_layers", "num_key_value_heads", "rope_scaling", "sliding_window", "vocab_size")
    vision = {"hidden_size": 32, "image_size": 28, "intermediate_size": 64, "model_type": "siglip_vision_model",
              "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 14, "vision_use_head": False}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 385, "eoi_token_index": 387,
        "eos_token_id": [1, 5], "image_token_index": 388, "initializer_range": 0.02, "mm_tokens_per_image": 1,
        "model_type": "gemma3", "text_config": {key: text[key] for key in kept}, "torch_dtype": "bfloat16", "vision_config": vision,
    }
    w = gemma3_weights(text, seed, "language_model.model.")
    w.other("multi_modal_projector.mm_input_projection_weight", 32, HIDDEN)
    w.other("multi_modal_projector.mm_soft_emb_norm.weight", 32)
    tower = "vision_tower.vision_model."
    w.other(tower + "embeddings.patch_embedding.weight", 32, 3, 14, 14)
    w.other(tower + "embeddings.patch_embedding.bias", 32)
    w.other(tower + "embeddings.position_embedding.weight", 4, 32)
    for part, rows, columns in (("self_attn.q_proj", 32, 32), ("self_attn.k_proj", 32, 32), ("self_attn.v_proj", 32, 32),
                                ("self_attn.out_proj", 32, 32), ("mlp.fc1", 64, 32), ("mlp.fc2", 32, 64)):
        w.other(f"{tower}encoder.layers.0.{part}.weight", rows, columns)
        w.other(f"{tower}encoder.layers.0.{part}.bias", rows)
    for part in ("encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2", "post_layernorm"):
        w.other(f"{tower}{part}.weight", 32)
        w.other(f"{tower}{part}.bias", 32)
    return config, w.tensors


def gemma4_text_config(kv_heads, layers, period, shared, **more):
    """The keys of google/gemma-4-E2B's text_config."""
    return {
        "attention_bias": False, "attention_dropout": 0.0, "attention_k_eq_v": False, "bos_token_id": 2, "dtype": "bfloat16",
        "enable_moe_block": False, "eos_token_id": 1, "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": HIDDEN, "hidden_size_per_layer_input": PER_LAYER,
        "initializer_range": 0.02, "intermediate_size": INTERMEDIATE, "layer_types": local_global(layers, period),
        "max_position_embeddings": 1024, "model_type": "gemma4_text", "moe_intermediate_size": None, "num_attention_heads": HEADS,
        "num_experts": None, "num_global_key_value_heads": None, "num_hidden_layers": layers, "num_key_value_heads": kv_heads,
        "num_kv_shared_layers": shared, "pad_token_id": 0, "rms_norm_eps": EPSILON,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 24, "tie_word_embeddings": True, "top_k_experts": None, "use_bidirectional_attention": None,
        "use_cache": True, "use_double_wide_mlp": False, "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, **more,
    }


def gemma4_weights(config, seed, prefix):
    """Norm weights multiply as they are. Scores are not divided by the head's root, so query and key norms around 0.42 (local) and
    0.345 (global) spread them by about 2.5."""
    w = Weights(seed, prefix)
    layers = config["num_hidden_layers"]
    w.matrix("embed_tokens.weight", VOCAB, HIDDEN)
    w.matrix("embed_tokens_per_layer.weight", VOCAB, layers * PER_LAYER, gain=math.sqrt(layers))
    w.matrix("per_layer_model_projection.weight", layers * PER_LAYER, HIDDEN, gain=math.sqrt(HIDDEN))
    w.norm("per_layer_projection_norm.weight", PER_LAYER, 0.5, 1.5)
    for i, kind in enumerate(config["layer_types"]):
        at = f"layers.{i}."
        head = 256 if kind == "sliding_attention" else 512
        middle = 0.42 if kind == "sliding_attention" else 0.345
        reuses = i >= layers - config["num_kv_shared_layers"]
        wide = INTERMEDIATE * (2 if reuses and config["use_double_wide_mlp"] else 1)
        w.norm(at + "input_layernorm.weight", HIDDEN, 0.5, 2.5)
        w.matrix(at + "self_attn.q_proj.weight", HEADS * head, HIDDEN)
        w.norm(at + "self_attn.q_norm.weight", head, middle * 0.75, middle * 1.25)
        # Published checkpoints have K and V weights in layers that reuse another's; nothing reads them.
        w.matrix(at + "self_attn.k_proj.weight", config["num_key_value_heads"] * head, HIDDEN)
        w.matrix(at + "self_attn.v_proj.weight", config["num_key_value_heads"] * head, HIDDEN)
        w.norm(at + "self_attn.k_norm.weight", head, middle * 0.75, middle * 1.25)
        w.matrix(at + "self_attn.o_proj.weight", HIDDEN, HEADS * head)
        w.norm(at + "post_attention_layernorm.weight", HIDDEN, 0.2, 0.8)
        w.norm(at + "pre_feedforward_layernorm.weight", HIDDEN, 0.5, 2.5)
        w.matrix(at + "mlp.gate_proj.weight", wide, HIDDEN)
        w.matrix(at + "mlp.up_proj.weight", wide, HIDDEN)
        w.matrix(at + "mlp.down_proj.weight", HIDDEN, wide)
        w.norm(at + "post_feedforward_layernorm.weight", HIDDEN, 0.3, 0.9)
        w.matrix(at + "per_layer_input_gate.weight", PER_LAYER, HIDDEN)
        w.matrix(at + "per_layer_projection.weight", HIDDEN, PER_LAYER)
        w.norm(at + "post_per_layer_input_norm.weight", HIDDEN, 0.2, 0.6)
        w.norm(at + "layer_scalar", 1, 0.8, 1.1)
    w.norm("norm.weight", HIDDEN, 2.0, 4.0)
    return w


def gemma4(seed, text):
    """Inside the wrapper, as published, with the towers that text does not need left out but for one tensor of each. Ids of images and
    sounds lie outside the vocabulary: at them the library would take the per-layer input of <pad>."""
    config = {
        "architectures": ["Gemma4ForConditionalGeneration"], "audio_config": None, "boa_token_id": 384, "boi_token_id": 385,
        "dtype": "bfloat16", "eoa_token_index": 386, "eoi_token_id": 387, "eos_token_id": [1, 5], "image_token_id": 388,
        "model_type": "gemma4", "text_config": text, "tie_word_embeddings": True, "vision_config": None,
    }
    w = gemma4_weights(text, seed, "model.language_model.")
    w.other("model.embed_vision.embedding_projection.weight", HIDDEN, 32)
    w.other("model.embed_audio.embedding_projection.weight", HIDDEN, 32)
    w.other("model.vision_tower.patch_embedder.input_proj.weight", 32, 48)
    return config, w.tensors


def gemma4_e2b(seed):
    """google/gemma-4-E2B, 15 of 35 layers: one KV head, four local layers to a global one, the last five reuse K and V of layers 8
    and 9 and have MLPs of double width."""
    return gemma4(seed, gemma4_text_config(1, 15, 5, 5, use_double_wide_mlp=True))


def gemma4_e4b(seed):
    """google/gemma-4-E4B, 18 of 42 layers: two KV heads, five local layers to a global one, the last six reuse K and V of layers 10
    and 11."""
    return gemma4(seed, gemma4_text_config(2, 18, 6, 6))


FAMILIES = {
    "gemma3": gemma3, "gemma3-linear-rope": gemma3_linear_rope, "gemma4-e2b": gemma4_e2b, "gemma4-e4b": gemma4_e4b, "gqa": gqa, "mha": mha,
}


def write_checkpoint(name, seed, directory):
    """The directory must exist."""
    directory = pathlib.Path(directory)
    config, tensors = FAMILIES[name](seed)
    turn, turn_end = ("<|turn>", "<turn|>") if name.startswith("gemma4") else ("<start_of_turn>", "<end_of_turn>")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    checkpoint.write_safetensors(directory / "model.safetensors", tensors)
    checkpoint.write_tokenizer(directory / "tokenizer.model", VOCAB, turn, turn_end)


def prompt_ids(name, seed, count):
    """<bos>, then ids of ordinary text."""
    drawn = checkpoint.splitmix(f"prompt of {name}", seed, count - 1)
    return [2] + [6 + int(value >> 11) % (VOCAB - 8) for value in drawn.tolist()]
