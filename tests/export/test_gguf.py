"""Stock llama.cpp computes what transformers computes, whatever the sizes of the blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmprune import prune
from llmprune.cli import app
from llmprune.errors import RequestError
from llmprune.export.gguf import export
from tests import tiny
from tests.export.engine import predicted
from tests.vocabulary import tokenizers_here

SIZE, TOKENS = 448, 440  # rows of the embeddings, and those that are a token's
SIZES: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {"hidden_size": 128},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {"hidden_size": 128, "sliding_window": None},
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
    },
}
UNITS: dict[str, Any] = {"name": "units", "multiple": 32}
UNEVEN: dict[str, Any] = {
    "method": "magnitude",
    "sparsity": 0.4,
    "pattern": UNITS,
    "allocation": {"name": "profile", "blocks": [0.0, 0.5, 0.7]},
    "layout": "per_layer",
}
BIASED: dict[str, Any] = {
    "method": "flap",
    "sparsity": 0.3,
    "pattern": UNITS,
    "calibration": {"samples": 4, "length": 32},
}
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": None},
    "qwen3_moe": {
        **{"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64, "norm_topk_prob": True},
        **{"decoder_sparse_step": 1, "mlp_only_layers": []},
    },
}
PROMPT = [5, 77, 301, 12, 250, 33, 8, 190, 64, 111]


pytestmark = pytest.mark.usefixtures("check_in_process")


def words() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer all of whose tokens are letters: the engine does not tell of parts of one."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    made = ["<unk>", "<s>", "</s>", *letters, *(a + b for a in letters for b in letters)][:TOKENS]
    vocabulary = {word: number for number, word in enumerate(made)}
    merges = [(word[0], word[1]) for word in made[3:] if len(word) == 2]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def saved(family: str, folder: Path, **more: Any) -> Path:
    """A checkpoint with a byte-level tokenizer; its weights are large enough to tell layers apart."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **(FAMILIES | MIXTURES)[family], **more})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15) if parameter.ndim > 1 else parameter.add_(0.1)
    model.save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


@torch.no_grad()
def require_alike(file: Path, folder: Path) -> None:
    """The greedy text is equal, and log-probabilities agree within 1e-3."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    found = predicted(file, PROMPT, 16)
    logs = model(torch.tensor([PROMPT + found.tokens])).logits[0].log_softmax(-1)
    ours = logs[len(PROMPT) - 1 : -1]
    assert found.tokens and found.tokens == ours.argmax(-1).tolist()
    for row, top in zip(ours, found.top, strict=True):
        assert all(abs(float(row[token]) - value) < 1e-3 for token, value in top.items())


def architecture(file: Path) -> str:
    return str(gguf.GGUFReader(file).fields["general.architecture"].contents())


@pytest.mark.parametrize("family", FAMILIES)
def test_even_models_are_written_as_their_family(family: str, tmp_path: Path) -> None:
    dense = saved(family, tmp_path / "dense")
    file = export(dense, tmp_path / "dense.gguf", "f32")
    assert architecture(file) == {"mistral": "llama"}.get(family, family)
    require_alike(file, dense)


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_run_with_fewer_experts(family: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    calibration = {"samples": 4, "length": 32}
    prune(
        saved(family, tmp_path / "dense"),
        {"method": "reap", "sparsity": 0.25, "calibration": calibration},
        out=out,
    )
    file = export(out, tmp_path / "out.gguf", "f32")
    require_alike(file, out)
    routers = [t for t in gguf.GGUFReader(file).tensors if "ffn_gate_inp" in t.name]
    assert [int(t.shape[1]) for t in routers] == [6, 6, 6]
    export(out, tmp_path / "q8.gguf", "q8_0")
    assert predicted(tmp_path / "q8.gguf", PROMPT, 4).tokens


def test_experts_whose_weights_do_not_sum_to_one_have_no_home(tmp_path: Path) -> None:
    dense = saved("qwen3_moe", tmp_path / "dense", norm_topk_prob=False)
    with pytest.raises(RequestError, match="sum to one"):
        export(dense, tmp_path / "dense.gguf", "f32")


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_models_run_in_stock_llama_cpp(family: str, tmp_path: Path) -> None:
    prune(saved(family, tmp_path / "dense"), UNEVEN, out=tmp_path / "out")
    sizes = json.loads((tmp_path / "out" / "config.json").read_text())["per_layer_config"]
    assert len({own["num_attention_heads"] for own in sizes.values()}) > 1
    assert len({own["intermediate_size"] for own in sizes.values()}) > 1
    file = export(tmp_path / "out", tmp_path / "out.gguf", "f32")
    assert architecture(file) == {"qwen3": "openelm"}.get(family, "deci")
    require_alike(file, tmp_path / "out")


@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_heads_narrower_than_the_model_find_a_home(family: str, tmp_path: Path) -> None:
    dense = saved(family, tmp_path / "dense", num_attention_heads=2, num_key_value_heads=1)
    file = export(dense, tmp_path / "dense.gguf", "f32")
    assert architecture(file) == "deci"
    require_alike(file, dense)


@pytest.mark.parametrize(
    ("family", "layout"),
    [("llama", "uniform"), ("llama", "padded"), ("llama", "per_layer"), ("qwen2", "per_layer")],
)
def test_biases_that_a_repair_added_are_read(family: str, layout: str, tmp_path: Path) -> None:
    asked = BIASED | {"layout": layout} | ({"allocation": "uniform"} if layout == "uniform" else {})
    prune(saved(family, tmp_path / "dense"), asked, out=tmp_path / "out")
    require_alike(export(tmp_path / "out", tmp_path / "out.gguf", "f32"), tmp_path / "out")


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_ropes(rope: str, tmp_path: Path) -> None:
    dense = saved("llama", tmp_path / "dense", rope_parameters=ROPES[rope])
    require_alike(export(dense, tmp_path / "dense.gguf", "f32"), dense)


def test_the_tokenizer_of_another_file_is_copied(tmp_path: Path) -> None:
    dense = saved("llama", tmp_path / "dense")
    first = export(dense, tmp_path / "first.gguf", "f32")
    second = export(dense, tmp_path / "second.gguf", "f32", like=first)
    fields = [gguf.GGUFReader(file).fields for file in (first, second)]
    assert fields[0].keys() == fields[1].keys()
    assert [fields[0][key].contents() for key in fields[0]] == [
        fields[1][key].contents() for key in fields[1]
    ]
    tokens = fields[0]["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == SIZE and tokens[-1] == f"[PAD{SIZE - 1}]"


def test_a_byte_level_tokenizer_is_written_whole(tmp_path: Path) -> None:
    dense, whole = saved("llama", tmp_path / "dense"), tokenizers_here.tokenizer("byte level")
    whole.save_pretrained(dense)
    fields = gguf.GGUFReader(export(dense, tmp_path / "x.gguf", "f32")).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{what}"].contents() for what in ("tokens", "token_type"))
    assert tokens[: len(whole)] == whole.convert_ids_to_tokens(range(len(whole)))
    assert kinds[1] == gguf.TokenType.CONTROL and kinds[-1] == gguf.TokenType.UNUSED
    assert kinds[whole.convert_tokens_to_ids("<tool>")] == gguf.TokenType.USER_DEFINED
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.chat_template"].contents() == tokenizers_here.CHAT
    merges = json.loads((dense / "tokenizer.json").read_text())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(pair) for pair in merges]


def refusal(folder: Path, out: Path, kind: str = "f32", like: Path | None = None) -> str:
    with pytest.raises(RequestError) as raised:
        export(folder, out, kind, like)
    assert not out.exists() or out.read_text() == "mine"
    assert not list(out.parent.glob(".*.unfinished"))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma2"])
def test_other_families_are_refused(family: str, tmp_path: Path) -> None:
    said = refusal(tiny.save(family, tmp_path / "dense"), tmp_path / "x.gguf")
    assert f"{family} is not among the families that are written as GGUF" in said


def test_what_has_no_home_is_refused_with_the_way_out(tmp_path: Path) -> None:
    prune(saved("qwen3", tmp_path / "qwen3"), BIASED, out=tmp_path / "biased")
    said = refusal(tmp_path / "biased", tmp_path / "x.gguf")
    assert "qwen3 has no bias in" in said and "--repair least_squares" in said
    untied = saved("qwen3", tmp_path / "untied", tie_word_embeddings=False)
    prune(untied, UNEVEN, out=tmp_path / "uneven")
    assert "openelm wants the head tied" in refusal(tmp_path / "uneven", tmp_path / "x.gguf")
    windowed = saved("mistral", tmp_path / "windowed", sliding_window=64)
    assert "attends to 64 tokens only" in refusal(windowed, tmp_path / "x.gguf")


def test_wrong_requests_are_sentences(tmp_path: Path) -> None:
    dense = saved("llama", tmp_path / "dense", intermediate_size=80)
    assert "q8_0 wants rows of 32s" in refusal(dense, tmp_path / "x.gguf", "q8_0")
    assert "'q3' is not known" in refusal(dense, tmp_path / "x.gguf", "q3")
    (tmp_path / "mine.gguf").write_text("mine")
    assert "exists already" in refusal(dense, tmp_path / "mine.gguf")
    assert "no whole GGUF file" in refusal(dense, tmp_path / "x.gguf", like=tmp_path / "mine.gguf")
    (dense / "tokenizer.json").unlink()
    assert "--like" in refusal(dense, tmp_path / "x.gguf")


@pytest.mark.parametrize("cut", [0, 3, 10, 100, 1000, 20000])
def test_a_truncated_file_for_the_tokenizer_is_refused(cut: int, tmp_path: Path) -> None:
    dense = saved("llama", tmp_path / "dense")
    file = export(dense, tmp_path / "whole.gguf", "f32")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:cut])
    assert "like" in refusal(dense, tmp_path / "x.gguf", like=tmp_path / "cut.gguf")


def test_the_command_says_how_to_run_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = saved("llama", tmp_path / "dense")
    app(["export", str(dense), "--type", "q8_0"], standalone_mode=False)
    assert f"llama-server -m {tmp_path / 'dense-q8_0.gguf'}" in capsys.readouterr().out
    assert (tmp_path / "dense-q8_0.gguf").is_file()


def test_prune_ends_with_a_file_where_it_is_asked_for(tmp_path: Path) -> None:
    dense, out = saved("llama", tmp_path / "dense"), tmp_path / "out"
    asked = ["prune", str(dense), "--out", str(out), "--method", "magnitude", "--export", "gguf"]
    app(asked, standalone_mode=False)
    assert len(gguf.GGUFReader(tmp_path / "out-f16.gguf").tensors) == 2 + 3 * 9
    with pytest.raises(RequestError, match="exists already"):
        app([*asked, "--resume"], standalone_mode=False)
