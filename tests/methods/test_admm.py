"""ADMM against an independent float64 transcription of its equations, and against SparseGPT."""

import pytest
import torch

from llmprune.methods.admm import Admm
from llmprune.methods.base import Weights
from llmprune.methods.sparsegpt import Sparsegpt
from llmprune.patterns.base import Pattern
from llmprune.patterns.n_of_m import NofM
from llmprune.patterns.unstructured import Unstructured
from llmprune.tensors.held_out import RIDGES, HeldOutGram
from llmprune.tensors.statistics import Gram
from tests.methods.test_sparsegpt import correlated, gram_of

PATTERNS = [(Unstructured(), 0.5), (Unstructured("matrix"), 0.7), (NofM(2, 4), 0.5)]


def loss(weight: torch.Tensor, pruned: torch.Tensor, x: torch.Tensor) -> float:
    """||(W - V) X^T||^2, with the damping's share."""
    scaled = (weight - pruned).double()
    scale = x.double().square().mean(0).sqrt()
    return float((scaled @ x.double().T).square().sum() / len(x) + 0.01 * (scaled * scale).square().sum())


def transcription(weight: torch.Tensor, x: torch.Tensor, pattern: Pattern, sparsity: float) -> torch.Tensor:
    """The scheme of arXiv:2406.07831 with the unscaled dual, then the exact optimum of every row's mask."""
    h = x.double().T @ x.double() / len(x)
    d = h.diagonal().sqrt()
    h = h / d / d[:, None] + 0.01 * torch.eye(len(h), dtype=torch.float64)
    w = weight.double() * d
    rho, z, v = 0.1, w * pattern.keep(w**2, sparsity), torch.zeros_like(w)
    old = z != 0
    for step in range(1, 61):
        b = torch.linalg.solve(h + rho * torch.eye(len(h), dtype=torch.float64), (w @ h - v + rho * z).T).T
        z = (b + v / rho) * pattern.keep((b + v / rho) ** 2, sparsity)
        v += rho * (b - z)
        if step % 3 == 0:
            new = z != 0
            moved = (new ^ old).sum() / new.sum()
            if moved == 0:
                break
            rho, old = rho * (1.3 if moved > 0.1 else 1.2 if moved > 0.005 else 1.1), new
    keep, best = pattern.keep(b**2, sparsity), torch.zeros_like(w)
    for row, mask in enumerate(keep):
        best[row, mask] = torch.linalg.solve(h[mask][:, mask], h[mask] @ w[row])
    return best / d


@pytest.mark.parametrize(("pattern", "sparsity"), PATTERNS)
def test_the_loss_is_that_of_the_transcription(pattern: Pattern, sparsity: float) -> None:
    torch.manual_seed(0)
    x, weight = correlated(600, 64), torch.randn(24, 64)
    found = Admm().solve(Weights(weight), gram_of(x), pattern, sparsity)
    assert torch.equal(found.weight != 0, found.keep)
    expected = loss(weight, transcription(weight, x, pattern, sparsity), x)
    assert loss(weight, found.weight, x) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("pattern", "sparsity"), PATTERNS)
def test_it_comes_nearer_to_the_outputs_than_sparsegpt(pattern: Pattern, sparsity: float) -> None:
    torch.manual_seed(1)
    x, weight = correlated(600, 64), torch.randn(24, 64)
    admm, other = (
        loss(weight, method.solve(Weights(weight), gram_of(x), pattern, sparsity).weight, x)
        for method in (Admm(), Sparsegpt())
    )
    assert admm < 0.9 * other


def test_inputs_that_were_always_zero_lose_their_weights() -> None:
    torch.manual_seed(2)
    x = correlated(300, 32)
    x[:, :8] = 0
    found = Admm().solve(Weights(torch.randn(8, 32)), gram_of(x), Unstructured(), 0.25)
    assert not found.weight[:, :8].any()
    assert found.keep[:, 8:].all()


@pytest.mark.parametrize(("tokens", "expected"), [(12, 0.1), (20_000, min(RIDGES))])
def test_the_damping_is_chosen_on_text_that_is_held_out(tokens: int, expected: float) -> None:
    """Few tokens want a large one, many a small one; every row's exact optimum judges as it does."""
    torch.manual_seed(0)
    x, weight, pattern = correlated(4 * tokens, 64), torch.randn(24, 64), NofM(2, 4)
    statistic, plain = HeldOutGram(64), Gram(64)
    for part in x.split(tokens):
        statistic.update(part)
        plain.update(part)
    found = Admm(damping="held_out").solve(Weights(weight), statistic, pattern, 0.5)
    assert torch.equal(found.keep, Admm().solve(Weights(weight), plain, pattern, 0.5).keep)
    assert found.notes["damping"] == expected
    d = plain.scale.double()
    losses = {}
    for damping in RIDGES:
        h = x[: 3 * tokens].double() / d
        h = h.T @ h / len(h) + damping * torch.eye(64, dtype=torch.float64)
        fitted, w = torch.zeros(24, 64, dtype=torch.float64), weight.double() * d
        for row, mask in enumerate(found.keep):
            fitted[row, mask] = torch.linalg.solve(h[mask][:, mask], h[mask] @ w[row])
        losses[damping] = float(((w - fitted) @ (x[3 * tokens :].double() / d).T).square().sum())
    assert min(losses, key=lambda damping: losses[damping]) == expected
    assert Admm(damping="held_out").gathers is HeldOutGram and Admm().gathers is Gram
