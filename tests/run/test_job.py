"""What a job refuses before its model is walked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmprune import prune
from llmprune.errors import RequestError
from tests import tiny

KNOWN = "were given, and the model's go from 0 to 127; use the tokenizer that it was trained with"


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "model")
    more = tiny.tokenizer()
    more.add_tokens(["if", "or", "the", "is", "and", "of"])
    more.save_pretrained(folder)
    with pytest.raises(RequestError, match=f"^tokenizer: ids from [0-9]+ to 1[23][0-9] {KNOWN}"):
        prune(folder, method="wanda", calibration={"samples": 4, "length": 32}, out=tmp_path / "out")
    for number in (500, -1):
        with pytest.raises(RequestError, match=f"^tokens: ids from {number} to {number} {KNOWN}"):
            prune(folder, method="wanda", tokens=torch.full((2, 16), number), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
