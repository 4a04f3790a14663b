"""Get the calibration windows of one run."""

from __future__ import annotations

from functools import cache

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmprune.checkpoint.opened import Opened
from llmprune.errors import RequestError
from llmprune.run.plan import Plan
from llmprune.text.calibration import Calibration
from llmprune.text.sources.base import Access
from llmprune.text.windows import Windows


def windows(
    model: Opened,
    asked: Calibration,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tokens: Tensor | None = None,
) -> Windows | None:
    """Get the calibration tokens [N, L], or None if the plan needs none.

    Args:
        model: the dense model, which generates or draws them where the source says so.
        asked: which text, and how much of it.
        plan: of the run.
        tokenizer: replaces the checkpoint's.
        tokens: the caller's windows, instead of a text.

    Raises:
        RequestError: a token id is outside the model's vocabulary.
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


def _windows(
    model: Opened,
    asked: Calibration,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: Tensor | None,
) -> Windows:
    if tokens is not None:
        return Windows(tokens.cpu(), "tokens given by the caller", None)
    access = Access(
        tokenizer=cache(lambda: model.tokenizer(tokenizer)),  # a large vocabulary takes seconds to load
        whole_model=model.whole,
        store=lambda: model.store,
        cache_key=lambda: model.identity,
        batch=plan.batch,
        vocabulary=model.anatomy.vocabulary,
    )
    return asked.windows(plan.length, access)
