"""A finished folder goes to the Hub in chunks, the client's way unless it is told otherwise."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.checkpoint.writable_hub import CUT, Fault
from tests.checkpoint.xet_hub import KEY, STORAGE, XetHub
from tests.hub.worker import Worker, at_work, names

ONCE = {"HF_HUB_DISABLE_XET": "0", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with at_work(tmp_path_factory.mktemp("hub") / "home", XetHub(), **ONCE) as made:
        yield made


@pytest.fixture
def hub(worker: Worker) -> Iterator[XetHub]:
    assert isinstance(worker.hub, XetHub)
    worker.hub.versioned.clear()
    yield worker.hub
    worker.hub.faults.clear()


@pytest.fixture
def folder(folder: Path, request: pytest.FixtureRequest) -> Path:
    """A pruned tiny model, and beside it what the client has not sent in another test."""
    new = random.Random(request.node.name).randbytes(100_000)
    (folder / "new.safetensors").write_bytes(new)
    return folder


def sent(hub: XetHub) -> list[str]:
    """The requests that brought chunks."""
    return [line for line in hub.log if re.match(rf"POST {STORAGE}/v1/xorbs/\S+ 200", line)]


def test_what_went_in_chunks_is_whole_and_is_loaded_by_its_name(
    worker: Worker, hub: XetHub, folder: Path
) -> None:
    said = worker.push(folder, "me/small")
    assert sent(hub)
    assert not [line for line in hub.log if "/lfs/" in line]
    files = hub.versioned["me/small"].commits[said["commit"]]
    assert set(files) == {*names(folder), ".gitattributes"}
    assert all(files[path.name] == path.read_bytes() for path in folder.iterdir())
    hub.log.clear()
    worker.require_loads(folder, "me/small", said["tag"])
    assert [line for line in hub.log if f"{STORAGE}/xorbs/" in line]


def test_it_is_one_commit_and_a_second_push_sends_no_chunk(worker: Worker, hub: XetHub, folder: Path) -> None:
    first = worker.push(folder, "me/small")
    assert len([line for line in first["wrote"] if "/commit/" in line]) == 1
    second = worker.push(folder, "me/small")
    assert second["commit"] == first["commit"]
    assert second["uploaded"] == 0
    assert not [line for line in hub.log if STORAGE in line]


def test_a_commit_that_is_refused_leaves_nothing_half_there(
    worker: Worker, hub: XetHub, folder: Path
) -> None:
    """However many files there are."""
    for number in range(30):
        (folder / f"part-{number}.json").write_text(str(number))
    hub.faults.append(Fault("/commit/", 400, "Bad.", times=1))
    assert "the Hub answered 400 (Bad" in worker.fails(folder, "me/small")
    assert len(hub.versioned["me/small"].commits) == 1
    worker.push(folder, "me/small")
    assert len(hub.versioned["me/small"].commits) == 2
    assert not sent(hub)


def test_a_pull_request_leaves_main_as_it_is(worker: Worker, hub: XetHub, folder: Path) -> None:
    worker.require_pulled(folder)
    assert sent(hub)


def test_a_model_that_lies_in_chunks_is_pruned_by_its_name(
    worker: Worker, hub: XetHub, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    dense, out = checkpoints("llama"), tmp_path / "out"
    code = f"""
from huggingface_hub import HfApi
HfApi().create_repo("me/dense")
HfApi().upload_folder(repo_id="me/dense", folder_path={str(dense)!r})
"""
    assert worker(code=code)["code"] == 0
    asked = ("prune", "me/dense", "--method", "magnitude", "--out", out)
    hub.faults.append(Fault(f"GET {STORAGE}", 500))
    said = worker(*asked)
    assert said["code"] == 2, said
    assert said["err"].splitlines()[-1].startswith("llmprune: ")
    assert "Traceback" not in said["err"]
    hub.faults.clear()
    assert worker(*asked)["code"] == 0
    report = json.loads((out / "llmprune_report.json").read_text())
    assert report["fingerprint"]["weights"] == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in dense.glob("*.safetensors")
    }


FAULTS = {
    "401 for a key": (Fault("GET .*/xet-write-token/", 401, "Invalid."), "hf auth login"),
    "403 for a key": (Fault("GET .*/xet-write-token/", 403, "Forbidden."), "write access"),
    "500 for a key": (Fault("GET .*/xet-write-token/", 500, "Oops."), "push again later"),
    "403 for chunks": (Fault("/v1/xorbs/", 403, "Forbidden."), "write access"),
    "500 for chunks": (Fault("/v1/xorbs/", 500, "Oops."), "push again later"),
    "cut in chunks": (Fault("/v1/xorbs/", CUT), "push again when it is back"),
    "400 for a shard": (Fault("/v1/shards", 400, "Bad."), "are sent anew"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_fault_of_the_storage_is_one_sentence(
    worker: Worker, hub: XetHub, folder: Path, fault: tuple[Fault, str]
) -> None:
    sentence = worker.refused(folder, fault[0])
    assert fault[1] in sentence
    assert KEY not in sentence
    hub.faults.clear()
    assert worker.push(folder, "me/small")["uploaded"] == len(names(folder))
