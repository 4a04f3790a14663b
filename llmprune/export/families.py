"""Which architecture of llama.cpp a family's tensors fit, what does not fit anywhere, and llama.cpp's names.

The graph of an architecture is fixed: some take layers of different sizes, some biases of output layers, and
some rotate neighbouring entries of a head where transformers rotates its halves.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf import LlamaFileType

from llmprune.errors import RequestError
from llmprune.export.layers import Layers

QKV = ("q_proj", "k_proj", "v_proj")
EVERY = (*QKV, "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Home:
    """An architecture."""

    arch: str
    biases: tuple[str, ...] = ()
    """Layers whose biases it reads."""

    neighbours: bool = False
    """Whether it rotates neighbouring entries, for which rows of q and k change places."""

    uneven: bool = False
    """Whether blocks may differ in size."""

    square: bool = False
    """Whether all queries together must be as wide as the model, which they are not once heads are gone."""

    fuses: tuple[str, ...] = ()
    """`qkv` and `gate_up` where it reads these as one tensor."""

    tied: bool = False
    """Whether the head must be the embedding."""

    experts: bool = False
    """Whether it has experts in every block."""

    scales: bool = False
    """Whether it multiplies embeddings, attention, residuals and logits by numbers of the config."""


LLAMA = Home("llama", EVERY, neighbours=True)
DECI = Home("deci", EVERY, neighbours=True, uneven=True)
# The first that fits is taken. `deci` is the llama graph, `openelm` that of Qwen3.
HOMES: dict[str, tuple[Home, ...]] = {
    "llama": (LLAMA, DECI),
    "mistral": (LLAMA, DECI),
    "qwen2": (Home("qwen2", QKV, square=True), DECI),
    "qwen3": (Home("qwen3"), Home("openelm", uneven=True, fuses=("qkv",), tied=True)),
    "phi3": (Home("phi3", square=True, fuses=("qkv", "gate_up")), DECI),
    "mixtral": (Home("llama", neighbours=True, experts=True),),
    "qwen3_moe": (Home("qwen3moe", experts=True),),
    "granite": (Home("granite", EVERY, neighbours=True, scales=True), DECI),
}

SERVED = ("llama", "mistral", "qwen2", "qwen3", "phi3")  # families that vLLM was tried with (`in_vllm.py`)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of rules for cutting text into words, by what tokenizer.json says of them. A hash of ids
# would not know a vocabulary that was cut.
RULES: dict[tuple[tuple[str, object], ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", CONTRACTIONS % "" + SPACES), ("ByteLevel", False)): "qwen2",
    (("Split", CONTRACTIONS % "{1,3}" + SPACES), ("ByteLevel", False)): "llama-bpe",
}
WHOLE_WORDS = "llama-bpe"  # of these, the one that takes a word whose token there is without merging it
TENSOR_ROPE = "llama3"  # the scaling of rope that is a tensor of the file
BYTE_PAIRS = "gpt2"  # its name for byte-pair tokenizers
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}


def home_of(layers: Layers) -> Home:
    """The architecture to write a checkpoint as.

    Raises:
        RequestError: it has none; the sentence says why, and the way out.
    """
    family = layers.family
    if family not in HOMES:
        raise RequestError(
            "model",
            f"{family} is not among the families that are written as GGUF ({', '.join(HOMES)}); use "
            "llama.cpp's own converter",
        )
    if layers.window:
        raise RequestError(
            "model",
            f"it attends to {layers.window} tokens only, which is not written; use llama.cpp's converter",
        )
    reasons = [_unfit(home, layers) for home in HOMES[family]]
    for home, reason in zip(HOMES[family], reasons, strict=True):
        if not reason:
            return home
    if any(home.experts for home in HOMES[family]):
        way = "prune with --layout uniform, or " if layers.uneven else ""
    else:
        way = "prune with --layout uniform and --repair least_squares, or "
    raise RequestError("model", f"no architecture of llama.cpp holds it: {'; '.join(reasons)}; {way}use vLLM")


def _unfit(home: Home, layers: Layers) -> str:
    """Why a checkpoint does not fit an architecture; empty if it does."""
    if layers.uneven and not home.uneven:
        return f"{home.arch} wants blocks of one size"
    if home.square and any(n * layers.head_size != layers.config["hidden_size"] for n in layers.heads):
        return f"{home.arch} wants heads as wide as the model"
    unread = sorted(layers.biases - set(home.biases))
    if unread:
        return f"{home.arch} has no bias in {', '.join(unread)}"
    if home.experts and len(layers.experts) < len(layers.own):
        return f"{home.arch} wants experts in every block"
    if home.experts and not layers.config.get("norm_topk_prob", True):
        return f"{home.arch} lets the weights of chosen experts sum to one"
    if home.tied and not layers.tied:
        return f"{home.arch} wants the head tied to the embeddings"
    return ""
