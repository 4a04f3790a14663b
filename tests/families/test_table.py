"""The support table is what its results say, and the results are what a sweep finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from llmprune.checkpoint import reload
from tests.families import configs, sweep, table

ROWS = sweep.read()
SAMPLE = ["gemma3", "lfm2", "rwkv", "qwen3_5_text"]  # a vision model, hybrids, and a chain of states


def test_the_page_is_what_the_results_say() -> None:
    assert table.FILE.read_text() == table.table(ROWS)
    assert table.paragraph(ROWS) in table.README.read_text()


def test_every_family_is_there_and_passes_or_has_a_reason() -> None:
    if ROWS["llama"]["transformers"] == transformers.__version__:
        assert sorted(ROWS) == configs.names()
    for family, row in ROWS.items():
        said = [row["built"]] if row["built"] != sweep.OK else [row[way] for way in sweep.WAYS]
        assert all(one and "\n" not in one for one in said), family
        assert not [one for one in said if one.startswith(("CRASH", "WRONG"))], family
    assert sum(row.get("channels") == sweep.OK for row in ROWS.values()) >= 60


@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_ends_as_the_page_says(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ROWS[family]["transformers"] != transformers.__version__:
        pytest.skip(f"the page was made with transformers {ROWS[family]['transformers']}")
    monkeypatch.setattr(reload, "check", reload.check)  # put back afterwards
    row: sweep.Row = {"family": family}
    sweep.prune_every_way(family, tmp_path, row)
    sweep.reload_all(tmp_path, row)
    assert {name: row[name] for name in ("built", "walk", *sweep.WAYS)} == {
        name: ROWS[family][name] for name in ("built", "walk", *sweep.WAYS)
    }


def test_what_does_not_end_is_ended(tmp_path: Path) -> None:
    def forever(family: str, folder: Path, row: sweep.Row) -> None:
        while True:
            pass

    assert "did not end" in sweep.in_child(forever, "llama", tmp_path, {}, limit=0.5)["built"]


def test_what_breaks_is_told(tmp_path: Path) -> None:
    def breaks(family: str, folder: Path, row: sweep.Row) -> None:
        row["walk"] = "ok"
        raise ValueError

    assert sweep.in_child(breaks, "llama", tmp_path, {}, limit=60) == {
        "walk": "ok",
        "built": "CRASH with exit code 1",
    }
