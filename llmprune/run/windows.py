"""The calibration tokens of one run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from llmprune.checkpoint.opened import Opened
from llmprune.errors import RequestError
from llmprune.run.plan import Plan
from llmprune.text.calibration import Calibration
from llmprune.text.sources.base import Access, Amount
from llmprune.text.windows import Windows


def windows(
    model: Opened, asked: Calibration, plan: Plan, tokenizer: Any = None, tokens: Tensor | None = None
) -> Windows | None:
    """The calibration tokens [N, L], or None if the plan needs none.

    Args:
        model: the dense model, which may have to generate or draw them.
        asked: which text, and how much of it.
        plan: of the run.
        tokenizer: in place of the checkpoint's.
        tokens: the caller's own windows, instead of a text.

    Raises:
        RequestError: the model has no such tokens.
    """
    if not plan.tokens:
        return None
    found = _windows(model, asked, plan, tokenizer, tokens)
    least, most = (int(end) for end in found.tokens.aminmax())
    vocabulary = model.anatomy.vocabulary
    if least < 0 or most >= vocabulary:
        raise RequestError(
            "tokenizer" if tokens is None else "tokens",
            f"ids from {least} to {most} were given, and the model's go from 0 to {vocabulary - 1}; use the "
            "tokenizer that it was trained with",
        )
    return found


def _windows(model: Opened, asked: Calibration, plan: Plan, tokenizer: Any, tokens: Tensor | None) -> Windows:
    if tokens is not None:
        return Windows(tokens.cpu(), "tokens given by the caller", None)
    access = Access(
        tokenizer=lambda: model.tokenizer(tokenizer),
        whole_model=model.whole,
        store=lambda: model.store,
        cache_key=lambda: model.identity,
        batch=plan.batch,
        vocabulary=model.anatomy.vocabulary,
    )
    return asked.source.windows(Amount(asked.samples, plan.length, asked.seed), access)
