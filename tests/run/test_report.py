"""A report is read back as it was written, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from llmprune_eval import keeping

from llmprune import recover, report
from llmprune.errors import RequestError


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '"x"', '{"schema": 1}', '{"schema": 1, "more": 2}'])
def test_a_damaged_report_is_a_sentence(text: str, tmp_path: Path) -> None:
    file = tmp_path / "llmprune_report.json"
    file.write_text(text)
    for read in (
        lambda: report.read(tmp_path),
        lambda: recover(tmp_path),
        lambda: keeping.require_ours([str(tmp_path)]),
    ):
        with pytest.raises(RequestError, match=f"^model: {file} cannot be read as a report of llmprune; "):
            read()
