"""The small modelling file that comes with layers of different sizes, and where the config names it."""

from __future__ import annotations

from pathlib import Path

from llmprune.model import per_layer
from llmprune.model.anatomy import Anatomy

MODULE = "modeling_llmprune"
CLASSES = '''

class {trunk}(PerLayer, stock.{trunk}):
    """transformers' class of this name, with layers of different sizes."""


class {model}(PerLayer, stock.{model}):
    """transformers' class of this name, with layers of different sizes."""
'''


def code(anatomy: Anatomy) -> str:
    """The code that builds layers of different sizes; it stands on its own."""
    shared = Path(per_layer.__file__).read_text()
    (module,) = {kind.__module__ for kind in _stock(anatomy)}
    trunk, model = (kind.__name__ for kind in _stock(anatomy))
    last = "from transformers import PreTrainedModel\n"
    package, name = module.rsplit(".", 1)
    imports = f"{last}from {package} import {name} as stock\n"
    shared = shared.replace(last, imports).replace("  # type: ignore[misc]", "")
    return shared + CLASSES.format(trunk=trunk, model=model)


def auto_map(anatomy: Anatomy) -> dict[str, str]:
    """Where the config says that `modelling_file` is."""
    trunk, model = (kind.__name__ for kind in _stock(anatomy))
    return {"AutoModel": f"{MODULE}.{trunk}", "AutoModelForCausalLM": f"{MODULE}.{model}"}


def _stock(anatomy: Anatomy) -> tuple[type, type]:
    """transformers' own classes of the trunk and the model, which a modelling file may have extended."""
    trunk, model = (
        next(kind for kind in type(module).__mro__ if kind.__module__.startswith("transformers.models."))
        for module in (anatomy.trunk, anatomy.model)
    )
    return trunk, model
