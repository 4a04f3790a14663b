"""A process that pushes, and knows only the Hub of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.checkpoint.writable_hub import Fault, WritableHub

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

    def refused(self, folder: Path, fault: Fault) -> str:
        """Push with a fault of the Hub: one sentence, no secret in it, and the folder as it was."""
        self.hub.faults.append(fault)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        sentence = self.fails(folder, "me/small")
        assert sentence.startswith("llmprune: cannot push to me/small: ")
        assert f"{folder} is kept" in sentence
        assert not [secret for secret in ("signature", TOKEN) if secret in sentence]
        assert before == {path: path.read_bytes() for path in folder.iterdir()}
        return sentence

    def require_pulled(self, folder: Path) -> None:
        """Open a pull request, which leaves the main branch as it is and sets no tag."""
        said = self.push(folder, "me/small", "--create-pr")
        there = self.hub.versioned["me/small"]
        assert there.requests == [said["commit"]]
        assert there.branches["main"] != said["commit"]
        assert said["url"] == f"{self.hub.endpoint}/me/small/discussions/1"
        assert said["tag"] is None
        assert there.tags == {}

    def require_loads(self, folder: Path, repo: str, revision: str) -> None:
        """Load a repository by its name with plain transformers: it has the folder's weights."""
        out = self.home.with_name("loaded")
        loaded = self(
            code="from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "from safetensors.torch import save_file\n"
            f"model = AutoModelForCausalLM.from_pretrained({repo!r}, revision={revision!r})\n"
            f"AutoTokenizer.from_pretrained({repo!r})\n"
            f"save_file(model.state_dict(), {str(out)!r})"
        )
        assert loaded["code"] == 0, loaded
        weights = load_file(out)
        files = list(folder.glob("model*.safetensors"))
        assert files
        for file in files:
            assert all(weights[key].equal(tensor) for key, tensor in load_file(file).items())

    def close(self) -> None:
        """End the process; it has said nothing past what was caught."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        assert self.errors.read_text() == ""


@contextmanager
def at_work(home: Path, hub: WritableHub, **more: str) -> Iterator[Worker]:
    """A worker, and its Hub, while the context is open."""
    with hub.served():
        made = Worker(home, hub, **more)
        yield made
        made.close()


def names(folder: Path) -> set[str]:
    """Of the files in a folder."""
    return {path.name for path in folder.iterdir()}
