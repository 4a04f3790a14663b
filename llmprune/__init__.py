"""llmprune: prune language models after training, one decoder block at a time.

`prune`, `score`, `recover`, `push`, `load`, `Recipe`, `Report` and `KeepZeros` are the public names; nothing
else is promised. They are looked up when they are first used, so that importing llmprune does no work.
Importing it is enough for transformers to load checkpoints whose layers differ in size.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmprune.model import transformers_patch

if TYPE_CHECKING:
    from llmprune.hub.pushing import push
    from llmprune.loading import load
    from llmprune.pruning import prune
    from llmprune.recipe import Recipe
    from llmprune.recovering import recover
    from llmprune.report import Report
    from llmprune.scoring import score
    from llmprune.training.keep_zeros import KeepZeros

__all__ = ["KeepZeros", "Recipe", "Report", "load", "prune", "push", "recover", "score"]
_HOMES = {
    "prune": "pruning",
    "load": "loading",
    "score": "scoring",
    "push": "hub.pushing",
    "recover": "recovering",
    "Recipe": "recipe",
    "Report": "report",
    "KeepZeros": "training.keep_zeros",
}


transformers_patch.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmprune' has no attribute {name!r}")
    value = getattr(import_module(f"llmprune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
