"""A tiny configuration of every decoder-only language model that the installed transformers knows.

One table of sizes serves all classes: a class takes the fields that it has. What a class needs besides is in
`OWN`.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

DEPTH, WIDTH, HEADS, HEAD, CHANNELS, TOKENS, CONTEXT = 4, 32, 4, 8, 48, 448, 64
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), TOKENS),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), DEPTH),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), DEPTH),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), DEPTH),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim", "embedding_size"), WIDTH
    ),
    **dict.fromkeys(("word_embed_proj_dim", "attention_hidden_size", "lru_width"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("swa_num_attention_heads", "num_query_groups"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "dim_head", "d_head", "attention_head_size"), HEAD),
    **dict.fromkeys(("kv_channels", "index_head_dim", "linear_head_dim", "v_head_dim"), HEAD),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "linear_key_head_dim"), HEAD),
    **dict.fromkeys(("linear_value_head_dim", "mamba_head_dim", "mamba_d_head", "mamba_headdim"), HEAD),
    "qk_head_dim": 2 * HEAD,
    **dict.fromkeys(("linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"), HEADS),
    **dict.fromkeys(("index_n_heads", "o_groups"), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("time_step_rank", "mamba_dt_rank", "gated_norm_rank", "adapter_rank"), 4),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "attention_chunk_size"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "ffn_hidden_size", "dff", "dim_ff", "d_inner"), CHANNELS
    ),
    **dict.fromkeys(("n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size"), CHANNELS),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size"), CHANNELS),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("shared_experts_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("index_topk", "sliding_window", "sliding_window_size", "window_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("context_length", "model_max_length", "original_max_position_embeddings"), CONTEXT),
    "rotary_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unk_index": 3,
    **dict.fromkeys(("sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id"), 2),
    **dict.fromkeys(("type_vocab_size", "hc_mult", "hc_count"), 2),
    "hidden_size_per_layer_input": 4,
    "laurel_rank": 4,
    "is_decoder": True,
}
_LATENT = {"num_key_value_heads": HEADS}  # attention whose keys and values are projected up for every head
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_INDEXER = {"n_heads": 2, "kv_heads": 1, "head_dim": HEAD, "budget": 16, "compress_ratio": 4}
_QWEN4 = {f"indexer_{name}": value for name, value in _INDEXER.items()} | {"hc_lowrank": 8}
OWN: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_local_decoder": {"hidden_size_global": WIDTH},
    "blt_local_encoder": {"hidden_size_global": WIDTH},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": CHANNELS, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"use_sliding_window": False},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * DEPTH},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * DEPTH},
    "roc_bert": {"shape_embed_dim": 8, "pronunciation_embed_dim": 8, "shape_vocab_size": TOKENS},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 2 * WIDTH},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def names() -> list[str]:
    """The `model_type` of every class, in alphabetical order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config(family: str) -> PreTrainedConfig:
    """A tiny configuration of a family, the parts of a composite one included."""
    return _made(CONFIG_MAPPING[family])


def _made(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    fields = {*getattr(kind, "__dataclass_fields__", {}), *getattr(kind, "attribute_map", {})}
    sizes = {name: value for name, value in SIZES.items() if name in fields}
    if "kv_lora_rank" in fields:
        sizes |= _LATENT
    parts = {name: _part(kind, name) for name in kind.sub_configs if name in fields}
    return kind(**{**sizes, **parts, **OWN.get(kind.model_type, {})})


def _part(whole: type[PreTrainedConfig], name: str) -> dict[str, Any]:
    """A part of a composite configuration, whose class may only be known from the default one."""
    kind = whole.sub_configs[name]
    kind = kind if issubclass(kind, PreTrainedConfig) else type(getattr(whole(), name))
    return _made(kind).to_dict() if issubclass(kind, PreTrainedConfig) else {}
