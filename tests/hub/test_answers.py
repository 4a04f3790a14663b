"""Errors of the Hub's client during a push become one sentence; bugs are raised unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune.errors import JobError
from llmprune.hub.answers import explained
from tests.checkpoint.test_offline import BUGS, STORED

WRAPPED = "Error while uploading 'model.safetensors' to the Hub."


@pytest.mark.parametrize("words", [*STORED, WRAPPED])
def test_a_failure_of_the_storage_is_one_sentence(words: str, tmp_path: Path) -> None:
    said = pytest.raises(JobError, match=r"^cannot push to me/small: .* is kept\)$")
    with said, explained("me/small", tmp_path, "hf_secret"):
        raise RuntimeError(words)


@pytest.mark.parametrize("bug", BUGS, ids=repr)
def test_a_bug_in_a_push_stays_a_bug(bug: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(bug)) as caught, explained("me/small", tmp_path, "hf_secret"):
        raise bug
    assert caught.value is bug
