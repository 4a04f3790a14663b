"""What a recipe can name, read from the classes themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

from llmprune import plugins
from llmprune.allocation.base import Allocator
from llmprune.methods.base import Method
from llmprune.patterns.base import Pattern
from llmprune.recipe.text import SHIPPED, shipped
from llmprune.recovery.base import Recovery
from llmprune.repair.base import Repair
from llmprune.text.sources.base import TextSource

KINDS: dict[str, tuple[str, type[Any]]] = {
    "methods": ("llmprune.methods", Method),
    "patterns": ("llmprune.patterns", Pattern),
    "allocations": ("llmprune.allocation", Allocator),
    "repairs": ("llmprune.repair", Repair),
    "recoveries": ("llmprune.recovery", Recovery),
    "texts": ("llmprune.text.sources", TextSource),
}

# What is wanted, and the options that give it.
GUIDE = (
    ("smaller and faster", "--recipe small"),
    ("a size you have in mind", "--target 0.8x"),
    ("least loss, no training", "--method flap --sparsity 0.2 --set pattern.parts=ffn --repair affine"),
    ("a large vocabulary cut", "--recipe vocabulary-64k"),
    ("fewer blocks, faster decode", "--recipe depth-20"),
    ("a mixture of experts smaller", "--recipe reap-25"),
    ("half of the weights zero", "--recipe admm-50"),
    ("2:4, for tensor cores", "--recipe admm-2of4-healed"),
    ("no text at hand", "--recipe flap-20-self"),
    ("quickly, on a small machine", "--recipe wanda-50"),
)


def everything() -> dict[str, Any]:
    """Every part of a recipe with its options and defaults, and the shipped recipes."""
    found: dict[str, Any] = {
        kind: [_part(package, name, base) for name in plugins.names(package)]
        for kind, (package, base) in KINDS.items()
    }
    found["recipes"] = [{"name": name, "about": _comment(name)} for name in shipped()]
    return found


def text() -> str:
    """The same as a page, after a guide to it."""
    lines = ["", "what to take", *(f"  {wanted:<30} {options}" for wanted, options in GUIDE)]
    for kind, parts in everything().items():
        lines += ["", kind]
        for part in parts:
            options = ", ".join(f"{k}={v}" for k, v in part.get("options", {}).items())
            lines.append(f"  {part['name']:<16} {part['about']}" + (f" [{options}]" if options else ""))
    return "\n".join(lines[1:])


def _part(package: str, name: str, base: type[Any]) -> dict[str, Any]:
    cls = plugins.find(package, name, base)
    options = [field for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING]
    return {
        "name": getattr(cls, "word", "") or name,
        "about": plugins.about(cls),
        "options": {field.name: field.default for field in options},
    }


def _comment(name: str) -> str:
    first = (SHIPPED / f"{name}.yaml").read_text().splitlines()[0]
    return first.removeprefix("#").strip()
