"""Checkpoints are found in folders; what cannot be pruned is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from llmprune import prune
from llmprune.checkpoint import gguf, reader, reload, shards, source
from llmprune.checkpoint.source import Source
from llmprune.errors import JobError, LlmpruneError, RequestError
from llmprune.export.gguf import export
from llmprune.model.sites.linear import LinearLayers
from tests import tiny
from tests.export.test_gguf import saved

ROOT = Path(__file__).parents[2]
ASK: dict[str, Any] = {"method": "wanda", "calibration": {"samples": 2, "length": 16}}


@pytest.fixture
def folder(checkpoints: tiny.Checkpoints, tmp_path: Path) -> Path:
    """A tiny llama that may be damaged."""
    return Path(shutil.copytree(checkpoints("llama"), tmp_path / "llama"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("llama", tmp_path_factory.mktemp("sharded"), shard="20KB")


@pytest.fixture
def split(sharded: Path, tmp_path: Path) -> Path:
    """A tiny llama in several shards that may be damaged."""
    return Path(shutil.copytree(sharded, tmp_path / "split"))


def configure(folder: Path, **changes: Any) -> None:
    """Change keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def reindex(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the shard index."""
    file = folder / shards.INDEX
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))


def shard_of(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def opened(folder: Path, **how: Any) -> None:
    """Open a checkpoint as a prune does before it writes."""
    found = source.find(str(folder), **how)
    anatomy = reader.blueprint(found, LinearLayers())
    assert found.tensors
    reader.open_streamed(found, anatomy, torch.float32, torch.device("cpu"))


def refused(kind: type[LlmpruneError], words: str, name: Path | str, **how: Any) -> None:
    """`name` is refused in one sentence, by `source.find` or by what opens it after that."""
    with pytest.raises(kind, match=words) as raised:
        opened(Path(name) if isinstance(name, Path) else name, **how)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    if isinstance(raised.value, RequestError):
        assert raised.value.field == "model"


def test_a_folder_is_a_checkpoint(folder: Path) -> None:
    found = source.find(str(folder))
    assert found.revision is None
    assert found.settings["model_type"] == "llama"
    assert set(found.tensors) == set(load_file(folder / "model.safetensors"))
    assert found.hashes == {"model.safetensors": shards.sha256(folder / "model.safetensors")}
    names = {path.name for path in found.copied_files()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert not names & {"config.json", "model.safetensors"}


def test_nothing_but_tokenizer_code_and_licence_is_taken_over(folder: Path) -> None:
    for name in ("LICENSE", "modeling_mine.py", "pytorch_model.bin", "model.onnx", "README.md", ".hidden"):
        (folder / name).touch()
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    names = {path.name for path in source.find(str(folder)).copied_files()}
    assert {"LICENSE", "modeling_mine.py"} <= names
    assert not names & {"pytorch_model.bin", "model.onnx", "README.md", ".hidden"}
    assert not [name for name in names if name.endswith("index.json")]


def test_several_shards_are_one_checkpoint(sharded: Path, checkpoints: tiny.Checkpoints) -> None:
    files = shards.shard_files(sharded)
    assert len(files) > 3
    whole = load_file(checkpoints("llama") / "model.safetensors")
    found = source.find(str(sharded))
    assert set(found.tensors) == set(whole)
    assert set(found.hashes) == set(files)
    assert all(torch.equal(found.tensors[key].read(), tensor) for key, tensor in whole.items())


def test_the_number_of_shards_does_not_change_the_result(
    sharded: Path, checkpoints: tiny.Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = {"line": "", "compared": "logits", "max_abs_logit_difference": 0.0}
    monkeypatch.setattr(reload, "check", lambda *_: checked)
    for name, path in {"one": checkpoints("llama"), "many": sharded}.items():
        prune(path, ASK, out=tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").glob("*.safetensors"))
    assert files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
    AutoModelForCausalLM.from_pretrained(tmp_path / "many")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    refused(RequestError, r"has no config\.json, so it is not a transformers checkpoint", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "5", "null", '"llama"'])
def test_a_config_that_is_no_mapping_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(RequestError, r"config\.json", folder)


def test_a_config_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    refused(RequestError, r"config\.json", folder)


UNBUILDABLE = [{"num_hidden_layers": "three"}, {"hidden_size": 33}, {"hidden_size": -8}, {"auto_map": None}]


@pytest.mark.parametrize("change", UNBUILDABLE, ids=str)
def test_a_config_that_makes_no_model_is_refused(folder: Path, change: dict[str, Any]) -> None:
    configure(folder, **change)
    with pytest.raises(RequestError, match=r"^model: transformers cannot"):
        opened(folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer"])
def test_more_layers_than_any_model_has_are_not_built(key: str, folder: Path) -> None:
    configure(folder, text_config={key: 2**63})
    with pytest.raises(RequestError, match=f"config.json gives {key} as {2**63}, and no model has so many"):
        opened(folder)
    configure(folder, text_config={"shared_expert_intermediate_size": 20480})  # counts none
    assert Source("llama", folder).settings


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(RequestError, r"only pickled weights.*convert them once with .*save_pretrained", folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(RequestError, r"holds no model\.safetensors", folder)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("quantization_config", {"bits": 4}, "unknown"),
        ("compression_config", {"quant_method": "sparse"}, "sparse"),
    ],
)
def test_a_quantised_checkpoint_is_refused(folder: Path, key: str, value: dict[str, Any], kind: str) -> None:
    configure(folder, **{key: value})
    refused(RequestError, rf"is quantised \({kind}\); prune the checkpoint it was quantised from", folder)


@pytest.mark.parametrize("parts", [("compressed", "bitmask"), ("weight_packed",), ("qweight", "qzeros")])
def test_packed_weights_are_refused(folder: Path, parts: tuple[str, ...]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("q_proj.weight")]:
        tensors |= {name.replace("weight", part): torch.zeros(4) for part in parts}
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(RequestError, r"holds packed weights \(.*q_proj.*give the dense checkpoint", folder)


def test_a_missing_shard_is_named(split: Path) -> None:
    shard_of(split).unlink()
    refused(JobError, rf"{shard_of(split).name[:5]}.*is missing; download", split)


@pytest.mark.parametrize("left", [0, 5, 8, 100, -1, -1000])
def test_a_truncated_shard_is_named(split: Path, left: int) -> None:
    file = shard_of(split)
    os.truncate(file, left if left >= 0 else file.stat().st_size + left)
    refused(JobError, rf"{file.name} is truncated.*download it again", split)


@pytest.mark.parametrize("data", [b"\x00" * 512, b"PK" * 300, b"<html>" * 50, struct.pack("<Q", 4) + b"[[]]"])
def test_garbage_in_place_of_a_shard_is_named(split: Path, data: bytes) -> None:
    shard_of(split).write_bytes(data)
    refused(JobError, rf"{shard_of(split).name} is truncated", split)


def test_a_shard_of_an_unknown_dtype_is_refused(split: Path, tmp_path: Path) -> None:
    file = next(f for f in sorted(split.glob("model-*")) if b".up_proj" in f.read_bytes()[:2000])
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F99"'))
    with pytest.raises(JobError, match="F99"):
        prune(split, ASK, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


HEADERS = st.dictionaries(
    st.sampled_from(["a", "__metadata__"]),
    st.dictionaries(
        st.sampled_from(["dtype", "shape", "data_offsets"]),
        st.sampled_from(["F32", "F99", None, 3, [0, 4], [0], [4, 0], [0, "4"], [-4, 0], [0.5, 4], {}]),
    )
    | st.none()
    | st.integers()
    | st.lists(st.integers(), max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(HEADERS)
def test_no_header_leads_to_anything_but_our_errors(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    text = json.dumps(header).encode()
    for tail in (b"", b"\0" * 4):
        file.write_bytes(struct.pack("<Q", len(text)) + text + tail)
        try:
            shards.read_file(file)
        except JobError as error:
            assert "any.safetensors" in str(error)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "x.bin", ".."])
def test_an_index_that_leaves_the_folder_is_refused(split: Path, name: str) -> None:
    reindex(split, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    refused(RequestError, r"only \.safetensors files inside the folder are read", split)


INDICES = ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": [1]}}']


@pytest.mark.parametrize("text", [*INDICES, '{"weight_map": {"a": null, "b": "c"}}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(split: Path, text: str) -> None:
    (split / shards.INDEX).write_text(text)
    refused(RequestError, r"model\.safetensors\.index\.json", split)


def test_an_index_that_is_not_text_is_refused(split: Path) -> None:
    (split / shards.INDEX).write_bytes(b"\xff\xfe{}")
    refused(RequestError, r"model\.safetensors\.index\.json", split)


def test_an_index_that_promises_too_much_is_refused(split: Path) -> None:
    name = shard_of(split).name
    reindex(split, lambda index: index["weight_map"].update({"model.extra.weight": name}))
    refused(JobError, rf"promises model\.extra\.weight in {name}, which does not hold it", split)


def test_an_index_that_names_the_wrong_shard_is_refused(split: Path) -> None:
    def swap(index: dict[str, Any]) -> None:
        files = sorted(set(index["weight_map"].values()))
        key = next(key for key, file in index["weight_map"].items() if file == files[0])
        index["weight_map"][key] = files[1]

    reindex(split, swap)
    refused(JobError, "which does not hold it", split)


@pytest.mark.parametrize(
    "key",
    ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"],
)
def test_a_checkpoint_that_lacks_a_weight_is_refused(folder: Path, key: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[key]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(JobError, key.replace(".", r"\."), folder)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    witness = folder / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(witness)!r}, 'w')\n")
    auto_map = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    configure(folder, model_type="mine", auto_map=auto_map)
    refused(RequestError, r"comes with its own code; add --trust-remote-code", folder)
    assert not witness.exists()


def test_an_unknown_family_is_refused(folder: Path) -> None:
    configure(folder, model_type="llama17")
    refused(RequestError, r"'llama17'.*unknown to this transformers", folder)


@pytest.mark.parametrize("family", ["t5", "vit"])
def test_what_is_no_causal_language_model_is_refused(folder: Path, family: str) -> None:
    AutoConfig.for_model(family).save_pretrained(folder)
    refused(RequestError, rf"'{family}'.*is not a causal language model", folder)


def test_a_plain_file_is_refused(folder: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(RequestError, match="is a file; give a folder"):
            source.find(str(folder / name))


NONSENSE = [
    "",
    "two words",
    "a/b/c",
    "/nowhere/at/all",
    "llama",
    "a/b@",
    "~nobody_of_that_name/x",
    "x" * 5000,
]


@pytest.mark.parametrize("name", [*NONSENSE, "a\0b"])
def test_a_nonsense_name_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as raised:
        source.find(name)
    assert raised.value.field == "model"


@pytest.mark.parametrize("name", ["someone/absent", "someone/absent@v1.0", "-a/b", "a/..", "someone/a--b"])
def test_an_id_out_of_reach_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as raised:
        source.find(name)
    assert raised.value.field == "model"
    assert "\n" not in str(raised.value)


def test_half_a_model_in_the_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "cache"))
    file = export(saved("llama", tmp_path / "dense"), tmp_path / "dense.gguf", "f32")
    (shard,) = gguf.dequantised(file).glob("*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    gguf.dequantised(file)
    assert shard.read_bytes() == whole
    shard.unlink()
    gguf.dequantised(file)
    assert shard.read_bytes() == whole


def test_a_cache_without_room_for_the_model_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of file sizes, which Windows lacks")
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "cache"))
    file = export(saved("llama", tmp_path / "dense"), tmp_path / "dense.gguf", "f32")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size // 2, unlimited[1]))
    try:
        with pytest.raises(JobError, match=r"gguf/\w+ cannot be written: .*; set LLMPRUNE_CACHE") as raised:
            gguf.dequantised(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "\n" not in str(raised.value)
    assert all(left.suffix == ".lock" for left in (tmp_path / "cache" / "gguf").iterdir())
    assert gguf.dequantised(file).is_dir()


def test_a_gguf_file_that_is_none_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPRUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF is not enough")
    with pytest.raises(JobError, match=r"cannot read .*x\.gguf") as raised:
        source.find(str(tmp_path / "x.gguf"))
    assert "\n" not in str(raised.value)
    assert all(left.suffix == ".lock" for left in (tmp_path / "cache" / "gguf").iterdir())
