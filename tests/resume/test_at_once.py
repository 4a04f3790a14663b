"""A folder is written by one run at a time."""

from __future__ import annotations

from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from llmprune import prune
from llmprune.checkpoint import reload
from llmprune.errors import RequestError
from tests.program import forking
from tests.resume.children import WANDA, References, loads, require_same


def waiting(model: Path, out: Path, began: Event, go: Event) -> None:
    """A run that waits with its folder taken."""
    reload.check = loads

    def wait(plan: object) -> None:
        began.set()
        go.wait(60)

    prune(model, WANDA, out=out, on_plan=wait)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_and_the_first_ends_as_if_alone(
    model: Path, tmp_path: Path, references: References, in_process: None, resume: bool
) -> None:
    out, context = tmp_path / "out", forking()
    began, go = context.Event(), context.Event()
    first = context.Process(target=waiting, args=(model, out, began, go))
    first.start()
    try:
        assert began.wait(60)
        with pytest.raises(RequestError, match=r"another run is writing into .*out; wait for it") as raised:
            prune(model, WANDA, out=out, resume=resume)
        assert raised.value.field == "out"
        assert not out.exists()
    finally:
        go.set()
        first.join(60)
    assert first.exitcode == 0
    assert prune(model, WANDA, out=out, resume=True).totals  # the folder is free again, and whole
    require_same(out, references(WANDA)[0])
