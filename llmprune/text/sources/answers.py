"""The dense model's answers to prompts: `FILE:answers`, or a Hub id in the place of the file.

A model that is trained towards the dense one on what that says itself stays closer to it than on text of
others (sequence-level distillation, Kim and Rush, 2016, arXiv:1606.07947). Answers are kept in the user's
cache batch by batch, from which an interrupted run resumes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from llmprune.checkpoint.shards import save_atomically
from llmprune.errors import RequestError
from llmprune.progress import say
from llmprune.text import cache, chat, sampling, sources
from llmprune.text.chat import Conversation
from llmprune.text.sources.base import Access, Amount, Documents, TextSource
from llmprune.text.tokenizing import tokenize
from llmprune.text.windows import Windows

SUFFIX = ":answers"
AT_ONCE = 16  # prompts; it decides what a seed draws: do not tune it


@dataclass(frozen=True)
class Answers(TextSource):
    """Prompts and answers one after another, cut into windows; each prompt is answered once."""

    needs_whole_model: ClassVar = True

    text_column: str = "prompt"
    """The column that holds what is asked; without it `messages`, which end with the user."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature."""

    most: Annotated[int, Field(ge=1)] = 512
    """Tokens of an answer at most."""

    @classmethod
    def matches(cls, dataset: str) -> bool:
        """Whether a text's name ends so."""
        return dataset.endswith(SUFFIX)

    def windows(self, amount: Amount, access: Access) -> Windows:
        """Answer as many prompts as the windows take.

        Raises:
            RequestError: there are too few, or one does not end with the user.
        """
        needed, found = amount.samples * amount.length, 0
        parts: list[Tensor] = []
        for part in self._answered(amount.seed, access):
            parts.append(part)
            found += len(part)
            if found >= needed:
                break
        else:
            raise RequestError(
                "calibration",
                f"the prompts of {self.dataset} and their answers have {found} tokens, and {amount.samples} "
                f"windows of {amount.length} take {needed}; give more prompts or lower --samples",
            )
        tokens = torch.cat(parts)[:needed].view(amount.samples, amount.length)
        return Windows(tokens, self.dataset, amount.seed)

    def _answered(self, seed: int, access: Access) -> Iterator[Tensor]:
        """The tokens of some prompts with their answers, batch after batch."""
        tokenizer = access.tokenizer()
        texts = (chat.rendered(prompt, tokenizer, asks=True) for prompt in self._prompts())
        asked = (tokenize(text, tokenizer) for text in texts)
        options = {"seed": seed, "temperature": self.temperature, "most": self.most}
        folder = cache.folder("answers", options, access.cache_key())
        for number in count():
            prompts = list(islice(asked, AT_ONCE))
            if not prompts:
                return
            name = hashlib.sha256(repr([ids.tolist() for ids in prompts]).encode()).hexdigest()[:32]
            file = folder / f"{number:05d}-{name}.safetensors" if folder else None
            if file and file.is_file():
                yield load_file(file)["tokens"]
                continue
            say(f"answering prompts {number * AT_ONCE + 1} to {number * AT_ONCE + len(prompts)}")
            drawn = sampling.answers(
                access.whole_model(), prompts, self.most, self.temperature, (seed << 20) + number
            )
            tokens = torch.cat(drawn)
            if file:
                save_atomically({"tokens": tokens}, file)
            yield tokens

    def _prompts(self) -> Iterator[Conversation]:
        name = self.dataset.removesuffix(SUFFIX)
        if "text_column" not in sources.source_class(name).option_names():
            raise RequestError("calibration", f"{name} was asked to be answered, and is no table of prompts")
        text = sources.for_calibration(name, {"text_column": self.text_column})
        assert isinstance(text, Documents)
        for number, row in enumerate(text.documents("calibration"), 1):
            prompt: Conversation = [{"role": "user", "content": row}] if isinstance(row, str) else row
            if prompt[-1]["role"] != "user":
                raise RequestError(
                    "calibration",
                    f"the messages of row {number} of {name} end with {prompt[-1]['role']}, and an answer "
                    "follows the user; leave the last ones out",
                )
            yield prompt
