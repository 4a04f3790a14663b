"""How to run is checked before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune import prune
from llmprune.errors import RequestError


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\0b", "null byte"),
        ("x" * 5000, "too long"),
        ("loop", "symbolic links"),
        ("loop/out", "symbolic links"),
    ],
)
def test_a_folder_that_cannot_be_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with pytest.raises(RequestError, match=f"out: .* cannot be written: .*{why}.*; name another") as raised:
        prune("model", "wanda-50", out=name)
    assert len(str(raised.value)) < 200
