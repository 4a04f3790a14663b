"""Units are derived where they can be proved, as the rows say that a person wrote; nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama as llama

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.model import derived, twins
from llmprune.model.anatomy import Anatomy
from llmprune.model.families import FAMILIES, Family
from llmprune.model.sites.linear import LinearLayers
from tests import tiny
from tests.families import configs
from tests.test_families import PROBE


def blank(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def row(model: PreTrainedModel) -> Family:
    return derived.family(model, Anatomy(model, LinearLayers()).prefix)


@pytest.mark.parametrize("family", tiny.CUT)
def test_what_is_derived_is_what_a_person_wrote(family: str) -> None:
    found, written = row(blank(tiny.config(family))), FAMILIES[family]
    assert (found.ffn, found.width) == (written.ffn, written.width)
    assert found.biases == {
        part: field for part, field in written.biases.items() if part not in found.missing
    }
    if written.heads_fixed_because:
        assert found.missing.keys() == {"attention"}
    else:
        assert found.attention == written.attention
        assert list(found.attention.producers) == list(written.attention.producers)
        assert not found.missing


@pytest.mark.parametrize(
    ("family", "query", "gate"), [("qwen3_5_text", "qq", "mlp.gate_proj"), ("afmoe", "q", "mlp.gate_proj")]
)
def test_gates_of_heads_go_with_their_heads(family: str, query: str, gate: str) -> None:
    found = row(blank(configs.config(family)))
    assert found.attention.producers["self_attn.q_proj"] == query
    assert list(found.attention.producers)[-1] == "self_attn.v_proj"
    assert gate in found.ffn.producers


def normed(self: Any, x: Tensor) -> Tensor:
    """A feed-forward network in which all channels share a norm."""
    inside = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(nn.functional.rms_norm(inside, inside.shape[-1:]))


def shifted(self: Any, x: Tensor) -> Tensor:
    """One in which a channel is the product of two that are not at the same place."""
    return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x).roll(1, -1))


def averaged(self: Any, x: Tensor) -> Tensor:
    """One that knows how many channels it has."""
    return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)) / self.intermediate_size


def fussy(self: Any, x: Tensor, *, needed: Tensor) -> Tensor:
    """One that cannot be run alone."""
    return x


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (normed, "different outputs"),
        (shifted, "different outputs"),
        (averaged, "different outputs"),
        (fussy, "cannot be run alone"),
    ],
)
def test_channels_that_depend_on_others_are_not_derived(
    forward: Callable[..., Tensor], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.LlamaMLP, "forward", forward)
    found = row(blank(tiny.config("llama")))
    assert why in found.missing["ffn"]
    assert not found.ffn.consumer
    assert found.attention == FAMILIES["llama"].attention


@pytest.mark.parametrize(
    ("family", "part", "why"),
    [
        ("olmo2", "attention", "self_attn.q_norm.weight follows"),
        ("mixtral", "ffn", "no field of its config counts them alone"),
        ("mamba", "ffn", "mixer.A_log follows"),
        ("zamba", "ffn", "blocks share"),
    ],
)
def test_a_part_that_is_not_derived_has_a_reason(family: str, part: Any, why: str) -> None:
    assert why in row(blank(configs.config(family))).missing[part]


def test_no_weight_is_read_and_no_random_number_taken() -> None:
    model = tiny.model("exaone4")
    before = torch.random.get_rng_state()
    assert row(model) == row(blank(tiny.config("exaone4")))
    assert torch.equal(before, torch.random.get_rng_state())


def test_tensors_that_follow_a_field_are_named() -> None:
    model = blank(tiny.config("llama"))
    assert twins.following(model, {"vocab_size": 64}) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert twins.following(model, {"vocab_size": "many"}) is None


@torch.no_grad()
@pytest.mark.usefixtures("check_in_process")
def test_a_stranger_loses_channels_and_heads(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    pattern = {"name": "units", "multiple": 8}
    asked = {
        "method": "flap",
        "pattern": pattern,
        "sparsity": 0.3,
        "repair": "mean_bias",
        "layout": "per_layer",
    }
    report = prune(checkpoints("nemotron"), asked, tokens=PROBE, out=tmp_path / "out")
    assert {site.kind for site in report.sites} == {"attention", "ffn"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert loaded.num_parameters() == report.totals["parameters_after"] < report.totals["parameters_before"]
    assert loaded.config.mlp_bias and loaded.config.attention_bias


@pytest.mark.parametrize(
    ("family", "parts", "said"),
    [
        ("bloom", "ffn", r"the channels of 'bloom' models are not known \(.*\); add a row to FAMILIES"),
        ("stablelm", "all", r"the heads of 'stablelm' models are not known \(.*\); .*pattern\.parts=ffn"),
    ],
)
def test_what_is_not_derived_is_refused_with_the_way_out(
    family: str, parts: str, said: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    pattern = {"name": "units", "multiple": 8, "parts": parts}
    with pytest.raises(RequestError, match=said):
        prune(
            checkpoints(family),
            {"method": "wanda", "pattern": pattern, "sparsity": 0.3},
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()
