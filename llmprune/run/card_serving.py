"""How a finished folder is served: the commands of the engines that its sizes and biases fit."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from llmprune.errors import RequestError
from llmprune.export import families, fits, layers
from llmprune.export.layers import Layers
from llmprune.model import mlx_file

HEAD = "\n## Serve it\n\n| engine | commands |\n|---|---|\n"


def section(folder: Path, name: str) -> str:
    """The card's section, from a folder that is written and the name that it will have; empty for families
    that no engine was tried with.
    """
    try:
        read = layers.read(folder)
    except RequestError:  # a report without its checkpoint
        return ""
    rows = {
        "vLLM (tried with 0.32)": _in_vllm(read, name),
        "mlx-lm": _in_mlx(read, name),
        **_in_files(read, name),
    }
    said = [f"| {engine} | {commands} |" for engine, commands in rows.items() if commands]
    return HEAD + "\n".join(said) + "\n" if said else ""


def _in_vllm(read: Layers, name: str) -> str:
    if read.family not in families.SERVED:
        return ""
    own = " --trust-remote-code" if "auto_map" in read.config else ""
    return f"`vllm serve {quote(name)}{own}`"


def _in_mlx(read: Layers, name: str) -> str:
    if mlx_file.KEY not in read.config:
        return ""
    return f"`mlx_lm.generate --model ./{quote(name)} --trust-remote-code --prompt 'Once upon a time'`"


def _in_files(read: Layers, name: str) -> dict[str, str]:
    """Of the engines that read a GGUF file."""
    if read.family not in families.HOMES:
        return {}
    try:
        families.home_of(read)
    except RequestError as error:
        return {"llama.cpp": f"not as it is: {str(error).removeprefix('model: ')}"}
    kind = "q8_0" if all(one.fits for one in fits.fits(read, "gguf")[:2]) else "f16"
    file = quote(f"{name}-{kind}.gguf")
    return {
        "llama.cpp": f"`llmprune export {quote(name)} --to gguf --type {kind}`, `llama-server -m {file}`",
        "Ollama (not tried)": f"`echo FROM ./{file} > Modelfile`, `ollama create {quote(name)}`",
    }
