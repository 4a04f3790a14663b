"""`llmprune recover --method NAME`, and the flags that named a recovery before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmprune import prune, recovering
from tests import tiny
from tests.cli.command import main

pytestmark = pytest.mark.usefixtures("check_in_process")


class Stop(Exception):
    """A recovery was asked for, which need not be done."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How was to be recovered."""
    seen: list[Any] = []

    def recover(_: Path, how: Any, **__: Any) -> None:
        seen.append(how)
        raise Stop

    monkeypatch.setattr(recovering, "recover", recover)
    return seen


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ([], {"name": "lora"}),
        (["--set", "rank=4"], {"name": "lora", "rank": 4}),
        (["--set", "recovery.rank=4"], {"name": "lora", "rank": 4}),
        (["--method", "lora"], {"name": "lora"}),
        (["--method", "reconstruct", "--set", "ridge=0.1"], {"name": "reconstruct", "ridge": 0.1}),
        (["--lora"], {"name": "lora"}),
        (["--reconstruct"], {"name": "reconstruct"}),
        (["--reconstruct", "--method", "reconstruct"], {"name": "reconstruct"}),
    ],
)
def test_a_recovery_is_asked_for_by_its_name(
    words: list[str], how: dict[str, Any], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        main(monkeypatch, ["recover", "pruned", *words])
    assert asked == [how]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--lora", "--reconstruct"], "lora and reconstruct"),
        (["--method", "lora", "--reconstruct"], "reconstruct and lora"),
        (["--method", "reconstruct", "--lora"], "lora and reconstruct"),
        (["--method", "", "--lora"], "lora and "),
    ],
)
def test_two_recoveries_at_once_are_refused(
    words: list[str],
    names: str,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(monkeypatch, ["recover", "pruned", *words]) == 2
    said = f"llmprune: method: {names} were asked, and one recovers at a time; name it with --method\n"
    assert capsys.readouterr().err == said
    assert asked == []


def test_a_wrong_name_suggests_the_nearest(
    checkpoints: tiny.Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prune(checkpoints("llama"), method="magnitude", pattern="2:4", out=tmp_path / "out")
    capsys.readouterr()
    assert main(monkeypatch, ["recover", str(tmp_path / "out"), "--method", "reconstrct"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "llmprune: recovery: no recovery is called 'reconstrct'; did you mean 'reconstruct'?"
    )
    assert said.count("\n") == 1


def test_the_help_shows_the_method_and_no_flag_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(monkeypatch, ["recover", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--method" in said and "--lora" not in said and "--reconstruct" not in said


def test_options_of_the_text_are_the_text_s(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def recover(*_: Any, calibration: Any, **__: Any) -> None:
        seen.append(calibration)
        raise Stop

    monkeypatch.setattr(recovering, "recover", recover)
    words = ["--calibration", "p.jsonl:answers", "--set", "calibration.most=64", "--set", "rank=4"]
    with pytest.raises(Stop):
        main(monkeypatch, ["recover", "pruned", *words])
    assert seen == [{"dataset": "p.jsonl:answers", "most": 64}]
