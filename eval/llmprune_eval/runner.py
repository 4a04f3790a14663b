"""One model in a process of its own, so that its peak memory is its own: reads a prompt, writes tokens."""

from __future__ import annotations

import multiprocessing
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llmprune.checkpoint import devices
from llmprune.errors import JobError, RequestError
from llmprune_eval.models import engine_file

CHARACTERS = 200_000  # of the builtin text, that a model's tokens are counted on


@dataclass(frozen=True)
class Load:
    """What is measured: `batch` prompts of `prompt` tokens, and `new_tokens` written after each."""

    batch: int = 1
    prompt: int = 512
    new_tokens: int = 32
    repeats: int = 6
    """Measurements of one model; of two, the fewest pairs."""

    seconds: float = 120.0
    """After which no further pair is measured."""


class Worker:
    """A model's process, seen from the one that asks."""

    def __init__(self, name: str, load: Load, where: dict[str, Any], kernels: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, load, where, kernels), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str) -> dict[str, Any]:
        """What the model's `Runner` answers to the method of this name.

        Raises:
            RequestError: the model cannot be measured so.
            JobError: its process died.
        """
        with suppress(OSError):  # a process that failed has left its answer before it ended
            self._pipe.send(what)
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise JobError(
                "the process that held a model died; there was too little memory for it, "
                "so give a smaller load"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def end(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        self._process.kill()


def _serve(pipe: Connection, name: str, load: Load, where: dict[str, Any], kernels: bool) -> None:
    """The process of one model."""
    try:
        file = engine_file(name)
        runner = FileRunner(file, load) if file else Runner.opened(name, load, where, kernels=kernels)
        while True:
            pipe.send(getattr(runner, pipe.recv())())
    except EOFError:  # nobody asks any more
        return
    except Exception as error:
        pipe.send(error)


def require_positions(model: Any, name: str, load: Load) -> None:
    """Refuse more tokens than a model has positions for; where those are computed there is no end to them.

    Raises:
        RequestError: it says how many there are.
    """
    from torch.nn import Embedding

    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 0
    tables = [part for part in model.modules() if isinstance(part, Embedding)]
    others = [len(table.weight) for table in tables if table is not model.get_input_embeddings()]
    learned = any(context <= rows <= context + 2 for rows in others)  # OPT's begin at the third row
    if learned and load.prompt + load.new_tokens > context:
        raise RequestError(
            "prompt",
            f"{load.prompt} tokens and {load.new_tokens} after them were asked, and {name} has positions for "
            f"{context}; give a smaller --prompt or --new-tokens",
        )


class Runner:
    """A model that is measured, in its own process unless several are small enough to be in one.

    Args:
        model: in transformers.
        tokenizer: the model's; None where nobody asks for `facts`.
        load: what is measured.
        kernels: whether our kernels run where they win.
    """

    @classmethod
    def opened(cls, name: str, load: Load, where: dict[str, Any], *, kernels: bool) -> Runner:
        """The runner of a folder or a Hub id."""
        from llmprune.loading import load as opened

        model, tokenizer = opened(name, kernels="none", **where)
        require_positions(model, name, load)
        return cls(model, tokenizer, load, kernels=kernels and not where.get("device_map"))

    def __init__(self, model: Any, tokenizer: Any, load: Load, *, kernels: bool) -> None:
        import torch
        from llmprune_kernels.acceleration import accelerate

        self._torch, self._load = torch, load
        self._model, self._tokenizer = model, tokenizer
        self._device = self._model.device
        vocabulary = self._model.config.get_text_config(decoder=True).vocab_size
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, vocabulary, (load.batch, load.prompt), generator=generator)
        self._ids = ids.to(self._device)
        self._parameters = sum(p.numel() for p in self._model.parameters())
        self._kernels = str(accelerate(self._model)) if kernels else ""
        devices.forget_peak(self._device)

    def facts(self) -> dict[str, Any]:
        """What does not depend on the clock."""
        from llmprune_kernels.modules import stored_bytes

        return {
            "parameters": self._parameters,
            "kernels": self._kernels,
            "weight_bytes": stored_bytes(self._model),
            "characters_per_token": characters_per_token(self._tokenizer),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self._device_name(),
        }

    def _device_name(self) -> str:
        if self._device.type != "cpu":
            return devices.name(self._device)
        return f"{self._device.type} with {self._torch.get_num_threads()} threads"

    def prefill(self) -> dict[str, float]:
        """Seconds to read the prompt, and until the first new token is chosen from what that gives."""
        with self._torch.inference_mode():
            start = self._now()
            output = self._model(self._ids, use_cache=True, logits_to_keep=1)
            read = self._now()
            self._last = output.logits[:, -1:].argmax(-1)
            chosen = self._now()
        # transformers renamed it in 5.24, for what goes in and what comes out alike.
        self._named = "cache" if "cache" in output else "past_key_values"
        self._cache = output[self._named]
        self._cache_bytes = cache_bytes(self._cache)
        return {"prefill": read - start, "first_token": chosen - start}

    def decode(self) -> dict[str, float]:
        """Seconds to write the tokens after the prompt that was read before."""
        cache, last = self._cache, self._last
        del self._cache  # the next prompt's must not lie beside it
        with self._torch.inference_mode():
            start = self._now()
            for _ in range(self._load.new_tokens):
                output = self._model(last, use_cache=True, **{self._named: cache})
                cache, last = output[self._named], output.logits[:, -1:].argmax(-1)
            return {"decode": self._now() - start}

    def _now(self) -> float:
        devices.settle(self._device)
        return time.perf_counter()

    def memory(self) -> dict[str, Any]:
        """Bytes of the KV cache per token of the prompt; peak memory of this process, and of its device."""
        from llmprune.run.memory import peak

        return {"kv_bytes_per_token": self._cache_bytes / self._ids.numel(), **peak(self._device)}


class FileRunner:
    """A .gguf file that is measured as llama.cpp runs it, in its own process.

    Raises:
        RequestError: several prompts at a time were asked.
    """

    def __init__(self, file: Path, load: Load) -> None:
        from llmprune_eval.engine import Engine

        if load.batch > 1:
            raise RequestError(
                "batch", f"{load.batch} prompts at a time were asked, and a .gguf file is measured with one"
            )
        self._file, self._load = file, load
        self._model = Engine(file, load.prompt + load.new_tokens)
        lots = random.Random(0)
        self._ids = [lots.randrange(self._model.vocabulary) for _ in range(load.prompt)]

    def facts(self) -> dict[str, Any]:
        """What does not depend on the clock."""
        import torch

        from llmprune.export.vocabulary import tokenizer_of

        return {
            "parameters": self._model.parameters,
            "kernels": "",
            "weight_bytes": self._model.bytes,
            "characters_per_token": characters_per_token(tokenizer_of(self._file)),
            "dtype": self._model.dtype,
            "device": f"llama.cpp on cpu with {torch.get_num_threads()} threads",
        }

    def prefill(self) -> dict[str, float]:
        """Seconds to read the prompt, which ends with the first new token."""
        self._model.forget()
        start = time.perf_counter()
        self._last = self._model.read(self._ids)
        taken = time.perf_counter() - start
        return {"prefill": taken, "first_token": taken}

    def decode(self) -> dict[str, float]:
        """Seconds to write the tokens after the prompt that was read before."""
        start = time.perf_counter()
        for _ in range(self._load.new_tokens):
            self._last = self._model.read([self._last])
        return {"decode": time.perf_counter() - start}

    def memory(self) -> dict[str, Any]:
        """Bytes of the KV cache per token, in float16; peak memory of this process."""
        import torch

        from llmprune.run.memory import peak

        return {"kv_bytes_per_token": self._model.kv_bytes, **peak(torch.device("cpu"))}


def characters_per_token(tokenizer: Any) -> float:
    """Of the builtin text."""
    from llmprune.text import sources
    from llmprune.text.tokenizing import tokenize

    text = sources.for_evaluation("builtin").text("evaluation", CHARACTERS)
    return len(text) / len(tokenize(text, tokenizer))


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a model keeps for the tokens it has read.

    They are those of its layers as they are: fewer heads and missing blocks count for what they save, and a
    layer that looks back over a sliding window holds no more tokens than that.
    """
    kept = [part for layer in cache.layers for part in (layer.keys, layer.values) if part is not None]
    return sum(part.numel() * part.element_size() for part in kept)
