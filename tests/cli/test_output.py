"""Help, JSON and the settled recipe: what the command line prints where nothing is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from llmprune.cli import listing
from tests.cli.command import MODEL, OUT, USUAL, filled, main
from tests.program import PROGRAM, run


@pytest.mark.parametrize("words", [["--help"], ["prune", "--help"], ["eval", "--help"]])
def test_help_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(monkeypatch, words) == 0
    out, err = capsys.readouterr()
    assert "Usage" in out
    assert err == ""


@pytest.mark.parametrize(
    "command", ["bench", "eval", "export", "inspect", "prune", "push", "recover", "report", "score"]
)
def test_help_fits_on_a_screen(command: str) -> None:
    """Of a hundred letters and sixty lines."""
    lines = run(command, "--help", COLUMNS="100").stdout.rstrip().splitlines()
    assert 10 < len(lines) <= 60
    assert max(map(len, lines)) <= 100


def test_the_help_of_prune_begins_with_examples_and_is_grouped() -> None:
    told = run("prune", "--help", COLUMNS="100").stdout
    order = [
        "llmprune prune org/name --recipe",
        "What goes",
        "How much",
        "Text",
        "Where it runs",
        "Afterwards",
    ]
    places = [told.index(part) for part in [*order, "Advanced"]]
    assert places == sorted(places)


def test_help_comes_within_a_second() -> None:
    """Of computing time, which other work on the machine does not lengthen."""
    before = os.times()
    subprocess.run([PROGRAM, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0 < spent < 1.0


@pytest.mark.parametrize(
    "words", [["inspect", MODEL, "--json"], ["inspect", MODEL, *USUAL, "--json"], ["methods", "--json"]]
)
def test_json_is_one_object_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: dict[str, str],
    words: list[str],
) -> None:
    assert main(monkeypatch, filled(words, place)) == 0
    out = capsys.readouterr().out
    assert isinstance(json.loads(out), dict)
    assert out.count("\n") == 1


def test_a_prune_with_json_prints_the_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: dict[str, str]
) -> None:
    checked = {"line": "load({folder})", "compared": "logits", "max_abs_logit_difference": 0.0}
    monkeypatch.setattr("llmprune.checkpoint.reload.check", lambda *_: checked)
    assert main(monkeypatch, filled(["prune", MODEL, "--out", OUT, *USUAL, "--json"], place)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(Path(place["out"], "llmprune_report.json").read_text())
    assert out.count("\n") == 1
    assert "Traceback" not in err


def test_flags_win_over_the_recipe_and_set_over_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: dict[str, str]
) -> None:
    file = Path(place["tmp"], "mine.yaml")
    file.write_text("method: magnitude\nsparsity: 0.1\ncalibration: {seed: 5, samples: 9}\n")
    words = ["inspect", MODEL, "--recipe", str(file), "--method", "sparsegpt", "--sparsity", "0.2"]
    words += [
        "--samples",
        "3",
        "--bos",
        "false",
        "--set",
        "sparsity=3e-1",
        "--set",
        "method.damping=0.5",
        "--json",
    ]
    assert main(monkeypatch, filled(words, place)) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["sparsity"] == 0.3
    assert recipe["method"] == {
        "name": "sparsegpt",
        "damping": 0.5,
        "block_size": 128,
        "precision": "float64",
        "order": "natural",
    }
    assert recipe["calibration"]["samples"] == 3
    assert recipe["calibration"]["seed"] == 5
    assert recipe["calibration"]["bos"] is False


def test_inspect_keeps_to_the_method_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: dict[str, str]
) -> None:
    file = Path(place["tmp"], "mine.yaml")
    file.write_text("method: magnitude\n")
    assert main(monkeypatch, filled(["inspect", MODEL, "--recipe", str(file), "--json"], place)) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["method"]["name"] == "magnitude"


def test_inspect_names_the_recovery(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: dict[str, str]
) -> None:
    asked = ["inspect", MODEL, *USUAL, "--set", "recovery=distill"]
    assert main(monkeypatch, filled(asked, place)) == 0
    said = "\nrecovery     distill on 400,000 tokens, planned and told when the blocks are pruned"
    assert said in capsys.readouterr().out


def test_inspect_shows_the_plan_of_every_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: dict[str, str]
) -> None:
    file = Path(place["tmp"], "steps.yaml")
    file.write_text("steps:\n- {pattern: blocks, sparsity: 0.34}\n- {method: magnitude}\n")
    words = filled(["inspect", MODEL, "--recipe", str(file), "--samples", "4", "--length", "16"], place)
    assert main(monkeypatch, words) == 0
    shown = capsys.readouterr().out
    assert "step         1 of 2" in shown and "step         2 of 2" in shown
    assert "2 over 64 tokens" not in shown  # all of them are
    assert "and 2 for the budgets" in shown
    assert main(monkeypatch, [*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["steps"][0]["allocation_passes"] == 2
    assert said["plan"]["allocation_passes"] == 0
    assert [step["method"]["name"] for step in said["recipe"]["before"]] == ["whole"]


def test_the_guide_names_what_there_is() -> None:
    known = listing.everything()
    named = re.findall(
        r"--(recipe|method|repair) ([\w-]+)", " ".join(options for _, options in listing.GUIDE)
    )
    assert len(named) >= len(listing.GUIDE)
    for kind, name in named:
        assert name in {part["name"] for part in known[f"{kind}s"]}
    assert run("methods").stdout.startswith("what to take\n")
