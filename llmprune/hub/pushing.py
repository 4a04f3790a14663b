"""Put a finished folder on the Hub: what is there already stays, the rest goes in one commit with a tag."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from llmprune import report
from llmprune.checkpoint import draft, shards, versions
from llmprune.errors import JobError, RequestError, one_line
from llmprune.hub.answers import explained
from llmprune.progress import say, track
from llmprune.run import card

MESSAGE = "Upload a checkpoint pruned with llmprune"
WEIGHTS = re.compile(rf"[^/]*\.safetensors|{re.escape(shards.INDEX)}")  # of the folder itself
UNFIT = "only a folder that `llmprune prune` finished can be pushed"


@dataclass(frozen=True)
class Difference:
    """What keeps a repository from holding the same as a folder."""

    head: str
    """The repository's commit that was looked at."""
    new: list[Path]
    """Files that it lacks, or holds with another content."""
    stale: list[str]
    """Weights of an earlier checkpoint, which a loader could take for this one's."""

    @property
    def bytes(self) -> int:
        """The size of the new files."""
        return sum(path.stat().st_size for path in self.new)


def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> dict[str, Any]:
    """Upload a finished folder to the Hub; pushing it once more sends only what differs, or nothing.

    The card's loading lines name the repository from then on, here too.
    The token is the one that huggingface_hub finds (`hf auth login`, or HF_TOKEN).

    Args:
        folder: what `prune` or `recover` wrote.
        repo: `name/repo`; made if it is not there yet.
        private: whether only you may see it. A repository that is public already is refused.
        revision: the branch to write to, made if it is not there yet; `main` unless given.
        create_pr: open a pull request instead of writing to the main branch.

    Returns:
        `repo`, `url`, `commit`, `tag` (None for a pull request), and of the files that the commit brought
        `uploaded` (their number) and `bytes_uploaded` (their size).

    Raises:
        RequestError: the folder is not a finished checkpoint of llmprune, or the request contradicts itself.
        JobError: the Hub, or the way to it, did not let it be done; the folder is as it was.
    """
    require_pushable_name(repo)
    if revision == "":
        raise RequestError("revision", "it is empty, and a branch has a name; give one, or leave it out")
    place = Path(folder).expanduser()
    tag = _tag(place)
    if create_pr and revision not in (None, constants.DEFAULT_REVISION):
        raise RequestError("revision", "a pull request goes to the main branch; leave the revision out")
    if constants.HF_HUB_OFFLINE:
        raise JobError(f"cannot push to {repo}: HF_HUB_OFFLINE is set; unset it ({place} is kept)")
    with explained(repo, place, ""):
        token = get_token()
    if token is None:
        raise JobError(
            f"cannot push to {repo}: there is no token of the Hub; log in with `hf auth login`, or set "
            f"HF_TOKEN ({place} is kept)"
        )
    api = HfApi(token=token, library_name="llmprune", library_version=versions.installed()["llmprune"])
    # What a pull request brings is for the repository's owner to word.
    named = nullcontext() if create_pr else card.addressed(place, repo)
    with explained(repo, place, token), named:
        return _pushed(api, place, repo, private, revision, None if create_pr else tag)


def require_pushable_name(repo: str) -> None:
    """Refuse what cannot be the id of a repository; nothing is asked of the Hub.

    Raises:
        RequestError: it is not `name/repo`.
    """
    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
        why = "it names no user or organisation"
    except hub_errors.HFValidationError as error:
        why = " ".join(str(error).split())
    raise RequestError(
        "repo", f"{repo!r} is no repository on the Hub ({why}); give it as name/repo, such as me/small-model"
    )


def _tag(folder: Path) -> str:
    """The tag of a folder that may be pushed.

    Raises:
        RequestError: llmprune did not finish it, or files are gone since.
    """
    if not folder.is_dir():
        raise _unfit(folder, "there is no such folder; give the one that prune wrote")
    if draft.is_unfinished(folder):
        raise _unfit(folder, "its run was cut off; finish it with --resume")
    if report.read(folder) is None:
        raise _unfit(folder, f"it has no {report.FILE}; {UNFIT}")
    try:
        settings = json.loads((folder / "config.json").read_text())
        recipe = settings["llmprune"]["recipe"]
    except FileNotFoundError as error:
        raise _unfit(folder, f"it has no {Path(error.filename).name}; {UNFIT}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unfit(folder, f"its config.json is not llmprune's; {UNFIT}") from error
    gone = [name for name in shards.shard_files(folder) if not (folder / name).is_file()]
    if gone:
        raise _unfit(folder, f"{gone[0]} is missing; prune it anew")
    return f"llmprune-{str(recipe)[:12]}"


def _unfit(folder: Path, why: str) -> RequestError:
    return RequestError("model", f"{folder} was to be pushed, but {why}")


def _pushed(
    api: HfApi, folder: Path, repo: str, private: bool, revision: str | None, tag: str | None
) -> dict[str, Any]:
    visible = True if private else None  # None is what the namespace has settled on
    url = str(api.create_repo(repo, private=visible, exist_ok=True))
    found = _look_up(api, repo, revision)
    if private and not found.private:
        raise RequestError(
            "private",
            f"{repo} is public already; make it private in its settings, or name another repository",
        )
    todo = _difference(folder, found)
    commit = todo.head
    if todo.new or todo.stale:
        done = _upload(api, folder, repo, revision, todo, create_pr=tag is None)
        commit, url = done.oid, done.pr_url or url
    else:
        say(f"{url} holds the same already")
    if tag is not None:
        _set_tag(api, repo, tag, commit)
    return {
        "repo": repo,
        "url": url,
        "commit": commit,
        "tag": tag,
        "uploaded": len(todo.new),
        "bytes_uploaded": todo.bytes,
    }


def _set_tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    """Tag a commit; a tag that is there stays where it is, since others may rely on it."""
    api.create_tag(repo, tag=tag, revision=commit, exist_ok=True)
    at = str(api.model_info(repo, revision=tag).sha)
    if at != commit:
        say(f"the tag {tag} was set before and stays at {at[:12]}, not {commit[:12]}")


def _look_up(api: HfApi, repo: str, revision: str | None) -> Any:
    """The newest commit of a branch and all its files; the branch is made if it is not there yet."""
    try:
        return api.model_info(repo, revision=revision, files_metadata=True)
    except hub_errors.RevisionNotFoundError:
        if revision is None:
            raise
        api.create_branch(repo, branch=revision, exist_ok=True)
        return api.model_info(repo, revision=revision, files_metadata=True)


def _difference(folder: Path, found: Any) -> Difference:
    there = {sibling.rfilename: sibling for sibling in found.siblings or []}
    here = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    names = track(list(here), "comparing with the Hub" if here.keys() & there.keys() else "")
    new = [here[name] for name in names if name not in there or not _is_same(here[name], there[name])]
    stale = [name for name in sorted(there.keys() - here.keys()) if WEIGHTS.fullmatch(name)]
    return Difference(found.sha, new, stale)


def _is_same(file: Path, there: Any) -> bool:
    """Whether the Hub holds this very content: it names large files by their sha256, others as git does."""
    size = file.stat().st_size
    if size != there.size:
        return False
    if there.lfs is not None:
        return bool(shards.sha256(file) == there.lfs.sha256)
    return bool(hashlib.sha1(b"blob %d\0" % size + file.read_bytes()).hexdigest() == there.blob_id)


def _upload(
    api: HfApi, folder: Path, repo: str, revision: str | None, todo: Difference, *, create_pr: bool
) -> Any:
    """One commit on top of the one that was looked at; the client sends no file twice.

    `upload_folder` would make several, where files go in chunks: what was half there could be loaded.
    """
    say(f"sending {len(todo.new)} files ({todo.bytes:,} bytes) to {repo}")
    if todo.stale:
        say(f"removing weights of an earlier checkpoint from {repo}: {', '.join(todo.stale)}")
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in todo.new]
    removed = [CommitOperationDelete(name, is_folder=False) for name in todo.stale]
    with warnings.catch_warnings(record=True, action="always") as remarks:
        done = api.create_commit(
            repo,
            [*removed, *added],
            commit_message=MESSAGE,
            revision=revision,
            create_pr=create_pr,
            parent_commit=todo.head,
        )
    for remark in remarks:
        if not issubclass(remark.category, DeprecationWarning):  # those are for the client's authors
            say(one_line(remark.message))
    return done
