"""What goes wrong in a push is one sentence, the folder is kept, and the next push goes on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import llmprune
from llmprune.errors import JobError, RequestError
from llmprune.hub import pushing
from tests import tiny
from tests.checkpoint.writable_hub import CUT, Fault, WritableHub
from tests.hub.worker import PROGRAM, TOKEN, Worker, environment, names


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
    assert fault[1] in worker.refused(finished, fault[0])


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


def test_a_branch_without_a_name_is_refused(finished: Path) -> None:
    with pytest.raises(RequestError, match=r"^revision: it is empty"):
        pushing.push(finished, "me/small", revision="")


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
    worker.home.mkdir(exist_ok=True)
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "cannot be read as a report of llmprune ("),
        ("{", "cannot be read as a report of llmprune ("),
        ('{"schema": 99}', "has schema 99, and 1 can be read; update llmprune"),
    ],
)
def test_a_report_that_cannot_be_read_is_refused(
    worker: Worker, hub: WritableHub, folder: Path, text: str, said: str
) -> None:
    file = folder / "llmprune_report.json"
    file.write_text(text)
    sentence = worker.fails(folder, "me/small", exit_code=2)
    assert sentence.startswith(f"llmprune: model: {file} {said}")
    assert hub.log == []


def test_a_dense_checkpoint_is_refused(
    worker: Worker, hub: WritableHub, checkpoints: tiny.Checkpoints
) -> None:
    assert "no llmprune_report.json" in worker.fails(checkpoints("llama"), "me/small", exit_code=2)
    assert hub.log == []
