"""A model with fewer tokens says of those that are left exactly what it said before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from llmprune import prune, recover
from llmprune.cli import main
from llmprune.errors import RequestError
from llmprune.recipe import Recipe
from tests import tiny
from tests.conftest import SHARED
from tests.resume.interrupted import pruned_twice
from tests.vocabulary import tokenizers_here as here

KEEP = 384
KINDS = ["byte level", "byte fallback"]


pytestmark = pytest.mark.usefixtures("check_in_process")


def save(config: Any, folder: Path, kind: str = "byte level") -> Path:
    """A checkpoint of a random model, with its tokenizer and its generation config."""
    tokenizer = here.tokenizer(kind)
    config.vocab_size = here.SIZE
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny.config("llama"), tmp_path / "dense")


def asked(keep: int = KEEP, **more: Any) -> dict[str, Any]:
    return {"pattern": {"name": "vocabulary", "keep": keep}, **more}


def tokens(folder: Path) -> dict[str, int]:
    """The id of every token."""
    found: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
    return found


def renumbering(dense: Path, pruned: Path) -> dict[int, int]:
    """The new id of every token that stayed, by its old one."""
    before, after = tokens(dense), tokens(pruned)
    return {before[token]: number for token, number in after.items()}


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    found: Tensor = model(ids, use_cache=False).logits
    return found


def require_same_logits(dense: Path, pruned: Path, length: int = 16) -> None:
    """The logits of the tokens that stayed are those of the dense model, to 1e-5."""
    new = renumbering(dense, pruned)
    old = torch.tensor(sorted(new))
    ids = old[torch.randint(len(old), (1, length), generator=torch.Generator().manual_seed(0))]
    how = {"dtype": torch.float32}
    before = logits(AutoModelForCausalLM.from_pretrained(dense, **how), ids)[..., old]
    renewed, rows = (torch.tensor([new[int(i)] for i in part.flatten()]) for part in (ids, old))
    after = logits(AutoModelForCausalLM.from_pretrained(pruned, **how), renewed[None])[..., rows]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def require_same_tokens(dense: Path, pruned: Path, texts: list[str]) -> int:
    """Texts whose tokens all stayed give the same ones; returns how many did."""
    new = renumbering(dense, pruned)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (dense, pruned))
    whole = 0
    for text in texts:
        ids = before(text)["input_ids"]
        assert after.decode(after(text)["input_ids"]) == before.decode(ids)
        if set(ids) <= new.keys():
            whole += 1
            assert after(text)["input_ids"] == [new[number] for number in ids]
    return whole


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_keeps_its_logits(family: str, tmp_path: Path) -> None:
    dense, out = save(tiny.config(family), tmp_path / "dense"), tmp_path / "out"
    report = prune(dense, asked(), out=out)
    require_same_logits(dense, out)
    config = AutoConfig.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert config.vocab_size == KEEP
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert report.vocabulary is not None
    assert (report.vocabulary["rows_before"], report.vocabulary["rows_after"]) == (here.SIZE, KEEP)
    assert all(site.units == [here.SIZE, KEEP] for site in report.sites)
    after = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(out).parameters())
    assert report.totals["parameters_after"] == after


@pytest.mark.parametrize("kind", KINDS)
def test_texts_whose_tokens_stay_get_the_same_tokens(kind: str, tmp_path: Path) -> None:
    dense, out = save(tiny.config("llama"), tmp_path / "dense", kind), tmp_path / "out"
    report = prune(dense, asked(calibration={"dataset": "builtin"}), out=out)
    texts = [here.text()[start : start + 9] for start in range(0, 20_000, 97)] + ["日本 é ~", "", "<s>a</s>"]
    assert require_same_tokens(dense, out, texts) > 20
    require_same_logits(dense, out)
    said = report.vocabulary
    assert said is not None and said["text"] == "builtin"
    assert said["text_tokens_before"] < said["text_tokens_after"] < 1.5 * said["text_tokens_before"]
    assert f"builtin, read whole: {said['text_tokens_before']:,} tokens" in (out / "README.md").read_text()
    chat = [{"role": "user", "content": "a"}]
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (dense, out))
    assert after.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)
    for role in ("user", "assistant"):
        assert len(after(role)["input_ids"]) == len(before(role)["input_ids"])


def test_per_layer_embeddings_lose_the_same_rows(tmp_path: Path) -> None:
    # The last rows are of another kind of input.
    config = tiny.gemma3n(vocab_size_per_layer_input=here.SIZE - 8, num_kv_shared_layers=0)
    dense, out = save(config, tmp_path / "dense"), tmp_path / "out"
    report = prune(dense, asked(), out=out)
    require_same_logits(dense, out)
    assert len(report.sites) == 2
    assert AutoConfig.from_pretrained(out).vocab_size_per_layer_input == KEEP - 1  # but <tool>


def test_an_untied_head_is_cut_as_well(tmp_path: Path) -> None:
    config = tiny.config("llama")
    config.tie_word_embeddings = True
    tied = prune(save(config, tmp_path / "tied"), asked(), out=tmp_path / "tied-out")
    untied = prune(save(tiny.config("llama"), tmp_path / "untied"), asked(), out=tmp_path / "untied-out")
    assert [site.name for site in tied.sites] == ["model.embed_tokens"]
    assert [site.name for site in untied.sites] == ["model.embed_tokens", "lm_head"]
    require_same_logits(tmp_path / "tied", tmp_path / "tied-out")


def test_the_blocks_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    prune(folder, asked(), out=tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(folder).model.layers.state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_an_interrupted_run_ends_with_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    pruned_twice(folder, asked(calibration={"dataset": "builtin"}), tmp_path)


def test_a_finished_run_that_is_resumed_is_done(folder: Path, tmp_path: Path) -> None:
    first = prune(folder, asked(), out=tmp_path / "out")
    assert prune(folder, asked(), out=tmp_path / "out", resume=True) == first
    with pytest.raises(RequestError, match="another pattern"):
        prune(folder, asked(320), out=tmp_path / "out", resume=True)


def test_several_texts_are_read_whole(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.jsonl"
    first.write_text("import this " * 5)
    second.write_text('{"text": "other words"}\n{"text": "and more"}\n')
    report = prune(folder, asked(calibration={"dataset": f"{first},{second}"}), out=tmp_path / "out")
    whole = "\n\n".join([first.read_text(), "other words", "and more"])
    count = len(AutoTokenizer.from_pretrained(folder)(whole, add_special_tokens=False)["input_ids"])
    assert report.vocabulary is not None
    assert report.vocabulary["text_tokens_before"] == count


def test_older_files_of_the_same_tokenizer_are_left_out(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text("{}")
    prune(folder, asked(), out=tmp_path / "out")
    assert not {"vocab.json", "merges.txt"} & {path.name for path in (tmp_path / "out").iterdir()}


def refused(folder: Path, tmp_path: Path, recipe: dict[str, Any]) -> str:
    """Why a request is refused; nothing is written."""
    with pytest.raises(RequestError) as raised:
        prune(folder, recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(raised.value)


@pytest.mark.parametrize("keep", [1, 64, 256, here.SIZE, 10**9])
def test_a_size_that_cannot_be_is_refused(keep: int, folder: Path, tmp_path: Path) -> None:
    why = refused(folder, tmp_path, asked(keep))
    assert f"{keep} rows were asked" in why
    assert "ask for 320 to 384" in why


def test_tokenizers_that_cannot_be_cut_are_refused(
    folder: Path, checkpoints: tiny.Checkpoints, tmp_path: Path
) -> None:
    assert "WordPiece" in refused(checkpoints("llama"), tmp_path, asked(64))
    shutil.copytree(folder, tmp_path / "without")
    (tmp_path / "without" / "tokenizer.json").unlink()
    assert "has none" in refused(tmp_path / "without", tmp_path, asked())


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"calibration": {"dataset": "synthetic"}}, "synthetic is no text whose tokens can be counted"),
        ({"repair": "affine"}, "affine compensates whole units, not vocabulary"),
        ({"layout": "padded"}, "padded is for whole units"),
        ({"recovery": "refine"}, "recover before the vocabulary is cut"),
        ({"method": "wanda"}, "wanda prunes single weights or whole units"),
        ({"allocation": "owl"}, "owl cannot share out rows"),
    ],
)
def test_what_does_not_go_with_a_vocabulary_is_refused(
    more: dict[str, Any], why: str, folder: Path, tmp_path: Path
) -> None:
    assert why in refused(folder, tmp_path, asked(**more))


def test_the_command_line_refuses_in_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", str(folder), "--pattern", "vocabulary", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["llmprune", *words, "--set", "pattern.keep=64"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "llmprune: pattern.keep: 64 rows were asked" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_token_ids_are_no_text_to_choose_on(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="chosen on a text"):
        prune(folder, asked(), tokens=torch.zeros(2, 8, dtype=torch.int64), out=tmp_path / "out")


def test_a_model_in_memory_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="give its folder"):
        prune(AutoModelForCausalLM.from_pretrained(folder), asked())


def test_a_recipe_writes_the_size_as_it_was_asked() -> None:
    recipe = Recipe.parse(asked())
    assert recipe.resolved()["pattern"] == {"name": "vocabulary", "keep": KEEP, "multiple": 64}
    assert Recipe.parse(recipe.resolved()) == recipe


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared models")
def test_a_real_model_with_byte_fallback(tmp_path: Path) -> None:
    dense, text = SHARED / "models" / "stories15M", SHARED / "data" / "tinystories" / "validation.parquet"
    prune(dense, asked(8192, calibration={"dataset": str(text)}), out=tmp_path / "out")
    require_same_logits(dense, tmp_path / "out", 64)
    story = "Once upon a time, a little girl found a red ball. She was happy! Ünïcödé 日本"
    assert require_same_tokens(dense, tmp_path / "out", [*story.split(" "), story[:60], story]) > 10


def test_special_tokens_that_only_the_settings_name_stay(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer_config.json"
    rare = max(tokens(folder), key=lambda token: (tokens(folder)[token] < here.SIZE, tokens(folder)[token]))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": rare}))
    prune(tmp_path / "other", asked(), out=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token == rare
    assert max(tokenizer.get_vocab().values()) < KEEP


def test_settings_that_cannot_be_read_are_a_sentence(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "generation_config.json").write_text("{")
    assert "generation_config.json cannot be read" in refused(tmp_path / "other", tmp_path, asked())


def test_what_compares_logits_of_one_vocabulary_refuses_a_cut_one(folder: Path, tmp_path: Path) -> None:
    prune(folder, asked(), out=tmp_path / "out")
    with pytest.raises(RequestError, match="recovery compares logits of one vocabulary"):
        recover(tmp_path / "out", "refine")
