"""SparseGPT against an independent float64 transcription of the paper."""

import pytest
import torch

from llmprune.methods.base import Weights
from llmprune.methods.magnitude import Magnitude
from llmprune.methods.sparsegpt import Sparsegpt
from llmprune.methods.wanda import Wanda
from llmprune.patterns.base import Pattern
from llmprune.patterns.n_of_m import NofM
from llmprune.patterns.unstructured import Unstructured
from llmprune.tensors.statistics import Gram, InputNorm, Nothing


def gram_of(x: torch.Tensor) -> Gram:
    found = Gram(x.shape[1])
    for piece in x.split(100):
        found.update(piece)
    return found


def correlated(tokens: int, inputs: int) -> torch.Tensor:
    return torch.randn(tokens, inputs) @ (torch.eye(inputs) + 0.3 * torch.randn(inputs, inputs))


def transcription(weight: torch.Tensor, x: torch.Tensor, choose, block: int) -> torch.Tensor:
    """Algorithm 1 of arXiv:2301.00774 in float64; `choose(scores)` gives the mask of a slab's columns."""
    w, h = weight.double().clone(), x.double().T @ x.double() / len(x)
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    u = torch.linalg.cholesky(h.inverse(), upper=True)
    for i in range(0, w.shape[1], block):
        e = min(i + block, w.shape[1])
        errors = torch.zeros(len(w), e - i, dtype=torch.float64)
        mask = torch.ones(len(w), e - i, dtype=torch.bool)
        for j in range(i, e):
            span = choose.group or block
            if (j - i) % span == 0:
                stop = min(j + span, e)
                mask[:, j - i : stop - i] = choose(w[:, j:stop] ** 2 / u.diagonal()[j:stop] ** 2)
            errors[:, j - i] = torch.where(mask[:, j - i], 0, w[:, j]) / u[j, j]
            w[:, j] *= mask[:, j - i]
            w[:, j + 1 : e] -= errors[:, j - i : j - i + 1] @ u[j : j + 1, j + 1 : e]
        w[:, e:] -= errors @ u[i:e, e:]
    return w


class Chooser:
    """The lowest half of each row, or two of every four."""

    def __init__(self, group: int) -> None:
        self.group = group

    def __call__(self, score: torch.Tensor) -> torch.Tensor:
        dropped = score.argsort(dim=1, stable=True)[:, : score.shape[1] // 2]
        return torch.ones_like(score, dtype=torch.bool).scatter(1, dropped, False)


@pytest.mark.parametrize(("pattern", "group"), [(Unstructured(), 0), (NofM(2, 4), 4)])
@pytest.mark.parametrize("block", [16, 128])
def test_updated_weights_agree_with_the_transcription(pattern: Pattern, group: int, block: int):
    weight, x = torch.randn(40, 96), correlated(500, 96)
    found = Sparsegpt(block_size=block).solve(Weights(weight), gram_of(x), pattern, 0.5)
    expected = transcription(weight, x, Chooser(group), block)
    assert torch.equal(found.weight != 0, expected != 0)
    assert float((found.weight - expected).norm() / expected.norm()) < 1e-3
    assert found.notes == {"damping": 0.01}


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4), NofM(1, 4)])
def test_uncorrelated_inputs_give_the_mask_of_wanda_and_no_update(pattern: Pattern):
    x = torch.diag(torch.rand(64) + 0.5)  # X^T X is diagonal
    weight = torch.randn(32, 64)
    norms = InputNorm(64)
    norms.update(x)
    found = Sparsegpt(damping=1e-9).solve(Weights(weight), gram_of(x), pattern, 0.5)
    expected = Wanda().solve(Weights(weight), norms, pattern, 0.5)
    assert torch.equal(found.keep, expected.keep)
    torch.testing.assert_close(found.weight, expected.weight)


@pytest.mark.parametrize("compete", ["row", "matrix"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.5, 0.9])
def test_exactly_so_many_weights_go(compete, sparsity):
    weight = torch.randn(30, 100)
    found = Sparsegpt(block_size=32).solve(
        Weights(weight), gram_of(correlated(400, 100)), Unstructured(compete), sparsity
    )
    assert int((~found.keep).sum()) == round(sparsity * 100) * 30
    assert torch.equal(found.weight == 0, ~found.keep)


def test_it_beats_wanda_which_beats_magnitude_on_output_error():
    weight, x = torch.randn(64, 128), correlated(1000, 128) * torch.rand(128).exp()
    norms = InputNorm(128)
    norms.update(x)
    solutions = {
        "sparsegpt": Sparsegpt().solve(Weights(weight), gram_of(x), Unstructured(), 0.5),
        "wanda": Wanda().solve(Weights(weight), norms, Unstructured(), 0.5),
        "magnitude": Magnitude().solve(Weights(weight), Nothing(128), Unstructured("matrix"), 0.5),
    }
    error = {name: float((x @ (weight - s.weight).T).norm()) for name, s in solutions.items()}
    assert error["sparsegpt"] < error["wanda"] < error["magnitude"]


def test_an_input_that_was_always_zero_loses_its_weights():
    x = correlated(300, 16)
    x[:, 5] = 0
    found = Sparsegpt().solve(Weights(torch.randn(8, 16)), gram_of(x), Unstructured(), 0.5)
    assert not found.weight[:, 5].any()
    assert found.weight.isfinite().all()


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4)])
def test_rose_prunes_first_where_most_is_lost(pattern: Pattern) -> None:
    torch.manual_seed(3)
    x, weight = correlated(400, 64), torch.randn(16, 64)
    weight[:, 32:48] *= 30  # one slab loses far more than the others
    asked = {"statistic": gram_of(x), "pattern": pattern, "sparsity": 0.5}
    natural, rose = (
        Sparsegpt(block_size=16, order=o).solve(Weights(weight), **asked) for o in ("natural", "rose")
    )
    assert torch.equal(rose.weight != 0, rose.keep)
    assert (rose.keep.sum(1) == natural.keep.sum(1)).all()
    if pattern.group:
        assert (rose.keep.reshape(16, -1, 4).sum(-1) == 2).all()
    lost = [((weight - found.weight) @ x.T).norm() for found in (natural, rose)]
    assert lost[1] < lost[0]
    even = Weights(torch.randn(16, 64))
    same = [
        Sparsegpt(block_size=16, order=o).solve(even, gram_of(x), pattern, 0.5) for o in ("natural", "rose")
    ]
    torch.testing.assert_close(same[0].weight, same[1].weight)  # slabs alike: the order stays
