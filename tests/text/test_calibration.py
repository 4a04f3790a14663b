"""Text becomes windows of tokens, the same on every machine, or one sentence says why not."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmprune.errors import JobError, RequestError
from llmprune.text import calibration
from llmprune.text.calibration import Calibration, read_text, windows
from tests import tiny

ROWS = ["The first document is about ants.", "The second one is about bees.", "A third: cats."]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def table(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file of one of the formats that have columns."""
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def text_of(dataset: Path | str, **options: Any) -> str:
    limit = options.pop("limit", None)
    return read_text(str(dataset), "calibration", Calibration(**options), limit)


def test_the_builtin_halves_share_no_document() -> None:
    halves = [calibration._reference_manual(half) for half in ("calibration", "evaluation")]
    assert all(len("".join(half)) > 100_000 for half in halves)
    assert not set(halves[0]) & set(halves[1])


def test_the_builtin_halves_are_read_by_their_names() -> None:
    halves = [read_text("builtin", half, Calibration()) for half in ("calibration", "evaluation")]
    paragraphs = [{p for p in half.split("\n\n") if len(p) > 200} for half in halves]
    assert min(map(len, paragraphs)) > 50
    assert not paragraphs[0] & paragraphs[1]


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 9), length=st.integers(2, 40), seed=st.integers(0, 2**31 - 1))
def test_windows_are_runs_of_the_text(samples: int, length: int, seed: int) -> None:
    tokenizer = tiny.tokenizer()
    asked = Calibration(samples=samples, seed=seed)
    tokenised = []

    def tokenize(text: str, tokenizer: Any) -> torch.Tensor:
        tokenised.append(own(text, tokenizer))
        return tokenised[-1]

    own = calibration.tokenize
    with mock.patch.object(calibration, "tokenize", tokenize):
        found, again = (windows(asked, length, tokenizer) for _ in range(2))
    assert found.tokens.shape == (samples, length)
    assert found.tokens.dtype == torch.int64
    runs = {tuple(run) for run in tokenised[0].unfold(0, length, 1).tolist()}
    assert {tuple(window) for window in found.tokens.tolist()} <= runs
    assert torch.equal(again.tokens, found.tokens)


def test_seeds_place_the_windows(tokenizer: Any) -> None:
    drawn = [windows(Calibration(samples=8, seed=seed), 32, tokenizer) for seed in (0, 1, 2)]
    assert len({found.record()["sha256"] for found in drawn}) == 3


def test_windows_hold_no_special_tokens(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a b c d e f g h " * 20)
    found = windows(Calibration(dataset=str(file), samples=50), 8, tokenizer)
    assert set(found.tokens.flatten().tolist()) == set(tokenizer.convert_tokens_to_ids(list("abcdefgh")))


def test_a_text_of_one_window_gives_that_window(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a b c d")
    found = windows(Calibration(dataset=str(file), samples=3), 4, tokenizer)
    assert found.tokens.tolist() == [tokenizer.convert_tokens_to_ids(list("abcd"))] * 3


def test_the_record_says_what_the_windows_are(tokenizer: Any) -> None:
    found = windows(Calibration(samples=5, seed=3), 16, tokenizer)
    by_hand = hashlib.sha256(b"".join(t.to_bytes(8, "little") for t in found.tokens.flatten().tolist()))
    assert found.record() == {
        "dataset": "builtin",
        "samples": 5,
        "length": 16,
        "tokens": 80,
        "seed": 3,
        "sha256": by_hand.hexdigest(),
    }


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_plain_files_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"text{suffix}"
    file.write_bytes("Grün\n\nzwei  \x00 end".encode())
    assert text_of(file) == "Grün\n\nzwei  \x00 end"


@pytest.mark.parametrize("content", [b"one \xff two", "Größe".encode("latin-1"), "ü".encode()[:1]])
def test_what_is_not_utf_8_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bytes.txt").write_bytes(content)
    with pytest.raises(RequestError, match=r"bytes\.txt is not UTF-8 text \(.*\); convert it") as raised:
        text_of(tmp_path / "bytes.txt")
    assert raised.value.field == "calibration"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_tables_are_read_row_by_row(tmp_path: Path, suffix: str) -> None:
    file = table(tmp_path, suffix, [{"text": row, "number": 1} for row in ROWS])
    assert text_of(file) == "\n\n".join(ROWS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_another_column_can_be_named(tmp_path: Path, suffix: str) -> None:
    file = table(tmp_path, suffix, [{"text": "no", "body": row} for row in ROWS])
    assert text_of(file, text_column="body") == "\n\n".join(ROWS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("column", ["absent", "number"])
def test_a_column_without_text_is_refused_with_those_that_have_it(
    tmp_path: Path, suffix: str, column: str
) -> None:
    file = table(tmp_path, suffix, [{"body": ROWS[0], "title": "Ants", "number": 1}])
    with pytest.raises(RequestError, match=r"text columns: body, title") as raised:
        text_of(file, text_column=column)
    assert raised.value.field == "text_column"
    assert repr(column) in str(raised.value)


@pytest.mark.parametrize("name", ["rows [1].jsonl", "a*b.jsonl", "käse.jsonl"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    file = table(tmp_path, ".jsonl", [{"text": ROWS[0]}]).rename(tmp_path / name)
    assert text_of(file) == ROWS[0]


EMPTY = {"none.txt": b"", "blank.txt": b" \n\t\n", "none.jsonl": b"", "none.json": b"[]", "blank.md": b"\n"}


@pytest.mark.parametrize("name", EMPTY)
def test_a_file_without_text_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(EMPTY[name])
    with pytest.raises(RequestError, match="holds no text") as raised:
        text_of(tmp_path / name)
    assert raised.value.field == "calibration"


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), file)
    with pytest.raises(RequestError, match=r"none\.parquet") as raised:
        text_of(file)
    assert raised.value.field == "calibration"


BROKEN = {
    "broken.jsonl": b'{"text": "a"}\n{"text": \n',
    "broken.json": b"[{",
    "broken.parquet": b"PAR1 is not enough",
    "list.jsonl": b"[1, 2]\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(RequestError) as raised:
        text_of(tmp_path / name)
    assert name in str(raised.value)


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "short.txt"
    file.write_text("a b c")
    with pytest.raises(RequestError, match=r"has 3 tokens, fewer than one window of 4") as raised:
        windows(Calibration(dataset=str(file)), 4, tokenizer)
    assert raised.value.field == "calibration"


@pytest.mark.parametrize("dataset", ["no such text", "a/b/c", "/nowhere/text.doc", "wikitext", ""])
def test_a_nonsense_name_is_refused(dataset: str) -> None:
    with pytest.raises(RequestError, match="is not builtin") as raised:
        text_of(dataset)
    assert raised.value.field == "calibration"


@pytest.mark.parametrize("dataset", ["/nowhere/text.txt", "my/text.jsonl"])
def test_a_file_that_is_not_there_is_no_hub_id(dataset: str) -> None:
    with pytest.raises(RequestError, match=f"there is no file {dataset}"):
        text_of(dataset)


def test_a_folder_or_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.docx").write_text("words")
    for path in (tmp_path, tmp_path / "text.docx"):
        with pytest.raises(RequestError, match=r"\.txt, \.md, \.jsonl"):
            text_of(path)


@pytest.mark.parametrize("limit", [1, 32, 33, 34, 60, 61, 1000])
def test_no_more_is_read_than_the_limit(tmp_path: Path, limit: int) -> None:
    file = table(tmp_path, ".jsonl", [{"text": row} for row in ROWS])
    text = text_of(file, limit=limit)
    assert "\n\n".join(ROWS).startswith(text)
    assert len(text.replace("\n\n", "")) == min(limit, sum(map(len, ROWS)))


def test_rows_past_the_limit_are_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = []

    def endless(where: dict[str, Any], column: str, dataset: str) -> Iterator[str]:
        while True:
            given.append(column)
            yield "x" * 100

    monkeypatch.setattr(calibration, "_rows", endless)
    table(tmp_path, ".jsonl", [{"text": "x"}]).rename(tmp_path / "web.jsonl")
    assert len(text_of(tmp_path / "web.jsonl", limit=1000).replace("\n\n", "")) == 1000
    assert len(given) == 10


def test_windows_ask_for_text_in_proportion(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    limits = []

    def text(dataset: str, half: str, asked: Calibration, limit: int) -> str:
        limits.append(limit)
        return "a b c d " * 100

    monkeypatch.setattr(calibration, "read_text", text)
    windows(Calibration(samples=1000), 10, tokenizer)
    windows(Calibration(samples=2000), 10, tokenizer)
    assert limits[1] == 2 * limits[0] >= 2 * 1000 * 10


def test_long_words_are_not_mistaken_for_too_little_text(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "long.txt"
    file.write_text(("Ä" * 60 + " ") * 500)
    assert windows(Calibration(dataset=str(file), samples=1), 16, tokenizer).tokens.shape == (1, 16)


@pytest.mark.parametrize("dataset", ["wikitext2", "c4", "someone/something"])
def test_a_data_set_out_of_reach_is_one_sentence(dataset: str) -> None:
    with pytest.raises(JobError, match="out of reach") as raised:
        text_of(dataset)
    assert dataset in str(raised.value)
    assert "builtin" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_data_set_that_keeps_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(where: dict[str, Any], column: str, dataset: str) -> Iterator[str]:
        yield "a document"
        time.sleep(5)

    monkeypatch.setattr(calibration, "_rows", silent)
    monkeypatch.setattr(calibration, "TIMEOUT", 0.2)
    start = time.monotonic()
    with pytest.raises(JobError, match=r"nothing arrived .*use `builtin`"):
        text_of("someone/something")
    assert time.monotonic() - start < 3


def test_a_wrong_column_of_a_data_set_is_a_request_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda **where: iter([{"body": "words"}]))
    with pytest.raises(RequestError, match="text columns: body"):
        text_of("someone/something")


def test_the_asked_subset_and_split_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def load(**where: Any) -> Iterator[dict[str, str]]:
        asked.update(where)
        return iter([{"text": "words"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert text_of("someone/something", subset="en", split="validation") == "words"
    assert asked == {"path": "someone/something", "name": "en", "split": "validation", "streaming": True}


@pytest.mark.parametrize("dataset", ["wikitext2", "c4"])
def test_known_data_sets_are_pinned_and_their_halves_differ(
    monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    import datasets

    asked: list[dict[str, Any]] = []

    def load(**where: Any) -> Iterator[dict[str, str]]:
        asked.append(where)
        return iter([{"text": "words"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    for half in ("calibration", "evaluation"):
        assert read_text(dataset, half, Calibration()) == "words"
    assert asked[0] != asked[1]
    assert all(len(where["revision"]) == 40 for where in asked)


@given(st.integers(1, 20), st.integers(1, 7))
def test_batches_are_the_windows_in_order(count: int, size: int) -> None:
    tokens = torch.arange(count * 3).reshape(count, 3)
    batches = calibration.batched(tokens, size)
    assert torch.equal(torch.cat(batches), tokens)
    assert all(1 <= len(batch) <= size for batch in batches)
