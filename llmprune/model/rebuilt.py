"""Refuse layers of different sizes where a model's class cannot build its layers one by one."""

from __future__ import annotations

from llmprune.errors import RequestError, one_line
from llmprune.model import per_layer
from llmprune.model.anatomy import Anatomy
from llmprune.model.decoder_config import place
from llmprune.model.twins import NotDerived, Twins

# Without this in the config, transformers raises where its own code reads such a size from it.
GLOBAL = "allow_global_per_layer_attribute_access"


def require(anatomy: Anatomy, way_out: str, fields: list[str] | None = None) -> None:
    """Refuse a family whose decoder layers the modelling file cannot build one by one.

    Args:
        anatomy: of the model.
        way_out: what to do instead.
        fields: of the config that would differ; by default the width of the feed-forward network.

    Raises:
        RequestError: it says why.
    """
    if place(anatomy.model) is not None:
        why = "its decoder is one part among others"
    elif per_layer.layers_of(anatomy.model) is not anatomy.blocks:
        why = "another part of it has as many layers"
    else:
        width = anatomy.family_row().width if fields is None else ""
        why = _lost(anatomy, fields or [width] * bool(width))
    if why:
        raise RequestError(
            "layout",
            f"per_layer was asked, and the layers of a {anatomy.family!r} model cannot be built one by one "
            f"({why}); {way_out}",
        )


def _lost(anatomy: Anatomy, fields: list[str]) -> str:
    """Why layers of different sizes cannot be built, or what they lack then; empty if all is well."""
    sizes = dict[str, object]()
    for number in range(len(anatomy.blocks)):
        now = [getattr(anatomy.block_config(number), field, None) for field in fields]
        differing = [max(1, size - number - 1) if isinstance(size, int) else number + 1 for size in now]
        sizes[str(number)] = dict(zip(fields, differing, strict=True))
    mark = {"layout": "per_layer", "biases": []}
    try:
        twins = Twins(anatomy.model, anatomy.prefix)
        anew = twins.built({"per_layer_config": sizes, GLOBAL: True, "llmprune": mark})
    except NotDerived as error:
        return one_line(error.__cause__ or error)
    found = dict(anew.get_submodule(anatomy.prefix).named_buffers())
    lost = [name for name, _ in anatomy.blocks.named_buffers() if name not in found]
    return f"{lost[0]} is not in them" if lost else ""
