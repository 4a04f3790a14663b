"""`llmprune` alone says what fits the folder it is in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmprune import prune
from llmprune.cli.start import ALL, NOTHING, advice
from llmprune.report import FILE
from tests import tiny

PROGRAM = Path(sys.executable).with_name("llmprune")
pytestmark = pytest.mark.usefixtures("check_in_process")


def test_in_an_empty_folder_it_names_the_demo(tmp_path: Path) -> None:
    assert advice(tmp_path) == NOTHING
    done = subprocess.run([PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Next:\nllmprune demo\n") and done.stdout.rstrip().endswith(ALL)


def test_what_was_done_is_not_advised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "begun" / ".unfinished").mkdir(parents=True)
    tiny.save("llama", tmp_path / "my model")
    prune("my model", "magnitude-50", out=Path("pruned"))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE).write_text("{bad")
    (tmp_path / "secret").mkdir(mode=0)
    said = [command for command, _ in advice(Path())]
    assert said == [
        "the command that wrote it, with --resume",
        "# broken",
        "llmprune inspect 'my model' --recipe small",
        "llmprune prune 'my model' --recipe small --out 'my model-small'",
        "llmprune eval pruned --baseline 'my model' --perplexity builtin --save",
        "llmprune recover pruned --method distill",
        "llmprune export pruned --to gguf --type q8_0",
    ]
    prune("my model", "magnitude-50", out=Path("twice"))
    (tmp_path / "my model-small").mkdir()
    (tmp_path / "twice-q8_0.gguf").touch()
    (tmp_path / "twice-recovered").mkdir()
    said = [command for command, _ in advice(Path())]
    assert said[-1] == "llmprune report pruned twice"
    assert not [
        one for one in said if "-small" in one or ("twice" in one and ("export" in one or "recover" in one))
    ]


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from llmprune.cli.start import advice; advice(Path()); "
    done = subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], cwd=tmp_path)
    assert done.returncode == 0
