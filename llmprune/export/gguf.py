"""Write a finished folder as one GGUF file, for llama.cpp and what is built on it.

Tensor by tensor: no more than one is in memory. Blocks of different sizes go into architectures of llama.cpp
that take them (`families.py`), exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from llmprune.errors import JobError, RequestError
from llmprune.export import layers as folders
from llmprune.export import tensors, vocabulary
from llmprune.export.families import FILE_TYPES, TENSOR_ROPE, Home, home_of
from llmprune.export.layers import Layers
from llmprune.export.tensors import Part
from llmprune.progress import track

TYPES = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16, "q8_0": Type.Q8_0, "q4_0": Type.Q4_0}
PLAIN = {Type.F32: np.float32, Type.F16: np.float16}


def export(folder: str | Path, out: Path, kind: str, like: Path | None = None) -> Path:
    """Write a folder as a GGUF file, read it back, and return its path.

    Norms and biases stay in float32, and embeddings and head are q8_0 where blocks are q4_0.

    Args:
        folder: a finished checkpoint, dense or pruned.
        out: the file; it must not exist.
        kind: of the matrices, one of `TYPES`.
        like: a GGUF file of the dense model, whose tokenizer is copied.

    Raises:
        RequestError: the model has no home in llama.cpp, or `out` exists; nothing was written.
        JobError: the disk is full.
    """
    if kind not in TYPES:
        raise RequestError("type", f"{kind!r} is not known; allowed: {', '.join(TYPES)}")
    require_free(out)
    layers = folders.read(Path(folder))
    home = home_of(layers)
    parts = [*tensors.parts(layers, home)]
    typed = [(part, _type_of(part, kind)) for part in parts]
    draft = out.with_name(f".{out.name}.unfinished")
    try:
        _write(draft, layers, home, typed, kind, like)
        _require_whole(draft, typed)
        draft.rename(out)
    except OSError as error:
        raise JobError(f"cannot write {out}: {error.strerror or error}; free some space") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    return out


def beside(folder: Path, kind: str) -> Path:
    """The file of a folder unless another is named."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    return folder.with_name(f"{folder.name}-{kind}.gguf")


def require_free(out: Path) -> None:
    """Refuse a file that exists.

    Raises:
        RequestError: it does.
    """
    if out.exists():
        raise RequestError("out", f"{out} exists already; name another file")


def _type_of(part: Part, kind: str) -> Type:
    """The type of one tensor.

    Raises:
        RequestError: its rows do not divide into the type's blocks.
    """
    if part.precise:
        return Type.F32
    wanted = TYPES[kind]
    if wanted == Type.Q4_0 and not part.in_block:
        wanted = Type.Q8_0
    size = gguf.GGML_QUANT_SIZES[wanted][0]
    if part.shape[-1] % size:
        raise RequestError(
            "type", f"{kind} wants rows of {size}s, and those of {part.name} have {part.shape[-1]}; use f16"
        )
    return wanted


def _write(
    file: Path, layers: Layers, home: Home, typed: list[tuple[Part, Type]], kind: str, like: Path | None
) -> None:
    writer = gguf.GGUFWriter(file, home.arch)
    _add_sizes(writer, layers)
    if home.experts:
        writer.add_expert_count(max(layers.experts.values()))
        writer.add_expert_used_count(layers.config["num_experts_per_tok"])
        width = layers.config.get("moe_intermediate_size") or layers.config["intermediate_size"]
        writer.add_expert_feed_forward_length(width)
    if home.scales:
        _add_scales(writer, layers)
    _add_rope(writer, layers)
    writer.add_file_type(FILE_TYPES[kind])
    if kind.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    rows = layers.shape("model.embed_tokens.weight")[0]
    if like is None:
        vocabulary.add_own(writer, layers, rows)
    else:
        vocabulary.add_like(writer, like, rows)
    for part, wanted in typed:
        shape, plain = gguf.quant_shape_to_byte_shape(part.shape, wanted), PLAIN.get(wanted)
        size, dtype = int(np.prod(shape)), np.dtype(plain or np.uint8)
        writer.add_tensor_info(part.name, part.shape if plain else shape, dtype, size, raw_dtype=wanted)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for part, wanted in track(typed, "writing tensors"):
            writer.write_tensor_data(gguf.quantize(part.read().contiguous().numpy(), wanted))
    finally:
        writer.close()


def _add_sizes(writer: gguf.GGUFWriter, layers: Layers) -> None:
    config, size = layers.config, layers.head_size
    writer.add_block_count(len(layers.own))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    _add_each(writer.add_head_count, layers.heads)
    _add_each(writer.add_head_count_kv, layers.kv)
    _add_each(writer.add_feed_forward_length, layers.width)
    # Always: the size of a head is not that of the model by the number of heads, once some are gone.
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(layers.shape("model.embed_tokens.weight")[0])


def _add_each(add: Callable[[int | list[int]], None], sizes: list[int]) -> None:
    """One number where all blocks are alike, which every architecture reads."""
    add(sizes if len(set(sizes)) > 1 else sizes[0])


def _add_scales(writer: gguf.GGUFWriter, layers: Layers) -> None:
    writer.add_attention_scale(layers.config["attention_multiplier"])
    writer.add_embedding_scale(layers.config["embedding_multiplier"])
    writer.add_residual_scale(layers.config["residual_multiplier"])
    writer.add_logit_scale(layers.config["logits_scaling"])


def _add_rope(writer: gguf.GGUFWriter, layers: Layers) -> None:
    """Frequencies, and how they are scaled for long contexts.

    Raises:
        RequestError: they are scaled in a way that is not written.
    """
    rope = layers.config.get("rope_parameters") or layers.config.get("rope_scaling") or {}
    writer.add_rope_freq_base(rope.get("rope_theta") or layers.config.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type", "default")
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    elif kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind not in ("default", TENSOR_ROPE):
        raise RequestError(
            "model", f"its rope is scaled by {kind}, which is not written; use llama.cpp's converter"
        )
    if rope.get("partial_rotary_factor", 1) != 1:
        raise RequestError("model", "its rope turns a part of each head, which is not written")


def _require_whole(file: Path, typed: list[tuple[Part, Type]]) -> None:
    """Read a file back: every tensor once, with its type and shape."""
    found = {
        one.name: (one.tensor_type, tuple(int(n) for n in reversed(one.shape)))
        for one in gguf.GGUFReader(file).tensors
    }
    if found != {part.name: (wanted, part.shape) for part, wanted in typed}:
        raise JobError(f"{file} does not read back as it was written; try again on another disk")
