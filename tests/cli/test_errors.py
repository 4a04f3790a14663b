"""A wrong request costs one line on stderr and exit code 2: no traceback, no output, no folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmprune.errors import JobError
from tests.cli.command import MODEL, OUT, USUAL, filled, main
from tests.program import run

# What is asked besides `prune {model} --out {out}`, the field that is named, and what is said of it.
WRONG: dict[str, tuple[list[str], str, str]] = {
    "no method": ([], "method", "none was given"),
    "unknown method": (["--method", "wandas"], "method", "did you mean 'wanda'"),
    "no such policy": (
        ["--policy", "nowhere/policy.safetensors", "--multiple", "8", "--samples", "2", "--length", "16"],
        "policy",
        "nowhere/policy.safetensors and its .json hold no policy",
    ),
    "no such repository": (["--method", "wanda", "--push-to-hub", "me"], "repo", "me"),
    "multiple above the width": (["--method", "flap"], "pattern.multiple", "64 was asked"),
    "all heads": (["--method", "flap", "--multiple", "8", "--sparsity", "0.97"], "sparsity", "at most"),
    "one size for all": (["--method", "flap", "--layout", "uniform"], "layout", "--allocation uniform"),
    "repair of loose weights": ([*USUAL, "--repair", "affine"], "repair", "use --repair none"),
    "2:4 by a criterion of blocks": (["--method", "sleb", "--pattern", "2:4"], "pattern", "use blocks"),
    "a criterion with no tokens": (
        ["--method", "sleb", "--pattern", "blocks", "--set", "allocation.tokens=0"],
        "allocation.tokens",
        "greater than",
    ),
    "multiple of loose weights": ([*USUAL, "--multiple", "8"], "pattern.multiple", "no such option"),
    "unknown recovery": ([*USUAL, "--recover", "laura"], "recovery", "did you mean 'lora'"),
    "2:4 with 0.3": ([*USUAL, "--pattern", "2:4", "--sparsity", "0.3"], "sparsity", "removes exactly 0.5"),
    "sparsity 1.5": ([*USUAL, "--sparsity", "1.5"], "sparsity", "less than 1"),
    "sparsity -0.1": ([*USUAL, "--sparsity", "-0.1"], "sparsity", "greater than"),
    "pattern 4:4": ([*USUAL, "--pattern", "4:4"], "pattern", "N must be"),
    "unknown pattern": ([*USUAL, "--pattern", "stripes"], "pattern", "allowed"),
    "inputs in no sevens": ([*USUAL, "--pattern", "5:7"], "pattern", "not a multiple of 7"),
    "owl with 2:4": ([*USUAL, "--pattern", "2:4", "--allocation", "owl"], "allocation", "use uniform"),
    "unknown propagation": ([*USUAL, "--propagation", "site"], "propagation", "site"),
    "missing column": (
        [*USUAL, "--calibration", "{tmp}/table.jsonl", "--text-column", "body"],
        "text_column",
        "set --text-column",
    ),
    "column of no table": (
        [*USUAL, "--calibration", "builtin", "--text-column", "text"],
        "calibration.text_column",
        "no such option for the text builtin; leave it out",
    ),
    "empty text": ([*USUAL, "--calibration", "{tmp}/empty.txt"], "calibration", "holds no text"),
    "short text": ([*USUAL, "--calibration", "{tmp}/short.txt"], "calibration", "fewer than one window"),
    "no text": ([*USUAL, "--calibration", "{tmp}/absent.txt"], "calibration", "there is no file"),
    "too long": (["--method", "wanda", "--length", "65"], "calibration.length", "context is 64"),
    "one window to choose on": (
        [*USUAL, "--allocation", "search", "--samples", "1", "--length", "16"],
        "calibration.samples",
        "at least 2",
    ),
    "no samples": ([*USUAL, "--samples", "0"], "calibration.samples", "greater"),
    "wrong key": (["--recipe", "{tmp}/wrong.yaml"], "sparcity", "no such option"),
    "recipe that is a list": (["--recipe", "{tmp}/list.yaml"], "recipe", "not a mapping"),
    "recipe that is broken": (["--recipe", "{tmp}/broken.yaml"], "recipe", "not YAML"),
    "recipe that is not there": (["--recipe", "{tmp}/absent.yaml"], "recipe", "no shipped recipe"),
    "set without a value": ([*USUAL, "--set", "sparsity"], "set", "key=value"),
    "set of an unknown option": ([*USUAL, "--set", "method.dampening=1"], "method.dampening", "no such"),
    "set of broken yaml": ([*USUAL, "--set", "sparsity=["], "recipe", "not YAML"),
    "absent GPU": ([*USUAL, "--device", "cuda:99"], "device", "torch finds cpu"),
    "BOS in other words": ([*USUAL, "--bos", "yes"], "calibration.bos", "give auto, true or false"),
    "unknown device": ([*USUAL, "--device", "tpu"], "device", "torch finds cpu"),
    "device of another kind": ([*USUAL, "--device", "meta"], "device", "or auto"),
    "unknown dtype": ([*USUAL, "--dtype", "int3"], "dtype", "bfloat16"),
    "memory in words": ([*USUAL, "--max-memory", "lots"], "max_memory", "8GiB"),
}


# Whole commands, the field that is named, and what is said of it.
COMMANDS: dict[str, tuple[list[str], str, str]] = {
    "folder without a model": (["prune", "{tmp}/bare", "--out", OUT, *USUAL], "model", "no config.json"),
    "model that is not there": (["prune", "{tmp}/nowhere", "--out", OUT, *USUAL], "model", "no Hub id"),
    "model of another user": (["prune", "~nobody_of_that_name/m", "--out", OUT, *USUAL], "model", "nobody"),
    "empty model": (["prune", "", "--out", OUT, *USUAL], "model", ""),
    "full folder": (["prune", MODEL, "--out", "{tmp}/full", *USUAL], "out", "is not empty"),
    "full folder gone on with": (
        ["prune", MODEL, "--out", "{tmp}/full", *USUAL, "--resume"],
        "out",
        "which no run of llmprune left there",
    ),
    "file for a folder": (["prune", MODEL, "--out", "{tmp}/empty.txt", *USUAL], "out", "is a file"),
    "folder under a file": (["prune", MODEL, "--out", "{tmp}/empty.txt/x", *USUAL], "out", ""),
    "the model's own folder": (["prune", MODEL, "--out", MODEL, *USUAL], "out", ""),
    "the model's own folder gone on with": (["prune", MODEL, "--out", MODEL, *USUAL, "--resume"], "out", ""),
    "recipe without a model": (["prune", "{tmp}/nomodel.yaml", "--out", OUT], "model", "names none"),
    "two recipes": (
        ["prune", "{tmp}/nomodel.yaml", "--recipe", "{tmp}/nomodel.yaml", "--out", OUT],
        "recipe",
        "give one",
    ),
    "inspect": (["inspect", "{tmp}/bare", "--json"], "model", "no config.json"),
    "inspect with 4:4": (["inspect", MODEL, "--pattern", "4:4"], "pattern", "N must be"),
    "eval of nothing": (["eval", MODEL], "perplexity", "nothing was asked"),
    "eval of no text": (["eval", MODEL, "--perplexity", "{tmp}/absent.txt"], "perplexity", "absent.txt"),
    "eval by a column of no table": (
        ["eval", MODEL, "--perplexity", "builtin", "--text-column", "text"],
        "text_column",
        "no such option for the text builtin; leave it out",
    ),
    "a plan with a policy that is none": (
        ["inspect", MODEL, "--policy", "nofile", "--multiple", "8"],
        "policy",
        "no policy",
    ),
    "eval of a broken table": (
        ["eval", MODEL, "--perplexity", "{tmp}/broken.jsonl"],
        "perplexity",
        "is complete",
    ),
    "eval without a tokenizer": (
        ["eval", "{tmp}/wordless", "--perplexity", "builtin"],
        "tokenizer",
        "none could be loaded from",
    ),
    "eval with BOS in other words": (
        ["eval", MODEL, "--perplexity", "builtin", "--bos", "yes"],
        "bos",
        "'yes' was asked; give auto, true or false",
    ),
    "prune by a map that is not there": (
        ["prune", MODEL, "--out", OUT, *USUAL, "--device-map", "{tmp}/absent.yaml"],
        "device_map",
        "cannot be read",
    ),
    "eval by a map of no modules": (
        ["eval", MODEL, "--perplexity", "builtin", "--device-map", "{tmp}/list.yaml"],
        "device_map",
        "maps no modules",
    ),
    "bench by a map of another model": (
        ["bench", MODEL, "--device-map", "{tmp}/wrong.yaml"],
        "device_map",
        "the model has no such module",
    ),
    "bench of parts beside a model": (
        ["bench", MODEL, "--blocks", "--baseline", MODEL],
        "blocks",
        "leave out --baseline",
    ),
    "eval on no device": (["eval", MODEL, "--perplexity", "builtin", "--device", "tpu"], "device", "tpu"),
    "eval in no dtype": (["eval", MODEL, "--perplexity", "builtin", "--dtype", "int3"], "dtype", "int3"),
    "eval into no folder": (
        ["eval", MODEL, "--perplexity", "builtin", "--windows", "1", "--out", "{tmp}/no/where.json"],
        "out",
        "where.json",
    ),
    "eval into a folder": (["eval", MODEL, "--perplexity", "builtin", "--out", "{tmp}/full"], "out", "full"),
}


PRUNES = {name: (["prune", MODEL, "--out", OUT, *words], *told) for name, (words, *told) in WRONG.items()}


@pytest.mark.parametrize(
    ("words", "field", "said"), [*PRUNES.values(), *COMMANDS.values()], ids=[*PRUNES, *COMMANDS]
)
def test_a_wrong_request_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: dict[str, str],
    words: list[str],
    field: str,
    said: str,
) -> None:
    model = {path: path.stat().st_mtime_ns for path in Path(place["model"]).iterdir()}
    code = main(monkeypatch, filled(words, place))
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    *before, last = err.splitlines()
    assert last.startswith(f"llmprune: {field}: ")
    assert said in last
    assert not [line for line in before if line.startswith(("Traceback", "llmprune:"))]
    assert not Path(place["out"]).exists()
    assert [path.name for path in Path(place["tmp"], "full").iterdir()] == ["notes"]
    assert {path: path.stat().st_mtime_ns for path in Path(place["model"]).iterdir()} == model


USAGE = {
    "unknown option": ["prune", MODEL, "--out", OUT, "--bogus"],
    "unknown command": ["prunes"],
    "missing model": ["prune", "--out", OUT],
    "missing folder": ["prune", MODEL],
    "missing value": ["prune", MODEL, "--out"],
    "text for a number": ["prune", MODEL, "--out", OUT, "--sparsity", "abc"],
    "half a sample": ["prune", MODEL, "--out", OUT, "--samples", "1.5"],
    "one word too many": ["prune", MODEL, "another", "--out", OUT],
    "no windows": ["eval", MODEL, "--windows", "0"],
}


@pytest.mark.parametrize("words", USAGE.values(), ids=USAGE)
def test_a_misspelt_command_line_says_how_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: dict[str, str],
    words: list[str],
) -> None:
    code = main(monkeypatch, filled(words, place))
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err
    assert not Path(place["out"]).exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (JobError("the disk is full; free some space"), 1, "llmprune: the disk is full; free some space\n"),
        (
            KeyboardInterrupt(),
            130,
            "llmprune: stopped; rerun it (`prune`, `score` and `recover` with --resume)\n",
        ),
    ],
)
def test_how_a_command_ends_shows_in_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: dict[str, str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("llmprune.run.job.checkpoint_job", fail)
    assert main(monkeypatch, filled(["prune", MODEL, "--out", OUT, *USUAL], place)) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's disk that is always full")
def test_results_that_cannot_be_written_are_printed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: dict[str, str]
) -> None:
    words = ["eval", MODEL, "--perplexity", "builtin", "--windows", "1", "--out", "/dev/full", "--json"]
    assert main(monkeypatch, filled(words, place)) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["model"]["perplexity"]
    assert err.splitlines()[-1].startswith("llmprune: /dev/full cannot be written (No space left on device)")


def test_too_little_memory_is_a_failed_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: dict[str, str]
) -> None:
    words = filled(["prune", MODEL, "--out", OUT, *USUAL, "--max-memory", "1KB"], place)
    assert main(monkeypatch, words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("llmprune: the plan needs ")
    assert not Path(place["out"]).exists()


@pytest.mark.parametrize(
    "words",
    [
        ["prune", MODEL, "--out", OUT, *USUAL, "--pattern", "2:4", "--sparsity", "0.3"],
        ["prune", "{tmp}/bare", "--out", OUT, *USUAL],
    ],
    ids=["wrong recipe", "wrong model"],
)
def test_the_program_ends_with_2_and_one_line(place: dict[str, str], words: list[str]) -> None:
    done = run(*filled(words, place))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("llmprune: ")
    assert done.stderr.count("\n") == 1
    assert not Path(place["out"]).exists()


def test_the_program_ends_with_2_for_an_unknown_option(place: dict[str, str]) -> None:
    done = run(*filled(["prune", MODEL, "--out", OUT, "--bogus"], place))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--bogus" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recover", "{model}"], "model: {model} is no folder that llmprune has pruned"),
        (["recover", "{tmp}/nowhere", "--reconstruct"], "model: {tmp}/nowhere is no folder"),
        (["recover", "{tmp}/nowhere", "--method", "lora"], "model: {tmp}/nowhere is no folder"),
        (["recover", "{model}", "--reconstruct", "--lora"], "method: lora and reconstruct were asked"),
        (["bench", "{tmp}/nowhere"], "model: '{tmp}/nowhere' is no folder"),
    ],
)
def test_what_cannot_be_recovered_or_measured_is_refused(
    words: list[str], said: str, place: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert main(patch, filled(words, place)) == 2
    assert capsys.readouterr().err.startswith(f"llmprune: {said.format(**place)}")
