"""Row norms against their definition."""

import torch

from llmprune.methods.row_norm import RowNorm
from llmprune.tensors.statistics import Nothing
from tests.methods.prunenet.channels import CHANNELS, ROWS


def test_the_row_norm_is_that_of_the_first_factor():
    torch.testing.assert_close(RowNorm().score(CHANNELS, Nothing(24)), ROWS[0].norm(dim=1))
