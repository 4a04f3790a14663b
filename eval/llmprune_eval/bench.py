"""How fast a checkpoint reads a prompt and writes tokens, and what it takes, beside the dense one.

Every model lives in a process of its own, so that its peak memory is its own; they take turns, so that what
else happens on the machine happens to both.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from llmprune.checkpoint import source
from llmprune.errors import JobError, RequestError
from llmprune.report import Memory


@dataclass(frozen=True)
class Load:
    """What is measured: `batch` prompts of `prompt` tokens, and `new_tokens` written after each."""

    batch: int = 1
    prompt: int = 512
    new_tokens: int = 32
    repeats: int = 5


def compare(names: list[str], load: Load, *, device: str, dtype: str, trust: bool) -> dict[str, Any]:
    """Medians for every model, each as often as asked after one warm-up, in turns.

    Args:
        names: folders, .gguf files or Hub ids.
        load: what to measure.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: a torch dtype by name, or `auto`.
        trust: whether code that comes with a checkpoint may run.

    Returns:
        The load, the protocol in words, and for each model prefill and decode in tokens per second, bytes of
        its weights, its peak memory, and for the last one which kernels were chosen: the others run without.

    Raises:
        RequestError: there is no such checkpoint, or it has no positions for so many tokens.
        JobError: a model's process died.
    """
    for name in names:
        source.find(name, trust_remote_code=trust)  # a wrong name is refused before any process is started
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the processes inherit it
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    context = multiprocessing.get_context("spawn")
    where = {"device": device, "dtype": dtype, "trust_remote_code": trust}
    workers = []
    for number, name in enumerate(names, 1):
        ours, theirs = context.Pipe()
        kernels = number == len(names)  # the dense model is measured as transformers runs it
        worker = context.Process(target=_serve, args=(theirs, name, load, where, kernels), daemon=True)
        worker.start()
        theirs.close()
        workers.append((worker, ours))
    try:
        facts = [_answer(pipe) for _, pipe in workers]
        times: list[list[tuple[float, float]]] = [[] for _ in names]
        for turn in range(load.repeats + 1):
            for taken, (_, pipe) in zip(times, workers, strict=True):
                pipe.send("measure")
                taken += [_answer(pipe)] if turn else [_answer(pipe)][1:]  # the first is a warm-up
        for _, pipe in workers:
            pipe.send("end")
        peaks = [_answer(pipe) for _, pipe in workers]
    finally:
        for worker, _ in workers:
            worker.join(5)
            worker.kill()
    models = [
        {"name": name, **fact, **_medians(taken, load), **peak}
        for name, fact, taken, peak in zip(names, facts, times, peaks, strict=True)
    ]
    return {"load": asdict(load), "protocol": _protocol(load, models[-1]), "models": models}


def _protocol(load: Load, model: dict[str, Any]) -> str:
    """The stamp that is printed beside the figures."""
    return (
        f"batch {load.batch}, prompt {load.prompt}, {load.new_tokens} new tokens, {model['dtype']}, "
        f"{model['device']}, eager; medians of {load.repeats} in turns, after a warm-up"
    )


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The comparison as a table; with two models, the second over the first."""
    models = found["models"]
    shown = [("model", [m["name"] for m in models])]
    shown += [
        ("prefill, tokens/s", [f"{m['prefill_tokens_per_s']:.1f}" for m in models]),
        ("decode, tokens/s", [f"{m['decode_tokens_per_s']:.1f}" for m in models]),
        ("parameters", [f"{m['parameters']:,}" for m in models]),
        ("bytes of weights", [f"{m['weight_bytes']:,}" for m in models]),
        ("peak memory, bytes", [f"{m['peak_device_bytes'] or m['peak_rss_bytes']:,}" for m in models]),
    ]
    table = [(key, "   ".join(f"{value:>16}" for value in values)) for key, values in shown]
    if len(models) == 2:
        dense, pruned = models
        for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "weight_bytes"):
            table.append((f"ratio of {key}", f"{pruned[key] / dense[key]:.3f}"))
    kernels = models[-1]["kernels"].removeprefix("kernels: ").splitlines()
    return [*table, ("protocol", found["protocol"]), *(("kernels", line) for line in kernels)]


def _medians(taken: list[tuple[float, float]], load: Load) -> dict[str, float]:
    prefill, decode = (statistics.median(part) for part in zip(*taken, strict=True))
    return {
        "prefill_tokens_per_s": load.batch * load.prompt / prefill,
        "decode_tokens_per_s": load.batch * load.new_tokens / decode,
    }


def _answer(pipe: Connection) -> Any:
    """What a worker sends; its own failure is raised here."""
    try:
        answer = pipe.recv()
    except EOFError as error:
        raise JobError(
            "the process that held a model died; there was too little memory for it, so give a smaller load"
        ) from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(pipe: Connection, name: str, load: Load, where: dict[str, Any], kernels: bool) -> None:
    """The process of one model."""
    try:
        runner = _Runner(name, load, where, kernels)
        pipe.send(runner.facts)
        while pipe.recv() == "measure":
            pipe.send(runner.measure())
        pipe.send(runner.peak())
    except Exception as error:
        pipe.send(error)


def _require_positions(model: Any, name: str, load: Load) -> None:
    """Refuse more tokens than a model has positions for; where those are computed there is no end to them."""
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


class _Runner:
    def __init__(self, name: str, load: Load, where: dict[str, Any], kernels: bool) -> None:
        import torch
        from llmprune_kernels.acceleration import accelerate
        from llmprune_kernels.modules import stored_bytes

        from llmprune.loading import load as opened

        self._torch, self._load = torch, load
        self._model, _ = opened(name, kernels="none", **where)
        _require_positions(self._model, name, load)
        self._device = self._model.device
        vocabulary = self._model.config.get_text_config(decoder=True).vocab_size
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, vocabulary, (load.batch, load.prompt), generator=generator)
        self._ids = ids.to(self._device)
        self.facts = {
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "kernels": str(accelerate(self._model)) if kernels else "",
            "weight_bytes": stored_bytes(self._model),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self._device_name(),
        }
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def _device_name(self) -> str:
        if self._device.type == "cuda":
            return str(self._torch.cuda.get_device_name(self._device))
        return f"{self._device.type} with {self._torch.get_num_threads()} threads"

    def measure(self) -> tuple[float, float]:
        """Seconds to read the prompt, and to write the tokens after it."""
        with self._torch.inference_mode():
            start = self._now()
            output = self._model(self._ids, use_cache=True, logits_to_keep=1)
            read = self._now()
            cache, last = output.past_key_values, output.logits[:, -1:].argmax(-1)
            for _ in range(self._load.new_tokens):
                output = self._model(last, past_key_values=cache, use_cache=True)
                cache, last = output.past_key_values, output.logits[:, -1:].argmax(-1)
            return read - start, self._now() - read

    def _now(self) -> float:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def peak(self) -> Memory:
        """Peak memory of this process, and of its device."""
        from llmprune.run.memory import peak

        return peak(self._device)
