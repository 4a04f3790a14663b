"""A finished folder goes to the Hub once, by the Hub's own client; what goes wrong is one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import llmprune
from llmprune import pushing
from llmprune.errors import JobError, RequestError
from tests import tiny
from tests.checkpoint.writable_hub import CUT, Fault, WritableHub

ROOT = Path(__file__).parents[1]
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

    def __init__(self, home: Path, hub: WritableHub) -> None:
        self.hub, self.home, self.errors = hub, home, home.with_name("errors.txt")
        pipe, env = subprocess.PIPE, environment(home, hub.endpoint)
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


@pytest.fixture(scope="module")
def finished(checkpoints: tiny.Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned tiny model. Not to be written to."""
    out = tmp_path_factory.mktemp("pruned") / "small"
    ask = {"method": "magnitude", "pattern": "2:4"}
    llmprune.prune(checkpoints("llama"), ask, out=out)
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A pruned tiny model that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "small"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    home = tmp_path_factory.mktemp("hub") / "home"
    with WritableHub().served() as hub:
        assert isinstance(hub, WritableHub)
        made = Worker(home, hub)
        yield made
        made.close()
    assert made.errors.read_text() == ""


@pytest.fixture
def hub(worker: Worker) -> Iterator[WritableHub]:
    """The worker's Hub, without a fault and empty."""
    worker.hub.versioned.clear()
    worker.hub.objects.clear()
    yield worker.hub
    worker.hub.faults.clear()
    worker.hub.loses.clear()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def recipe_of(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["llmprune"]["recipe"])


def test_a_pushed_model_is_loaded_by_its_name(worker: Worker, hub: WritableHub, finished: Path) -> None:
    said = worker.push(finished, "me/small")
    assert said["repo"] == "me/small"
    assert said["url"] == f"{hub.endpoint}/me/small"
    assert said["uploaded"] == len(names(finished))
    assert said["bytes_uploaded"] == sum(path.stat().st_size for path in finished.iterdir())
    there = hub.versioned["me/small"]
    assert there.branches["main"] == said["commit"]
    assert not there.private
    files = there.commits[said["commit"]]
    assert set(files) == {*names(finished), ".gitattributes"}
    assert all(files[path.name] == path.read_bytes() for path in finished.iterdir())
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from safetensors.torch import save_file\n"
        f"model = AutoModelForCausalLM.from_pretrained('me/small', revision={said['tag']!r})\n"
        "AutoTokenizer.from_pretrained('me/small')\n"
        f"save_file(model.state_dict(), {str(worker.home.with_name('loaded'))!r})"
    )
    loaded = worker(code=code)
    assert loaded["code"] == 0, loaded
    weights = load_file(worker.home.with_name("loaded"))
    for file in finished.glob("*.safetensors"):
        for key, tensor in load_file(file).items():
            assert weights[key].equal(tensor)


def test_the_tag_names_the_recipe(worker: Worker, hub: WritableHub, finished: Path) -> None:
    said = worker.push(finished, "me/small")
    assert said["tag"] == f"llmprune-{recipe_of(finished)[:12]}"
    assert hub.versioned["me/small"].tags == {said["tag"]: said["commit"]}


def test_a_second_push_sends_nothing(worker: Worker, hub: WritableHub, finished: Path) -> None:
    first, second = worker.push(finished, "me/small"), worker.push(finished, "me/small")
    assert len([line for line in first["wrote"] if "/commit/" in line]) == 1
    assert second["commit"] == first["commit"]
    assert second["tag"] == first["tag"]
    assert (second["uploaded"], second["bytes_uploaded"]) == (0, 0)
    assert not [line for line in second["wrote"] if "PUT" in line or "/commit/" in line]
    assert "holds the same already" in second["err"]


def test_only_what_differs_is_sent(worker: Worker, hub: WritableHub, folder: Path) -> None:
    first = worker.push(folder, "me/small")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMeasured since.\n")
    (folder / "odd [1]*?.txt").write_text("a name that is a pattern too")
    again = worker.push(folder, "me/small")
    assert again["uploaded"] == 2
    assert not [line for line in again["wrote"] if "PUT" in line]
    there = hub.versioned["me/small"]
    assert "odd [1]*?.txt" in there.commits[again["commit"]]
    assert there.tags == {first["tag"]: first["commit"]}
    assert f"stays at {first['commit'][:12]}" in again["err"]


def test_what_the_hub_remarks_on_the_card_is_news(worker: Worker, hub: WritableHub, finished: Path) -> None:
    hub.faults.append(Fault("yaml", 200, answer={"warnings": [{"message": "no licence"}]}))
    said = worker.push(finished, "me/small")
    assert "no licence" in said["err"]
    assert "UserWarning" not in said["err"]


def test_weights_of_an_earlier_checkpoint_are_removed(worker: Worker, hub: WritableHub, folder: Path) -> None:
    first = worker.push(folder, "me/small")
    commits = hub.versioned["me/small"].commits
    stray = {"model.safetensors": b"old", "notes.txt": b"kept", "adapter/adapter.safetensors": b"kept"}
    commits[first["commit"]] |= stray
    second = worker.push(folder, "me/small")
    del stray["model.safetensors"]
    assert set(commits[second["commit"]]) == {*names(folder), ".gitattributes", *stray}
    assert "removing weights of an earlier checkpoint from me/small: model.safetensors" in second["err"]


def test_hidden_files_stay_at_home(worker: Worker, hub: WritableHub, folder: Path) -> None:
    (folder / ".env").write_text("HF_TOKEN=x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("")
    said = worker.push(folder, "me/small")
    assert set(hub.versioned["me/small"].commits[said["commit"]]) == {*names(folder), ".gitattributes"} - {
        ".env",
        ".git",
    }


def test_a_private_repository_is_made_and_kept(worker: Worker, hub: WritableHub, finished: Path) -> None:
    worker.push(finished, "me/small", "--private")
    assert hub.versioned["me/small"].private
    assert worker.push(finished, "me/small", "--private")["uploaded"] == 0


def test_nothing_private_goes_to_a_public_place(worker: Worker, hub: WritableHub, finished: Path) -> None:
    worker.push(finished, "me/small")
    sentence = worker.fails(finished, "me/small", "--private", exit_code=2)
    assert "me/small is public already" in sentence


def test_a_branch_is_made_where_there_is_none(worker: Worker, hub: WritableHub, finished: Path) -> None:
    said = worker.push(finished, "me/small", "--revision", "half/sparse")
    there = hub.versioned["me/small"]
    assert there.branches["half/sparse"] == said["commit"] != there.branches["main"]
    assert there.tags[said["tag"]] == said["commit"]
    assert worker.push(finished, "me/small", "--revision", "half/sparse")["uploaded"] == 0


def test_a_pull_request_leaves_main_as_it_is(worker: Worker, hub: WritableHub, finished: Path) -> None:
    said = worker.push(finished, "me/small", "--create-pr")
    there = hub.versioned["me/small"]
    assert there.requests == [said["commit"]]
    assert there.branches["main"] != said["commit"]
    assert said["url"] == f"{hub.endpoint}/me/small/discussions/1"
    assert said["tag"] is None
    assert there.tags == {}
    sentence = worker.fails(finished, "me/small", "--create-pr", "--revision", "x", exit_code=2)
    assert sentence.startswith("llmprune: revision: ")


def test_without_json_it_says_where_it_is(worker: Worker, hub: WritableHub, finished: Path) -> None:
    said = worker("push", finished, "me/small")
    assert said["code"] == 0
    assert f"{hub.endpoint}/me/small" in said["out"]
    assert f"{len(names(finished))} files" in said["out"]


def test_a_connection_that_breaks_once_is_no_failure(
    worker: Worker, hub: WritableHub, finished: Path
) -> None:
    hub.faults.append(Fault("PUT /lfs/", CUT, times=1))
    hub.faults.append(Fault("preupload", 503, times=1))
    said = worker.push(finished, "me/small")
    assert any(line.endswith(" cut") for line in hub.log)
    assert said["commit"] == hub.versioned["me/small"].branches["main"]


def test_a_push_that_was_cut_off_goes_on(worker: Worker, hub: WritableHub, finished: Path) -> None:
    hub.faults.append(Fault("/commit/", CUT, times=1))
    sentence = worker.fails(finished, "me/small")
    assert "push again" in sentence
    assert [line for line in hub.log if line.startswith("PUT")]
    said = worker.push(finished, "me/small")
    assert not [line for line in said["wrote"] if line.startswith("PUT")]
    assert said["uploaded"] == len(names(finished))


def test_a_push_that_was_not_tagged_is_tagged_the_next_time(
    worker: Worker, hub: WritableHub, finished: Path
) -> None:
    hub.faults.append(Fault("/tag/", 500, times=1))
    worker.fails(finished, "me/small")
    said = worker.push(finished, "me/small")
    assert said["uploaded"] == 0
    assert hub.versioned["me/small"].tags == {said["tag"]: said["commit"]}


FAULTS = {
    "401": (Fault("repos/create", 401, "Invalid username or password."), "hf auth login"),
    "402": (Fault("/commit/", 402, "Private storage is full."), "Private storage is full"),
    "403": (Fault("/commit/", 403, "Forbidden."), "write access"),
    "404": (Fault("preupload", 404, "Not here."), "check the name"),
    "409": (Fault("/commit/", 409, "Busy."), "push again in a moment"),
    "412": (Fault("/commit/", 412, "A commit has happened since."), "changed by somebody else"),
    "418": (Fault("/commit/", 418, "Teapot."), "Teapot"),
    "429": (Fault("repos/create", 429, "Slow down."), "in a few minutes"),
    "500": (Fault("repos/create", 500, "Oops.\nTwice."), "push again later"),
    "503 for a file": (Fault("PUT /lfs", 503, "Busy.", headers={"Retry-After": "0"}), "push again later"),
    "403 for a file": (Fault("PUT /lfs", 403, "Expired."), "(Expired)"),
    "card": (
        Fault("yaml", 400, "Bad.", answer={"errors": [{"message": "no such licence"}]}),
        "no such licence",
    ),
    "page": (Fault("repos/create", 200, "Log in to this café."), "HF_ENDPOINT"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_fault_is_one_sentence(
    worker: Worker, hub: WritableHub, finished: Path, fault: tuple[Fault, str]
) -> None:
    hub.faults.append(fault[0])
    before = {path: path.read_bytes() for path in finished.iterdir()}
    sentence = worker.fails(finished, "me/small")
    assert sentence.startswith("llmprune: cannot push to me/small: ")
    assert fault[1] in sentence
    assert f"{finished} is kept" in sentence
    assert "signature" not in sentence
    assert before == {path: path.read_bytes() for path in finished.iterdir()}


def test_an_object_that_was_lost_is_sent_again(worker: Worker, hub: WritableHub, finished: Path) -> None:
    lost = sorted(finished.glob("*.safetensors"))[0].name
    hub.loses.add(lost)
    assert "the Hub answered 400 (LFS pointer" in worker.fails(finished, "me/small")
    said = worker.push(finished, "me/small")
    assert len([line for line in said["wrote"] if line.startswith("PUT")]) == 1
    assert hub.versioned["me/small"].commits[said["commit"]][lost] == (finished / lost).read_bytes()


def test_what_somebody_else_commits_meanwhile_is_kept(
    worker: Worker, hub: WritableHub, finished: Path
) -> None:
    hub.rival = "notes.txt"
    assert "the Hub answered 412" in worker.fails(finished, "me/small")
    said = worker.push(finished, "me/small")
    assert not [line for line in said["wrote"] if line.startswith("PUT")]
    assert hub.versioned["me/small"].commits[said["commit"]]["notes.txt"] == b"theirs"


@pytest.mark.parametrize("token", ["hf_reads", "hf_unknown"])
def test_a_token_that_may_not_write_is_one_sentence(
    worker: Worker, hub: WritableHub, finished: Path, token: str
) -> None:
    sentence = worker.fails(finished, "me/small", token=token)
    assert "the token" in sentence
    assert token not in sentence


def test_a_place_of_others_is_one_sentence(worker: Worker, hub: WritableHub, finished: Path) -> None:
    assert "name a repository of yours" in worker.fails(finished, "others/new")
    worker.push(finished, "me/small")
    hub.versioned["others/there"] = hub.versioned.pop("me/small")
    assert worker.push(finished, "others/there", "--create-pr")["uploaded"] == 0


def lone(words: list[object], **env: str) -> subprocess.CompletedProcess[str]:
    """The program itself."""
    return subprocess.run(
        [PROGRAM, *map(str, words)], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_without_a_network_it_is_one_sentence(finished: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, "http://127.0.0.1:9", HF_TOKEN=TOKEN)
    done = lone(["push", finished, "me/small"], **env)
    assert done.returncode == 1
    assert done.stderr.startswith("llmprune: cannot push to me/small: the connection to http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_without_a_token_it_is_one_sentence(worker: Worker, hub: WritableHub, finished: Path) -> None:
    assert "hf auth login" in worker.fails(finished, "me/small", token="")
    assert not hub.log


def test_a_stored_token_is_found(worker: Worker, hub: WritableHub, finished: Path) -> None:
    (worker.home / "token").write_text(TOKEN)
    try:
        assert worker.push(finished, "me/small", token="")["uploaded"]
    finally:
        (worker.home / "token").unlink()


def test_offline_it_asks_nobody(finished: Path) -> None:
    with pytest.raises(JobError, match="HF_HUB_OFFLINE is set"):  # as all of these tests are
        llmprune.push(finished, "me/small")


def test_a_token_is_repeated_nowhere(worker: Worker, hub: WritableHub, finished: Path) -> None:
    hub.faults.append(Fault("repos/create", 403, "You sent {token}.", times=1))
    sentence = worker.fails(finished, "me/small")
    assert "You sent Bearer (token)" in sentence
    said = worker("push", finished, "me/small", "--json")
    for text in (sentence, said["out"], said["err"], worker.errors.read_text()):
        assert TOKEN not in text
    kept = [*finished.iterdir(), *(path for path in worker.home.rglob("*") if path.is_file())]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]
    for files in hub.versioned["me/small"].commits.values():
        assert not [path for path, data in files.items() if TOKEN.encode() in data]


@pytest.mark.parametrize("name", ["small", "", "me/", "me/a/b", "me/a b", "me/a--b", "me/a.git", "x" * 200])
def test_a_name_that_is_none_is_refused(finished: Path, name: str) -> None:
    for refuse in (pushing.require_pushable_name, lambda name: llmprune.push(finished, name)):
        with pytest.raises(RequestError, match="give it as name/repo") as raised:
            refuse(name)
        assert raised.value.field == "repo"
        assert "\n" not in str(raised.value)


def test_a_good_name_is_let_through() -> None:
    pushing.require_pushable_name("me/SmolLM2-135M.2of4_wanda")


DAMAGE: dict[str, tuple[Any, str]] = {
    "cut off": (lambda folder: (folder / ".unfinished").mkdir(), "was cut off"),
    "no report": (lambda folder: (folder / "llmprune_report.json").unlink(), "no llmprune_report.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "other report": (lambda folder: (folder / "llmprune_report.json").write_text("[]"), "not llmprune's"),
    "broken report": (lambda folder: (folder / "llmprune_report.json").write_text("{"), "not llmprune's"),
    "foreign config": (lambda folder: (folder / "config.json").write_text("{}"), "not llmprune's"),
    "lost shard": (lambda folder: min(folder.glob("*.safetensors")).unlink(), "is missing"),
    "nothing": (lambda folder: shutil.rmtree(folder), "no such folder"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_only_a_finished_folder_is_pushed(
    worker: Worker, hub: WritableHub, folder: Path, damage: tuple[Any, str]
) -> None:
    damage[0](folder)
    sentence = worker.fails(folder, "me/small", exit_code=2)
    assert sentence.startswith(f"llmprune: model: {folder} was to be pushed, but ")
    assert damage[1] in sentence
    assert hub.log == []


def test_a_dense_checkpoint_is_refused(
    worker: Worker, hub: WritableHub, checkpoints: tiny.Checkpoints
) -> None:
    assert "no llmprune_report.json" in worker.fails(checkpoints("llama"), "me/small", exit_code=2)
    assert hub.log == []
