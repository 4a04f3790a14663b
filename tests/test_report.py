"""A report is read back as it was written, or refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llmprune_eval import keeping, runs

from llmprune import prune, push, recover, report
from llmprune.errors import RequestError
from llmprune.report import FILE, Report, SiteRecord
from tests import tiny

UNITS = {"name": "units", "multiple": 8}
TEXT = {"samples": 4, "length": 32}
MASKED: dict[str, Any] = {"method": "magnitude", "pattern": "2:4"}


pytestmark = pytest.mark.usefixtures("check_in_process")


@pytest.fixture
def finished(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    prune(checkpoints("llama"), MASKED, out=tmp_path / "out")
    return tmp_path / "out"


READERS: dict[str, Callable[[Path], object]] = {
    "read": report.read,
    "recover": recover,
    "push": lambda folder: push(folder, "me/small"),
    "eval --save": lambda folder: keeping.require_ours([str(folder)]),
    "prune --resume": lambda folder: prune("dense", MASKED, out=folder, resume=True),
    "recover --resume": lambda folder: recover(folder.with_name("out"), out=folder, resume=True),
    "report": runs.read,
}
every_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


def refusal(reader: Callable[[Path], object], folder: Path) -> str:
    with pytest.raises(RequestError) as caught:
        reader(folder)
    return str(caught.value)


@every_reader
@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '"x"', '{"schema": 1}', '{"schema": 1, "more": 2}'])
def test_a_damaged_report_is_a_sentence(
    text: str, reader: Callable[[Path], object], finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "damaged").mkdir()
    file = tmp_path / "damaged" / FILE
    file.write_text(text)
    said = refusal(reader, tmp_path / "damaged")
    assert said.startswith(f"model: {file} cannot be read as a report of llmprune (")
    assert said.endswith("); restore it, or prune anew") and "\n" not in said


@every_reader
def test_another_schema_is_a_sentence(
    reader: Callable[[Path], object], finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "later").mkdir()
    file = tmp_path / "later" / FILE
    file.write_text(json.dumps(json.loads((finished / FILE).read_text()) | {"schema": 2, "totals": {}}))
    assert refusal(reader, file.parent) == f"model: {file} has schema 2, and 1 can be read; update llmprune"


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("totals", {"sparsity": "much"}),
        ("totals", {"parameters_before": 0}),
        ("model", {"bytes": True}),
        ("recipe", {"method": {}}),
        ("time", {"total_s": None}),
    ],
)
def test_a_wrong_part_is_named(part: str, changes: dict[str, Any], finished: Path) -> None:
    told = json.loads((finished / FILE).read_text())
    told[part] |= changes
    (finished / FILE).write_text(json.dumps(told))
    assert f"({part}.{next(iter(changes))}" in refusal(report.read, finished)


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        (MASKED, None),
        ({"method": "sparsegpt", "sparsity": 0.5}, "lora"),
        ({"method": "flap", "sparsity": 0.3, "pattern": UNITS}, "reconstruct"),
        ({"method": {"name": "prunenet", "passes": 1}, "sparsity": 0.1, "pattern": UNITS}, None),
    ],
)
def test_a_report_is_read_back_as_it_was_written(
    asked: dict[str, Any], then: str | None, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    made = prune(checkpoints("llama"), asked, calibration=TEXT, out=tmp_path / "out")
    made = recover(tmp_path / "out", then, out=tmp_path / "then") if then else made
    file = tmp_path / ("then" if then else "out") / FILE
    text = file.read_text()
    assert made == report.read(file.parent)
    assert made.to_json() == Report.from_json(text).to_json() == text
    assert all(site.model_extra == {} for site in made.sites) and made.model_extra == {}


def test_what_a_later_version_adds_is_let_through_and_stays(finished: Path) -> None:
    told = json.loads((finished / FILE).read_text())

    def added(value: Any) -> Any:
        if isinstance(value, dict):
            return {"a_first": [1]} | {key: added(inner) for key, inner in value.items()} | {"later": "x"}
        return [added(inner) for inner in value] if isinstance(value, list) else value

    later = {key: added(value) for key, value in told.items() if key not in ("versions", "schema")}
    later["sites"] = [site | {"later": "x"} for site in told["sites"]]
    text = json.dumps(told | later | {"more": {"x": 1}}, indent=1)
    (finished / FILE).write_text(text)
    read = report.read(finished)
    assert read is not None
    assert json.loads(read.to_json()) == json.loads(text)
    assert list(json.loads(read.to_json())["totals"]) == list(later["totals"])
    assert read.totals["sparsity"] == 0.5 and runs.read(finished) == read


def test_the_parts_of_a_report_are_plain_mappings(finished: Path) -> None:
    read = report.read(finished)
    assert read is not None
    told = json.loads((finished / FILE).read_text())
    for part in ("model", "recipe", "totals", "time", "memory", "reload", "versions", "fingerprint"):
        assert type(getattr(read, part)) is dict and getattr(read, part) == told[part]
    assert [site.model_dump() for site in read.sites] == told["sites"]
    assert isinstance(read.sites[0], SiteRecord)


def test_there_is_no_report_of_another_folder(checkpoints: tiny.Checkpoints, tmp_path: Path) -> None:
    assert report.read(checkpoints("llama")) is None
    assert report.read(tmp_path / "nowhere") is None


def test_the_schema_needs_no_torch() -> None:
    code = "import sys; from llmprune import Report; print('torch' in sys.modules, Report.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "llmprune.report"]
