"""Statistics of batches are those of all tokens together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmprune.tensors.statistics import Gram, InputMoments, InputNorm, Nothing, Statistic

KINDS = [InputNorm, InputMoments, Gram]


def seen(kind: type[Statistic], pieces: list[torch.Tensor]) -> Statistic:
    statistic = kind(pieces[0].shape[1])
    for piece in pieces:
        statistic.update(piece)
    return statistic


def values(statistic: Statistic) -> list[torch.Tensor]:
    if isinstance(statistic, InputMoments):
        return [statistic.mean, statistic.variance]
    assert isinstance(statistic, InputNorm | Gram)
    return [statistic.value]


def test_the_input_norm_is_the_root_mean_square():
    x = torch.randn(200, 7)
    torch.testing.assert_close(seen(InputNorm, [x]).value, x.square().mean(0).sqrt())


def test_the_variance_is_that_of_torch_even_far_from_zero():
    x = torch.randn(1000, 5) + 100
    found = seen(InputMoments, list(x.split(17)))
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance, x.double().var(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=6), half=st.booleans())
def test_batches_equal_all_tokens_at_once(kind, cuts, half):
    generator = torch.Generator().manual_seed(sum(cuts))
    dtype = torch.bfloat16 if half else torch.float32
    pieces = [torch.randn(n + 1, 4, generator=generator).to(dtype) for n in cuts]
    whole = seen(kind, [torch.cat(pieces)])
    found = seen(kind, pieces)
    assert found.tokens == whole.tokens
    for a, b in zip(values(found), values(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_not_finite_is_noticed(kind):
    for bad in (float("nan"), float("inf")):
        x = torch.randn(4, 3)
        x[1, 2] = bad
        assert not seen(kind, [x]).finite()
    assert seen(kind, [torch.randn(4, 3)]).finite()
    assert Nothing(3).finite()


def test_the_inverse_factor_inverts_the_damped_gram_matrix():
    gram = seen(Gram, [torch.randn(300, 20)])
    factor, damping = gram.inverse_factor(0.01, torch.float64)
    damped = gram.value.double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    torch.testing.assert_close(factor.T @ factor, damped.inverse(), rtol=1e-8, atol=1e-10)
    assert damping == 0.01
    assert not factor.tril(-1).any()


def test_damping_grows_until_the_factorisation_succeeds():
    x = torch.randn(3, 1).double() @ torch.randn(1, 40).double()  # rank one, so H alone is singular
    factor, damping = seen(Gram, [x]).inverse_factor(1e-12, torch.float32)
    assert damping > 1e-12
    assert factor.isfinite().all()


def test_an_input_that_was_always_zero_does_not_stop_the_factorisation():
    x = torch.randn(100, 6)
    x[:, 2] = 0
    factor, _ = seen(Gram, [x]).inverse_factor(0.01, torch.float64)
    assert factor.isfinite().all()
