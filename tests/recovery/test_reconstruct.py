"""Reconstruction moves a pruned model towards the dense one, and leaves its sizes and zeros alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmprune import prune, recover
from llmprune.tensors.fit import STEPS, Fit, conjugate_gradients
from llmprune.tensors.held_out import RIDGES
from llmprune.text import sources
from llmprune.text.tokenizing import tokenize
from tests import tiny
from tests.resume.interrupted import interrupted

CALIBRATION = {"samples": 16, "length": 32}
UNITS = {"name": "units", "multiple": 8}
PRUNED: dict[str, dict[str, Any]] = {
    "units with biases": {"method": "flap", "sparsity": 0.4, "pattern": UNITS},
    "units without": {"method": "wanda", "sparsity": 0.4, "pattern": UNITS},
    "2:4": {"method": "wanda", "pattern": "2:4"},
}
UNEVEN = {"name": "profile", "blocks": [0.2, 0.4, 0.6]}
PADDED = PRUNED["units without"] | {"allocation": UNEVEN, "layout": "padded"}


pytestmark = pytest.mark.usefixtures("check_in_process")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("pruned", PRUNED)
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "gpt_neox"])
def test_the_outputs_come_closer_and_sizes_and_zeros_stay(
    family: str, pruned: str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    asked = PRUNED[pruned] | {"calibration": CALIBRATION}
    if family == "gpt_neox" and "pattern" in asked and asked["pattern"] is UNITS:
        asked["pattern"] = UNITS | {"parts": "ffn"}
    prune(checkpoints(family), asked, out=tmp_path / "out")
    report = recover(tmp_path / "out", "reconstruct")
    assert report.recovery is not None
    assert report.recovery["name"] == "reconstruct"
    for site in report.recovery["sites"]:
        assert site["error_after"] <= site["error_before"] * (1 + 1e-6)
    before, after = tensors(tmp_path / "out"), tensors(tmp_path / "out-recovered")
    assert {k: t.shape for k, t in before.items()} == {k: t.shape for k, t in after.items()}
    if pruned == "2:4":
        assert all(((t == 0) <= (after[key] == 0)).all() for key, t in before.items() if t.ndim == 2)
    text = sources.for_evaluation("builtin").text("evaluation")
    ids = tokenize(text[:4000], tiny.tokenizer())[:128].view(4, 32)
    dense = logits(checkpoints(family), ids)
    errors = [(logits(tmp_path / name, ids) - dense).norm() for name in ("out", "out-recovered")]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("ridge", [0.01, "held_out"])
def test_layers_that_read_all_sequences_as_one(
    ridge: float | str, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    """OPT's feed-forward network has no dimension of sequences."""
    prune(checkpoints("opt"), PRUNED["2:4"] | {"calibration": CALIBRATION}, out=tmp_path / "out")
    report = recover(tmp_path / "out", {"name": "reconstruct", "ridge": ridge})
    assert report.recovery is not None
    assert all(site["error_after"] < site["error_before"] for site in report.recovery["sites"])


def test_padding_stays_zero(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), PADDED | {"calibration": CALIBRATION}, out=tmp_path / "out")
    recover(tmp_path / "out", "reconstruct")
    after = tensors(tmp_path / "out-recovered")
    assert all(((t == 0) <= (after[key] == 0)).all() for key, t in tensors(tmp_path / "out").items())


def test_a_recovery_that_was_cut_off_ends_with_the_same_bytes(
    checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    prune(
        checkpoints("llama"), PRUNED["units with biases"] | {"calibration": CALIBRATION}, out=tmp_path / "out"
    )
    recover(tmp_path / "out", "reconstruct", out=tmp_path / "whole")
    with interrupted(after=2):
        recover(tmp_path / "out", "reconstruct", out=tmp_path / "cut")
    report = recover(tmp_path / "out", "reconstruct", out=tmp_path / "cut", resume=True)
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes()
    assert recover(tmp_path / "out", "reconstruct", out=tmp_path / "cut", resume=True) == report


def test_the_fit_is_that_of_a_textbook() -> None:
    x, lacking = torch.randn(90, 6) + 1, torch.randn(90, 3)
    fit = Fit(6, 3, biased=True, device=x.device)
    for part, lack in zip(x.split(20), lacking.split(20), strict=True):
        fit.update(part[None], lack[None], lack[None])
    step = fit.solve(1e-9, None)
    design = torch.cat([x, torch.ones(90, 1)], 1).double()
    expected = torch.linalg.lstsq(design, lacking.double()).solution
    torch.testing.assert_close(step, expected[:-1].T, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fit.bias(step), expected[-1], rtol=1e-3, atol=1e-4)
    left = (lacking.double() - design @ expected).norm() / lacking.norm()
    assert fit.error(step) == pytest.approx(float(left), rel=1e-4)
    assert fit.error(None) == pytest.approx(1.0, rel=1e-5)


def test_the_ridge_is_chosen_on_text_that_is_held_out() -> None:
    """Few noisy tokens want a large one, many clean ones a small one; as a fit written out judges it."""
    for tokens, noise, expected in ((12, 3.0, max(RIDGES)), (4000, 0.0, min(RIDGES))):
        x, truth = torch.randn(2, tokens, 10).double(), torch.randn(4, 10).double()
        lacking = x @ truth.T + noise * torch.randn(2, tokens, 4).double()
        rest, held_out = (Fit(10, 4, biased=True, device=x.device) for _ in range(2))
        rest.update(x[:1].float(), lacking[:1], lacking[:1])
        held_out.update(x[1:].float(), lacking[1:], lacking[1:])
        centred, means = x[0] - x[0].mean(0), (x[0].mean(0), lacking[0].mean(0))
        losses = {}
        for ridge in RIDGES:
            gram = centred.T @ centred
            gram += ridge * gram.diagonal().mean() * torch.eye(10)
            step = torch.linalg.solve(gram, centred.T @ lacking[0]).T
            bias = means[1] - step @ means[0]
            losses[ridge] = float((lacking[1] - x[1] @ step.T - bias).square().sum())
        chosen = rest.chosen(held_out, None)
        assert chosen == min(losses, key=lambda ridge: losses[ridge]) == expected
        both = rest + held_out
        whole = Fit(10, 4, biased=True, device=x.device)
        whole.update(x.float(), lacking, lacking)
        torch.testing.assert_close(both.solve(0.1, None), whole.solve(0.1, None), rtol=1e-4, atol=1e-6)


def test_a_held_out_ridge_stands_in_the_report(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    prune(checkpoints("llama"), PRUNED["2:4"] | {"calibration": CALIBRATION}, out=tmp_path / "out")
    report = recover(tmp_path / "out", {"name": "reconstruct", "ridge": "held_out"})
    assert report.recovery is not None
    assert {site["ridge"] for site in report.recovery["sites"]} <= set(RIDGES)


def test_where_zeros_must_stay_every_row_is_fitted_on_its_own_support() -> None:
    x, lacking = torch.randn(90, 8).double(), torch.randn(90, 3).double()
    keep = torch.rand(3, 8) < 0.5
    step = conjugate_gradients(x.T @ x, lacking.T @ x, keep, STEPS)
    for row in range(3):
        expected = torch.linalg.lstsq(x[:, keep[row]], lacking[:, row]).solution
        torch.testing.assert_close(step[row, keep[row]], expected, rtol=1e-4, atol=1e-6)
    assert (step[~keep] == 0).all()
