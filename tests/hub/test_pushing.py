"""A finished folder goes to the Hub once, by the Hub's own client, and nothing of it twice."""

from __future__ import annotations

import json
from pathlib import Path

from llmprune.run import card_picture
from tests.checkpoint.writable_hub import Fault, WritableHub
from tests.hub.worker import Worker, names


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
    assert f"]({card_picture.FILE})" in files["README.md"].decode() and card_picture.FILE in files
    assert all(files[path.name] == path.read_bytes() for path in finished.iterdir())
    worker.require_loads(finished, "me/small", said["tag"])


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


def test_the_card_names_the_repository(worker: Worker, hub: WritableHub, folder: Path) -> None:
    assert '.from_pretrained("me/other")' not in (folder / "README.md").read_text()
    said = worker.push(folder, "me/other")
    card = hub.versioned["me/other"].commits[said["commit"]]["README.md"].decode()
    assert card == (folder / "README.md").read_text()
    assert card.count('.from_pretrained("me/other")') == 2
    assert worker.push(folder, "me/other")["uploaded"] == 0


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
    worker.require_pulled(finished)
    sentence = worker.fails(finished, "me/small", "--create-pr", "--revision", "x", exit_code=2)
    assert sentence.startswith("llmprune: revision: ")


def test_without_json_it_says_where_it_is(worker: Worker, hub: WritableHub, finished: Path) -> None:
    said = worker("push", finished, "me/small")
    assert said["code"] == 0
    assert f"{hub.endpoint}/me/small" in said["out"]
    assert f"{len(names(finished))} files" in said["out"]
