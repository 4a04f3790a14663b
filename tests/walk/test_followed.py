"""A model that does more between its blocks than to hand on the hidden states is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmprune.checkpoint.store import Store
from llmprune.errors import JobError
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers
from llmprune.walk.walk import Walk, _hidden
from tests.families import configs, sweep

IDS = torch.arange(3, 27)[None]


@torch.no_grad()
def walked(family: str) -> tuple[Tensor, Tensor]:
    """The logits of a walk, and those of the model."""
    model = sweep.model(family)
    walk = Walk(Store(Anatomy(model, LinearLayers())), [], IDS)
    list(walk.stages("walking"))
    return walk.logits(), model(IDS, use_cache=False).logits


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("dory", "run block 0 2 times, not once"),
        ("xlm", "change the hidden states between their blocks"),
        ("zaya", "hand on more than hidden states"),
    ],
)
def test_what_a_walk_cannot_follow_is_refused(family: str, why: str) -> None:
    with pytest.raises(JobError, match=f"'{family}' models {why}"):
        walked(family)


@pytest.mark.parametrize("family", ["openai-gpt", "rwkv", "cpmant", "xlstm", "bamba"])
def test_blocks_that_return_more_are_walked(family: str) -> None:
    """A list; hidden states and a state of each block; a cache; or weights of the attention."""
    found, expected = walked(family)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_hidden_states_given_by_name_are_found() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configs.config("llama"))
    anatomy, x = Anatomy(model, LinearLayers()), torch.zeros(1, 2, 3)
    assert _hidden(anatomy, (), {"hidden_states": x, "other": 1}) == (x, (), {"other": 1})
    with pytest.raises(JobError, match="something else than hidden states"):
        _hidden(anatomy, (), {"other": x})
