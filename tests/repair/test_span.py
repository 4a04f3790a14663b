"""`span` solves the ridge problem of the layer before a removed span, and says by how much the error fell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmprune import prune
from llmprune.errors import RequestError
from llmprune.model.anatomy import Anatomy
from llmprune.model.families import FAMILIES
from llmprune.model.sites.linear import LinearLayers
from tests import tiny

TOKENS = torch.randint(3, tiny.VOCABULARY, (16, 32), generator=torch.Generator().manual_seed(9))
RIDGE = 0.02
KNOWN = sorted(set(FAMILIES) & set(tiny.FAMILIES))


pytestmark = pytest.mark.usefixtures("check_in_process")


def asked(**options: Any) -> dict[str, Any]:
    return {"pattern": {"name": "blocks", "remove": [1]}, "repair": {"name": "span", **options}}


@torch.no_grad()
def test_the_output_layer_is_the_solution_of_the_ridge_problem(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints("mistral")  # its layers have no bias
    prune(folder, asked(parts="ffn", ridge=RIDGE), tokens=TOKENS, out=tmp_path / "out")
    dense = AutoModelForCausalLM.from_pretrained(folder).eval()
    layer, seen = dense.model.layers[0].mlp.down_proj, []
    layer.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    hidden = dense(TOKENS, output_hidden_states=True).hidden_states
    x, error = seen[0].flatten(0, 1).double(), (hidden[2] - hidden[1]).flatten(0, 1).double()
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    expected = layer.weight.double() + torch.linalg.solve(gram, x.T @ error).T
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[0].mlp.down_proj.weight
    torch.testing.assert_close(weight.double(), expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", KNOWN)
def test_every_family_comes_closer_or_is_refused(
    family: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoints(family)
    if FAMILIES[family].outputs_change_by:
        with pytest.raises(RequestError, match="follows the output layers"):
            prune(folder, asked(), tokens=TOKENS, out=tmp_path / "out")
        return
    for name, repair in {"bare": {"repair": "none"}, "refitted": {}}.items():
        prune(folder, asked() | repair, tokens=TOKENS, out=tmp_path / name)
    dense, bare, refitted = (
        AutoModelForCausalLM.from_pretrained(path).eval()
        for path in (folder, tmp_path / "bare", tmp_path / "refitted")
    )
    target = dense(TOKENS, output_hidden_states=True).hidden_states[2]
    left = [
        float((m(TOKENS, output_hidden_states=True).hidden_states[1] - target).square().sum())
        for m in (refitted, bare)
    ]
    assert left[0] < left[1]
    untouched = {
        name: tensor
        for name, tensor in bare.state_dict().items()
        if not name.startswith(f"{Anatomy(bare, LinearLayers()).prefix}.0.")
    }
    assert all(torch.equal(tensor, refitted.state_dict()[name]) for name, tensor in untouched.items())
