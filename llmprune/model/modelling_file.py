"""The small modelling file that is stored with layers of different sizes, and the config entry for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from llmprune.model import per_layer
from llmprune.model.anatomy import Anatomy
from llmprune.model.sites.linear import LinearLayers

MODULE = "modeling_llmprune"
OURS = "Llmprune"
CLASSES = '''

class {trunk}(PerLayer, stock.{trunk}):
    """transformers' class of this name, with layers of different sizes."""


class {model}(PerLayer, stock.{model}):
    """transformers' class of this name, with layers of different sizes."""
'''


def code(anatomy: Anatomy) -> str:
    """The code that builds layers of different sizes; it imports nothing of llmprune.

    It is the source of `per_layer`, with a subclass of the model's own class added.
    """
    # The text that is replaced below must stay in per_layer.py as it is.
    shared = Path(per_layer.__file__).read_text()
    classes = _stock(anatomy.trunk, anatomy.model)
    (module,) = {kind.__module__ for kind in classes}
    trunk, model = (kind.__name__ for kind in classes)
    last = "from transformers import Cache, PreTrainedModel\n"
    package, name = module.rsplit(".", 1)
    imports = f"{last}from {package} import {name} as stock\n"
    shared = shared.replace(last, imports).replace("  # type: ignore[misc]", "")
    return shared + CLASSES.format(trunk=trunk, model=model)


def auto_map(anatomy: Anatomy) -> dict[str, str]:
    """The `auto_map` of config.json, which names the classes of the modelling file."""
    trunk, model = (kind.__name__ for kind in _stock(anatomy.trunk, anatomy.model))
    return {"AutoModel": f"{MODULE}.{trunk}", "AutoModelForCausalLM": f"{MODULE}.{model}"}


def architectures(stated: list[str], *, own: bool) -> list[str]:
    """The `architectures` of config.json, with a name of our own where blocks differ in size.

    Engines that have a class of the stock name would build blocks of one size with it; of another name, they
    use the modelling file (vLLM) or say that they do not know it (llama.cpp's converter).
    """
    stock = [name.removeprefix(OURS) for name in stated]
    return [OURS + name for name in stock] if own else stock


def keep(model: Any, folder: Path) -> None:
    """Write the code of a saved model beside its weights, and the name of its class into its config."""
    (folder / f"{MODULE}.py").write_text(code(Anatomy(model, LinearLayers())))
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    stated = architectures(settings.get("architectures") or [], own=True)
    file.write_text(json.dumps(settings | {"architectures": stated}, indent=2) + "\n")


def _stock(*parts: nn.Module) -> tuple[type, ...]:
    """transformers' own classes of the trunk and the model."""
    # Of a model that was pruned before, the class itself comes from its modelling file: look at its bases.
    return tuple(
        next(kind for kind in type(part).__mro__ if kind.__module__.startswith("transformers.models."))
        for part in parts
    )
