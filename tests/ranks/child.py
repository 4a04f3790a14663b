"""What every process of a launch does: prune as the lines of a file ask, one after another.

`python -m torch.distributed.run --nproc-per-node 2 -m tests.ranks.child FILE`
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from llmprune import ranks
from llmprune.checkpoint import reload
from llmprune.errors import LlmpruneError
from llmprune.walk.walk import Walk
from tests.reloading import check_here


def main(asked: Path) -> None:
    """Carry out every line, and note what it raised on this rank."""
    from llmprune import prune

    torch.set_num_threads(1)
    reload.check = check_here  # a fresh process takes seconds to start
    lines: list[dict[str, Any]] = json.loads(asked.read_text())
    with ranks.joined(timedelta(seconds=20)):
        for number, line in enumerate(lines):
            only = line.pop("only", {}).get(str(ranks.number()), {})
            die(line.pop("die", None))
            said = ""
            try:
                prune(**(line | only))
            except LlmpruneError as error:
                said = f"{type(error).__name__}: {error}"
            asked.with_name(f"said-{number}-{ranks.number()}").write_text(said)


def die(when: list[Any] | None) -> None:
    """Let a rank end at a block: [rank, block, "killed" or what it raises]."""
    if when is None or when[0] != ranks.number():
        return
    own = Walk.stages

    def stages(self: Walk, label: str) -> Any:
        for stage in own(self, label):
            if label == "pruning" and stage.index == when[1]:
                if when[2] == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MemoryError
            yield stage

    Walk.stages = stages  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
