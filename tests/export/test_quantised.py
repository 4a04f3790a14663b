"""Quantised files hold what llama.cpp's own quantiser writes, and the zeros of a pruned model."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from llmprune import prune, recover
from llmprune.export.gguf import TYPES, export
from tests.export.engine import predicted
from tests.export.test_gguf import PROMPT, UNEVEN, saved

TEXT = {"dataset": "builtin", "samples": 4, "length": 32}

pytestmark = pytest.mark.usefixtures("check_in_process")


def tensors(file: Path) -> dict[str, Any]:
    return {one.name: one for one in gguf.GGUFReader(file).tensors}


def by_llama_cpp(matrix: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The bytes that llama.cpp itself makes of a float32 matrix."""
    spec = find_spec("xllamacpp")
    assert spec is not None and spec.origin is not None
    library: Any = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("*.so"))))
    count = ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(count, count, count, ctypes.c_void_p),
    )
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    made = np.empty(gguf.quant_shape_to_byte_shape(matrix.shape, kind), np.uint8)
    size = library.ggml_quantize_chunk(kind, matrix.ctypes.data, made.ctypes.data, 0, *matrix.shape, None)
    assert size == made.nbytes
    return made


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_matrices_of_blocks_are_those_of_llama_cpps_quantiser(kind: str, tmp_path: Path) -> None:
    prune(saved("llama", tmp_path / "dense"), UNEVEN, out=tmp_path / "out")
    plain = tensors(export(tmp_path / "out", tmp_path / "plain.gguf", "f32"))
    ours = tensors(export(tmp_path / "out", tmp_path / "ours.gguf", kind))
    matrices = [name for name, one in ours.items() if name.startswith("blk.") and len(one.shape) == 2]
    assert len(matrices) == 3 * 7
    for name in matrices:
        theirs = by_llama_cpp(np.array(plain[name].data), ours[name].tensor_type)
        assert np.array_equal(ours[name].data, theirs), name


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_chain_of_pruning_and_quantising_keeps_the_zeros(kind: str, tmp_path: Path) -> None:
    asked = {"method": "magnitude", "pattern": "2:4"}
    prune(saved("llama", tmp_path / "dense"), asked, out=tmp_path / "out")
    file = export(tmp_path / "out", tmp_path / "out.gguf", kind)
    (found,) = (one for one in gguf.GGUFReader(file).tensors if one.name == "blk.1.ffn_down.weight")
    back = gguf.dequantize(found.data, found.tensor_type)
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[1].mlp.down_proj.weight
    assert (back[weight.detach().numpy() == 0] == 0).all()
    assert len(predicted(file, PROMPT, 8).tokens) > 0


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_what_was_pruned_and_recovered_is_quantised_and_runs(kind: str, tmp_path: Path) -> None:
    prune(saved("llama", tmp_path / "dense"), {**UNEVEN, "calibration": TEXT}, out=tmp_path / "out")
    recover(tmp_path / "out", "reconstruct")
    recovered = tmp_path / "out-recovered"
    ours = tensors(export(recovered, tmp_path / "ours.gguf", kind))["blk.1.ffn_down.weight"]
    weight = AutoModelForCausalLM.from_pretrained(recovered).model.layers[1].mlp.down_proj.weight.detach()
    assert np.array_equal(ours.data, by_llama_cpp(weight.numpy(), ours.tensor_type))
    earlier = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[1].mlp.down_proj.weight
    assert weight.shape == earlier.shape and not weight.equal(earlier)
    assert len(predicted(tmp_path / "ours.gguf", PROMPT, 8).tokens) > 0


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_reads_back(kind: str, tmp_path: Path) -> None:
    dense = saved("llama", tmp_path / "dense")
    file = export(dense, tmp_path / "dense.gguf", kind)
    weight = AutoModelForCausalLM.from_pretrained(dense).model.layers[1].mlp.down_proj.weight
    (found,) = (one for one in gguf.GGUFReader(file).tensors if one.name == "blk.1.ffn_down.weight")
    back = gguf.dequantize(found.data, found.tensor_type)
    bound = {"f32": 0.0, "f16": 1e-3, "bf16": 1e-2, "q8_0": 0.01, "q4_0": 0.15}[kind]
    assert np.abs(back - weight.detach().numpy()).max() <= bound * float(weight.detach().abs().max())
