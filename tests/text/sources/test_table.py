"""Tables are read row by row, by the column that holds the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from llmprune.errors import RequestError
from llmprune.text import sources

ROWS = ["The first document is about ants.", "The second one is about bees.", "A third: cats."]
every_format = pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])


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


def text_of(file: Path | str, column: str | None = None) -> str:
    return sources.for_evaluation(str(file), column).text("calibration")


@every_format
def test_tables_are_read_row_by_row(tmp_path: Path, suffix: str) -> None:
    file = table(tmp_path, suffix, [{"text": row, "number": 1} for row in ROWS])
    assert text_of(file) == "\n\n".join(ROWS)


@every_format
def test_another_column_can_be_named(tmp_path: Path, suffix: str) -> None:
    file = table(tmp_path, suffix, [{"text": "no", "body": row} for row in ROWS])
    assert text_of(file, "body") == "\n\n".join(ROWS)


@every_format
@pytest.mark.parametrize("column", ["absent", "number"])
def test_a_column_without_text_is_refused_with_those_that_have_it(
    tmp_path: Path, suffix: str, column: str
) -> None:
    file = table(tmp_path, suffix, [{"body": ROWS[0], "title": "Ants", "number": 1}])
    with pytest.raises(RequestError, match=r"text columns: body, title") as raised:
        text_of(file, column)
    assert raised.value.field == "text_column"
    assert repr(column) in str(raised.value)


@pytest.mark.parametrize("name", ["rows [1].jsonl", "a*b.jsonl", "käse.jsonl"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    file = table(tmp_path, ".jsonl", [{"text": ROWS[0]}]).rename(tmp_path / name)
    assert text_of(file) == ROWS[0]


@pytest.mark.parametrize(("name", "content"), [("none.jsonl", b""), ("none.json", b"[]")])
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match="holds no text") as raised:
        text_of(tmp_path / name)
    assert raised.value.field == "calibration"


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("dataset", ["/nowhere/text.parquet", "my/text.jsonl"])
def test_a_table_that_is_not_there_is_no_hub_id(dataset: str) -> None:
    with pytest.raises(RequestError, match=f"there is no file {dataset}"):
        text_of(dataset)
