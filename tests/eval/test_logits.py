"""Logits piece by piece are those of the whole window, for every family."""

import pytest
import torch
from llmprune_eval import logits

from tests import tiny


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_pieces_add_up_to_the_whole(family, monkeypatch):
    monkeypatch.setattr(logits, "ROWS", 7)
    model = tiny.model(family)
    ids = torch.randint(0, tiny.VOCABULARY, (24,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids[None], use_cache=False).logits[0]
    found = list(logits.pieces(model, ids))
    assert [rows.stop - rows.start for rows, _ in found] == [7, 7, 7, 3]
    torch.testing.assert_close(torch.cat([piece for _, piece in found]), whole, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(ids[None], use_cache=False).logits[0], whole)  # the model is as it was
