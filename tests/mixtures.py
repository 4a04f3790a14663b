"""Tiny random mixtures of experts, one per family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests import tiny

EXPERTS, CHOSEN = 8, 3
CALIBRATION = {"samples": 4, "length": 32}
PROBE = torch.randint(0, tiny.VOCABULARY, (1, 16), generator=torch.Generator().manual_seed(1))
COMMON: dict[str, Any] = {
    **tiny.COMMON,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_key_value_heads": 4,
}
LOCAL = {"num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
NAMED = {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": 16}
SHARED = {"shared_expert_intermediate_size": 16}
GROUPED = {
    **{"n_routed_experts": 16, "n_group": 4, "topk_group": 2},
    **{"n_shared_experts": 1, "first_k_dense_replace": 1},
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
}
# What a family needs besides the common sizes; the keys are `model_type`s.
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {**LOCAL, "intermediate_size": 16},
    "minimax": {**LOCAL, "intermediate_size": 16, "head_dim": 8, "layer_types": ["full_attention"] * 2},
    "qwen2_moe": {**NAMED, **SHARED, "decoder_sparse_step": 1},
    "qwen3_moe": {**NAMED, "head_dim": 8, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_next": {**NAMED, **SHARED, **LINEAR},
    "olmoe": {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "intermediate_size": 16},
    "flex_olmo": {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "intermediate_size": 16},
    "deepseek_v2": {**ROUTED, **LATENT, "n_group": None, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "deepseek_v3": {**ROUTED, **GROUPED, **LATENT},
    "dots1": {**ROUTED, **GROUPED, "head_dim": 8},
    "glm4_moe": {**ROUTED, **GROUPED, "head_dim": 8},
    "gpt_oss": {**LOCAL, "head_dim": 8, "intermediate_size": 16, "rope_parameters": {"rope_type": "default"}},
    "granitemoe": {**LOCAL, "intermediate_size": 16},
    "granitemoeshared": {**LOCAL, "intermediate_size": 16, "shared_intermediate_size": 16},
    "phimoe": {**LOCAL, "num_experts_per_tok": 2, "intermediate_size": 16},
    "minimax_m2": {**LOCAL, "intermediate_size": 16, "head_dim": 8},
    "ernie4_5_moe": {
        **{"moe_num_experts": EXPERTS, "moe_k": CHOSEN, "moe_intermediate_size": 16},
        **{"moe_num_shared_experts": 1, "moe_layer_start_index": 1, "head_dim": 8},
    },
    "lfm2_moe": {**NAMED, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "hy_v3": {**NAMED, "head_dim": 8, "first_k_dense_replace": 1, "num_shared_experts": 1},
    "afmoe": {**NAMED, "num_dense_layers": 1, "head_dim": 8, "num_shared_experts": 1},
    "hunyuan_v1_moe": {"num_experts": EXPERTS, "moe_topk": CHOSEN, "intermediate_size": 16, "head_dim": 8},
    "nemotron_h": {
        **ROUTED,
        **{"hybrid_override_pattern": "*E", "head_dim": 8, "n_group": 1, "topk_group": 1},
        **{"n_shared_experts": 1, "moe_shared_expert_intermediate_size": 16},
    },
    "aria_text": {"moe_num_experts": EXPERTS, "moe_topk": CHOSEN, "intermediate_size": 16, "head_dim": 8},
    "gemma4_text": {
        **{"enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": CHOSEN, "head_dim": 8},
        **{"moe_intermediate_size": 16, "global_head_dim": 8, "layer_types": ["full_attention"] * 2},
        **{"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "num_global_key_value_heads": 4},
    },
    "sarvam_moe": {**NAMED, "num_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 8},
    "exaone_moe": {**NAMED, "head_dim": 8, "num_shared_experts": 1, "first_k_dense_replace": 1},
    "solar_open": {**ROUTED, **GROUPED, "head_dim": 8},
    "cohere2_moe": {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "intermediate_size": 16},
    "laguna": {**NAMED, "head_dim": 8},
    "mellum": {**LOCAL, "moe_intermediate_size": 16, "head_dim": 8},
    "qwen3_5_moe_text": {**NAMED, **SHARED, **LINEAR},
    "glm4_moe_lite": {**ROUTED, **GROUPED, **LATENT},
    "axk1": {**ROUTED, **GROUPED, **LATENT},
    "granitemoehybrid": {
        **LOCAL,
        **{"intermediate_size": 16, "shared_intermediate_size": 16},
        **{"layer_types": ["attention", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16},
    },
    "jamba": {
        **{"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "intermediate_size": 16},
        **{
            "attn_layer_period": 1,
            "attn_layer_offset": 0,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    },
    "deepseek_v32": {**ROUTED, **GROUPED, **LATENT, "index_n_heads": 2, "index_head_dim": 16},
    "bailing_hybrid": {**NAMED, "head_dim": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "kimi_linear": {**NAMED, **LATENT},
}


def config(family: str, **more: Any) -> Any:
    """A tiny configuration of a family."""
    return AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **more})


def model(family: str, dtype: torch.dtype = torch.float32, **more: Any) -> PreTrainedModel:
    """A random model, the same each time; routers differ enough for choices to be clear."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config(family, **more), dtype=torch.float32).eval()
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return made.to(dtype)


def save(family: str, folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """A checkpoint of a tiny mixture, with its tokenizer."""
    model(family, dtype, **more).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def asked(**more: Any) -> dict[str, Any]:
    """A recipe with a short text."""
    return {"calibration": CALIBRATION, **more}


def load(folder: Path) -> PreTrainedModel:
    """As plain transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = PROBE) -> Tensor:
    """Of the probe, or of other ids [1, T]: [1, T, V]."""
    return model(ids, use_cache=False).logits


def layout_of(folder: Path) -> dict[str, Any]:
    """The dtype and shape of every tensor of a checkpoint."""
    tensors = {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}
    return {key: (t.dtype, t.shape) for key, t in tensors.items()}
