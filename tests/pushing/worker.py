"""A process that pushes, and knows only the Hub of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.checkpoint.writable_hub import WritableHub

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("llmprune")
TOKEN = "hf_writes"

WORKER = """
import contextlib, io, json, os, sys
from llmprune.cli import main
for line in sys.stdin:
    asked = json.loads(line)
    os.environ["HF_TOKEN"] = asked["token"]
    sys.argv = ["llmprune", *asked["words"]]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(asked["code"]) if asked["code"] else main()
        except SystemExit as leaving:
            code = leaving.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)
"""


def environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    """What a process needs to know only our Hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": path,
        **more,
    }


class Worker:
    """A process that runs one command line after another; the client reads its environment but once."""

    def __init__(self, home: Path, hub: WritableHub, **more: str) -> None:
        self.hub, self.home, self.errors = hub, home, home.with_name("errors.txt")
        pipe, env = subprocess.PIPE, environment(home, hub.endpoint, **more)
        with self.errors.open("w") as errors:
            command = [sys.executable, "-c", WORKER]
            self._process = subprocess.Popen(
                command, env=env, stdin=pipe, stdout=pipe, stderr=errors, text=True
            )

    def __call__(self, *words: object, token: str = TOKEN, code: str = "") -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        asked = {"words": [*map(str, words)], "token": token, "code": code}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.errors.read_text()
        said: dict[str, Any] = json.loads(line)
        return said

    def push(self, *words: object, **how: Any) -> dict[str, Any]:
        """Push, and expect that it is done; its JSON object, and what was written to the Hub meanwhile."""
        self.hub.log.clear()
        said = self("push", *words, "--json", **how)
        assert said["code"] == 0, said
        assert "upload raw bytes" not in said["err"], "what the client calls deprecated is no news"
        return {**json.loads(said["out"]), "wrote": self.hub.wrote(), "err": said["err"]}

    def fails(self, *words: object, exit_code: int = 1, **how: Any) -> str:
        """Push, and expect one sentence."""
        self.hub.log.clear()
        said = self("push", *words, "--json", **how)
        assert said["code"] == exit_code, said
        assert said["out"] == ""
        last = str(said["err"]).splitlines()[-1]
        assert [line for line in said["err"].splitlines() if line.startswith("llmprune: ")] == [last]
        assert "Traceback" not in said["err"]
        assert "Warning" not in said["err"]
        return last

    def close(self) -> None:
        """End the process; it has said nothing past what was caught."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def names(folder: Path) -> set[str]:
    """Of the files in a folder."""
    return {path.name for path in folder.iterdir()}
