"""Let a method learn before it scores, or load what an earlier run learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file

from llmprune.allocation.base import Problem
from llmprune.checkpoint.shards import save_atomically
from llmprune.errors import RequestError
from llmprune.methods.base import Learned, PruningMethod, Weights
from llmprune.plugins import name_of
from llmprune.tensors.statistics import Statistic

FILE = "policy.safetensors"  # the facts stand beside it, in policy.json
S = TypeVar("S", bound=Statistic)


def ready(problem: Problem, begun: Path | None) -> PruningMethod:
    """The method that was asked for, once it has learned what it scores by.

    Args:
        problem: the method, and the dense model to learn from.
        begun: the folder of this run if it is resumed; what it learned before the cut is used.

    Raises:
        RequestError: what is to be reused cannot be read, or does not fit this model.
    """

    def examples(needs: type[S]) -> Iterator[tuple[Weights, S]]:
        for site, statistic in problem.measured(needs):
            yield problem.store.weights(site), statistic.of(needs)

    return problem.method.learned(examples, _earlier(problem.method, begun))


def require_readable(method: PruningMethod) -> None:
    """Refuse what is to be reused and is no state of the method, before a text is read or written.

    Raises:
        RequestError: it is none.
    """
    _earlier(method, None)


def keep(method: PruningMethod, folder: Path) -> None:
    """Write what a method learned into the folder of a run, to resume from and to reuse.

    Raises:
        JobError: the disk is full, or the folder cannot be written.
    """
    state = method.state()
    if state and not (folder / FILE).is_file():
        (folder / FILE).with_suffix(".json").write_text(json.dumps(method.facts(), indent=2))
        save_atomically(state, folder / FILE)


def _earlier(method: PruningMethod, begun: Path | None) -> Learned | None:
    """What the run itself learned before it was cut, or what the user named."""
    if begun is not None and (begun / FILE).is_file():
        return _read(method, begun / FILE, None)
    if method.state_file is not None:
        return _read(method, Path(method.state_file).expanduser(), method.state_file)
    return None


def _read(method: PruningMethod, file: Path, named: str | None) -> Learned:
    """What a file and its .json hold, if the method takes it back."""
    try:
        found = Learned(load_file(file), json.loads(file.with_suffix(".json").read_text()), named)
        method.learned(_no_examples, found)
    except Exception as error:  # a method is free in how it fails on tensors that are not its own
        raise RequestError(
            "policy",
            f"{file} and its .json hold no policy that `{name_of(method)}` wrote "
            f"({type(error).__name__}); name the {FILE} of an earlier run",
        ) from error
    return found


def _no_examples(needs: type[S]) -> Iterator[tuple[Weights, S]]:
    return iter(())
