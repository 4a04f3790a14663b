"""The program `llmprune` with a command line each in a process of its own, which costs no start-up.

They are forked from one process that has imported everything. That the installed program starts is tested by
`test_packaging.py`, `test_end_to_end.py` and `cli/test_start.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

from llmprune import cli
from llmprune.checkpoint import reload
from tests.reloading import check_here

PROGRAM = Path(sys.executable).with_name("llmprune")  # as it is installed, with its start-up
IMPORTED = [
    "tests.program",
    "tests.resume.children",
    "tests.ranks.children",
    "torch.distributed",
    "transformers.models.llama.modeling_llama",
    "llmprune.cli.app",
    "llmprune_eval.bench",
    "llmprune_eval.evaluation",
    "llmprune_eval.engine",
    "lm_eval.models.huggingface",
    "tests.indexed",
]


def forking() -> ForkServerContext:
    """Where processes come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def run(
    *words: object, cwd: Path | None = None, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """What a command line prints, and the code that it ends with."""
    asked = [*map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        around = {**os.environ, **environment}
        process = forking().Process(target=_main, args=(asked, cwd or Path.cwd(), around, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(asked, timeout)
        return subprocess.CompletedProcess(asked, process.exitcode, out.read_text(), err.read_text())


def _main(words: list[str], cwd: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    for number, file in enumerate((out, err), start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["llmprune", *words]
    reload.check = check_here  # a fresh process takes seconds to start
    cli.main()
