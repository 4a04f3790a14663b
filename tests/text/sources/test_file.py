"""A plain file is read as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmprune.errors import RequestError
from llmprune.text import sources


def text_of(file: Path) -> str:
    return sources.for_evaluation(str(file)).text("calibration")


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_plain_files_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"text{suffix}"
    file.write_bytes("Grün\n\nzwei  \x00 end".encode())
    assert text_of(file) == "Grün\n\nzwei  \x00 end"


def test_a_file_of_megabytes_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("0123456789" * 250_000)
    assert text_of(tmp_path / "long.txt") == "0123456789" * 250_000


@pytest.mark.parametrize("content", [b"one \xff two", "Größe".encode("latin-1"), "ü".encode()[:1]])
def test_what_is_not_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bytes.txt").write_bytes(content)
    with pytest.raises(RequestError, match=r"bytes\.txt is not UTF-8 text \(.*\); convert it") as raised:
        text_of(tmp_path / "bytes.txt")
    assert raised.value.field == "calibration"


@pytest.mark.parametrize("name", ["none.txt", "blank.txt", "blank.md"])
def test_a_file_without_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(" \n\t\n" if name == "blank.txt" else "\n" if name == "blank.md" else "")
    with pytest.raises(RequestError, match="holds no text") as raised:
        text_of(tmp_path / name)
    assert raised.value.field == "calibration"


@pytest.mark.parametrize("dataset", ["/nowhere/text.txt", "my/text.md"])
def test_a_file_that_is_not_there_is_no_hub_id(dataset: str) -> None:
    for half, field in (("calibration", "calibration"), ("evaluation", "perplexity")):
        with pytest.raises(RequestError, match=f"^{field}: there is no file {dataset}"):
            sources.for_evaluation(dataset).text(half)
