"""Spectral against singular values with one row left out at a time."""

import torch

from llmprune.methods.spectral import Spectral
from llmprune.tensors.statistics import Nothing
from tests.methods.prunenet.channels import CHANNELS, ROWS


def test_spectral_takes_first_what_adds_least_to_the_singular_values():
    score = Spectral(rounds=24).score(CHANNELS, Nothing(24))
    assert sorted(score.tolist()) == list(range(24))
    rows = ROWS[0].double()
    nuclear = [float(torch.linalg.svdvals(rows[[j for j in range(24) if j != i]]).sum()) for i in range(24)]
    lost = torch.linalg.svdvals(rows).sum() - torch.tensor(nuclear)
    assert lost[score.argmin()] <= lost.sort().values[2]
