"""Acceptance: stock llama.cpp computes what transformers computes, for folders that llmprune exported.

Needs `xllamacpp` (PyPI). Every folder is written as a float32 file and run with keys and values in float32
and no flash attention, as transformers does. Told are the largest difference of the log-probabilities of 20
likeliest tokens after each of 512 of Python's manual (but for those whose likeliest is a part of a letter,
which the server does not tell), the tokens of the greedy continuation that are equal before the first that is
not, and the architecture of the file.

With `--quantiser`, a folder of llama.cpp's shared libraries (`bins/linux-x64` of npm's package
`@node-llama-cpp/linux-x64`), llama.cpp quantises the float32 file as well: told is how many tensors of ours
have the same bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gguf
import numpy as np
import torch
import versions
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmprune.export.gguf import export

TOKENS, NEW, LIKELIEST, CHARACTERS = 512, 48, 20, 10_000
FILE_TYPES = {"q8_0": 7, "q4_0": 2}  # llama.cpp's numbers


def by_transformers(folder: Path) -> tuple[list[int], torch.Tensor, list[int]]:
    """The ids of a text, the log-probabilities after each [512, V], and the greedy continuation of all."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    text = AutoTokenizer.from_pretrained(folder)(" ".join(topics.values())[:CHARACTERS])
    ids = torch.tensor([text["input_ids"][:TOKENS]])
    with torch.no_grad():
        logs = model(ids).logits[0].log_softmax(-1)
        written = model.generate(ids, attention_mask=ids.ne(-1), do_sample=False, max_new_tokens=NEW)
    return ids[0].tolist(), logs, written[0, TOKENS:].tolist()


class Server:
    """llama.cpp's server, in this process."""

    def __init__(self, file: Path) -> None:
        import xllamacpp

        asked = xllamacpp.CommonParams()
        asked.model.path, asked.n_gpu_layers, asked.warmup = str(file), 0, False
        asked.n_ctx, asked.n_parallel = TOKENS + NEW, 1
        asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(asked)

    def after(self, ids: list[int], count: int) -> list[dict[str, Any]]:
        """The tokens that follow, each with the likeliest ones; none where the first is part of a letter."""
        asked = {"prompt": ids, "temperature": 0, "max_tokens": count, "logprobs": LIKELIEST}
        # An end of text as the first token leaves no answer to look at.
        answer = self._server.handle_completions(asked | {"cache_prompt": True, "ignore_eos": count == 1})
        return list((answer["choices"][0]["logprobs"] or {"content": ()})["content"])


def measured(folder: Path, file: Path) -> dict[str, Any]:
    """One folder's figures; `file` is written."""
    export(folder, file, "f32")
    ids, logs, written = by_transformers(folder)
    server = Server(file)
    steps = [(row, step) for place, row in enumerate(logs) for step in server.after(ids[: place + 1], 1)]
    largest = max(
        abs(float(row[one["id"]]) - one["logprob"]) for row, step in steps for one in step["top_logprobs"]
    )
    same = [one["id"] == token for one, token in zip(server.after(ids, NEW), written, strict=False)]
    return {
        "architecture": gguf.GGUFReader(file).fields["general.architecture"].contents(),
        "largest_difference": largest,
        "compared": len(steps),
        "equal": same.index(False) if False in same else len(same),
        "tokens": len(written),
    }


class _Parameters(ctypes.Structure):
    _fields_ = (("threads", ctypes.c_int32), ("file_type", ctypes.c_int), ("rest", ctypes.c_uint8 * 1016))


def quantised(folder: Path, plain: Path, libraries: Path) -> dict[str, str]:
    """By type, how many tensors of our file have the bytes of llama.cpp's own."""
    for name in ("libggml-base.so*", "libggml.*", "libllama.*"):
        library: Any = ctypes.CDLL(str(next(libraries.glob(name))), mode=ctypes.RTLD_GLOBAL)
    library.llama_model_quantize_default_params.restype = _Parameters
    library.llama_model_quantize.restype = ctypes.c_uint32
    found = {}
    for kind, number in FILE_TYPES.items():
        ours = export(folder, plain.with_name(f"ours-{kind}.gguf"), kind)
        theirs = plain.with_name(f"theirs-{kind}.gguf")
        asked = library.llama_model_quantize_default_params()
        asked.file_type = number
        if library.llama_model_quantize(bytes(plain), bytes(theirs), ctypes.byref(asked)):
            raise SystemExit(f"llama.cpp could not quantise {plain}")
        known = {one.name: one for one in gguf.GGUFReader(theirs).tensors}
        parts = gguf.GGUFReader(ours).tensors
        same = [
            one.tensor_type == known[one.name].tensor_type and np.array_equal(one.data, known[one.name].data)
            for one in parts
        ]
        unequal = [one.name for one, equal in zip(parts, same, strict=True) if not equal]
        found[kind] = f"{sum(same)} of {len(parts)}" + (f", not {', '.join(unequal[:3])}" if unequal else "")
        ours.unlink()
        theirs.unlink()
    return found


def main() -> None:
    """Measure every folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--quantiser", type=Path, help="a folder of llama.cpp's libraries")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    rows = {}
    for folder in arguments.folders:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "plain.gguf")
            rows[folder.name] = measured(folder, file)
            if arguments.quantiser:
                rows[folder.name] |= {"same_bytes": quantised(folder, file, arguments.quantiser)}
        print(folder.name, rows[folder.name], flush=True)
    versions.keep(arguments.out, rows, ("xllamacpp", "transformers", "torch"))


if __name__ == "__main__":
    main()
