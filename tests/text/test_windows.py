"""Windows, their record, and the batches they go through the model in."""

from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmprune.text.windows import RUN, Windows, batched, sharing


def test_the_record_says_what_the_windows_are() -> None:
    tokens = torch.arange(80).reshape(5, 16)
    by_hand = hashlib.sha256(b"".join(t.to_bytes(8, "little") for t in range(80)))
    assert Windows(tokens, "builtin", 3).record() == {
        "dataset": "builtin",
        "samples": 5,
        "length": 16,
        "tokens": 80,
        "seed": 3,
        "sha256": by_hand.hexdigest(),
    }


@given(st.integers(1, 20), st.integers(1, 7))
def test_batches_are_the_windows_in_order(count: int, size: int) -> None:
    tokens = torch.arange(count * 3).reshape(count, 3)
    batches = batched(tokens, size)
    assert torch.equal(torch.cat(batches), tokens)
    assert all(1 <= len(batch) <= size for batch in batches)


@given(st.integers(2, 40), st.integers(2, 80), st.integers(0, 10**6))
def test_windows_that_share_a_run_are_found(count: int, length: int, seed: int) -> None:
    lots = torch.Generator().manual_seed(seed)
    windows = torch.randint(10**6, (count, length), generator=lots)
    other = torch.randint(10**6, (1, 100), generator=lots)
    assert not sharing(windows, other).any()
    run = min(RUN, length)
    other[0, 7 : 7 + run] = windows[1, length - run :]
    assert sharing(windows, other).nonzero().flatten().tolist() == [1]
