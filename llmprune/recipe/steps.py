"""The steps of a recipe, each applied to the result of the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmprune.errors import RequestError, of_step
from llmprune.plugins import name_of
from llmprune.recipe.parts import SERVED

if TYPE_CHECKING:
    from llmprune.recipe.recipe import Recipe

BESIDE = ("version", "model", "recovery")  # hold for the recipe as a whole


def unfolded(data: object, parse: Callable[[Mapping[str, object]], Recipe]) -> object:
    """A recipe's data as that of its last step, with all steps that come first in `before`.

    What stands beside `steps` holds for every step that does not say otherwise; a recovery comes last, once.

    Args:
        data: of the recipe.
        parse: makes a recipe of a step's data.

    Raises:
        RequestError: there are no steps, or one is wrong; the sentence names it.
    """
    if not isinstance(data, dict) or not {"before", "steps"} & data.keys():
        return data
    field = "before" if "before" in data else "steps"
    beside = {key: value for key, value in data.items() if key != field}
    steps = _listed(field, data[field])
    if field == "before":  # as `Recipe.resolved` writes it
        return beside | {"before": _parsed(steps, parse)}
    _require_used(beside, steps)
    shared = {key: value for key, value in beside.items() if key != "recovery"}
    *first, last = _parsed([*({**shared, **step} for step in steps[:-1]), {**beside, **steps[-1]}], parse)
    *before, last = [inner for step in (*first, last) for inner in step.every_step]
    return {name: getattr(last, name) for name in type(last).model_fields} | {"before": tuple(before)}


def _listed(field: str, steps: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(steps, list | tuple) or not (steps or field == "before"):
        raise RequestError(field, f"a list of recipes is needed (found {steps!r})")
    for number, step in enumerate(steps, 1):
        if field == "steps" and not isinstance(step, dict):
            raise RequestError(f"steps.{number}", f"a recipe is needed (found {step!r})")
    return steps


def _parsed(
    steps: Iterable[Mapping[str, Any] | Recipe], parse: Callable[[Mapping[str, object]], Recipe]
) -> tuple[Recipe, ...]:
    """The steps as recipes; what is wrong with one is named by its number."""
    found: list[Recipe] = []
    for number, step in enumerate(steps, 1):
        with of_step(number):
            found.append(parse(step) if isinstance(step, Mapping) else step)
    return tuple(found)


def _require_used(beside: Mapping[str, object], steps: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what would be ignored.

    Raises:
        RequestError: a step names a model, or each has its own of what stands beside them.
    """
    for number, step in enumerate(steps, 1):
        if "model" in step:
            raise RequestError(
                f"steps.{number}.model", "a step prunes the result of the one before; leave the model out"
            )
    for key in beside:
        if key not in BESIDE and all(key in step for step in steps):
            raise RequestError(key, f"asked beside steps, each of which has its own {key}; change the steps")


def require_recoverable(steps: Iterable[Recipe]) -> None:
    """Refuse a recovery that does not serve what was removed before it.

    Raises:
        RequestError: a step asks for that.
    """
    cut = None
    for step in steps:
        cut, how = step.pattern if step.sites.shares == "rows" else cut, step.recovery
        if how is None:
            continue
        if cut is not None and not how.translates:
            raise RequestError(
                "recovery",
                f"{name_of(how)} compares logits of one vocabulary, and {cut} changes it; use distill, or "
                "recover before the vocabulary is cut",
            )
        how.require_after(step.pattern, step.sparsity, name_of(step.allocation))
        if step.sites.shares not in (*how.serves, *(("rows",) if how.translates else ())):
            raise RequestError(
                "recovery",
                f"{name_of(how)} was asked after {step.pattern}, and serves "
                f"{' or '.join(SERVED[kind] for kind in how.serves)}; use distill or lora",
            )
