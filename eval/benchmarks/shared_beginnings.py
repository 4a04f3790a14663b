"""lm-eval's scorer, faster on a CPU: a question is computed once for all its answers, and nothing padded.

Several questions are laid out in one row, each followed by its answers; a token sees what stands before it in
its own question and its own answer. For decoders with full attention. The likelihoods are those of `HFLM` but
for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

WIDTH = 256  # tokens of a row
Request = tuple[Any, list[int], list[int]]
"""Something of lm-eval's, and the tokens of a context and of its continuation."""


class SharedBeginnings(HFLM):
    """Scores continuations as `HFLM` does."""

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        found: dict[int, tuple[float, bool]] = {}
        for row in rows(requests):
            found |= self._scored(requests, row)
        return [found[number] for number in range(len(requests))]

    def _scored(self, requests: list[Request], row: list[list[int]]) -> dict[int, tuple[float, bool]]:
        """The answers to the requests of a row."""
        tokens, positions, sees, before = laid_out(requests, row)
        body, head = self.model.base_model, self.model.get_output_embeddings()
        with torch.inference_mode():
            hidden = body(
                tokens[None].to(self.device),
                attention_mask=sees[None, None].to(self.device),
                position_ids=positions[None].to(self.device),
                use_cache=False,
            ).last_hidden_state[0]
            places = [place for one in before.values() for place in one]
            logits = head(hidden[places]).split([len(one) for one in before.values()])
        return {
            number: answer(part, requests[number][2]) for number, part in zip(before, logits, strict=True)
        }


def answer(logits: Tensor, wanted: list[int]) -> tuple[float, bool]:
    """The log-likelihood of tokens [T], given the logits [T, V] before each; and if each is the likeliest."""
    tokens = torch.tensor(wanted, device=logits.device)
    likely = logits.log_softmax(-1, dtype=torch.float32)
    return float(likely.gather(1, tokens[:, None]).sum()), bool((logits.argmax(-1) == tokens).all())


def rows(requests: list[Request]) -> Iterator[list[list[int]]]:
    """The numbers of the requests, those with one context together, as many as a row has room for."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, (_, context, _) in enumerate(requests):
        alike.setdefault(tuple(context), []).append(number)
    row, room = [], WIDTH
    for context, numbers in alike.items():
        needed = len(context) + sum(len(requests[number][2]) - 1 for number in numbers)
        if row and needed > room:
            yield row
            row, room = [], WIDTH
        row.append(numbers)
        room -= needed
    yield row


def laid_out(
    requests: list[Request], row: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor, dict[int, list[int]]]:
    """A row of contexts, each followed by its continuations without their last tokens.

    Returns:
        Tokens [T]; their positions [T]; which tokens each of them sees [T, T]; by a request's number, the
        places that its continuation's tokens follow.
    """
    tokens: list[int] = []
    positions: list[int] = []
    parts: list[tuple[int, int]] = []  # context and continuation of every token; 0 for the context's own
    before = {}
    for own, numbers in enumerate(row):
        context = requests[numbers[0]][1]
        tokens += context
        positions += range(len(context))
        parts += [(own, 0)] * len(context)
        last = len(tokens) - 1
        for branch, number in enumerate(numbers, 1):
            inner = requests[number][2][:-1]
            before[number] = [last, *range(len(tokens), len(tokens) + len(inner))]
            tokens += inner
            positions += range(len(context), len(context) + len(inner))
            parts += [(own, branch)] * len(inner)
    question, answer = torch.tensor(parts).T
    alike = (question[:, None] == question) & ((answer == 0) | (answer[:, None] == answer))
    return torch.tensor(tokens), torch.tensor(positions), alike.tril(), before
