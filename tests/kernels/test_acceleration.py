"""Which layers of real models get a kernel, on the CPU: the same logits, and the same checkpoint."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llmprune_kernels import acceleration
from llmprune_kernels.acceleration import accelerate
from llmprune_kernels.errors import KernelError
from llmprune_kernels.modules import ShrunkMLP, Sp24Linear, Sp24MLP
from llmprune_kernels.sp24 import prefill
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import llmprune
from tests import tiny
from tests.kernels.matrices import error
from tests.kernels.models import BF16, kernels_in, kinds, llama, make_24

OTHER_CLASSES = ("falcon", "gpt2")  # FalconLinear and Conv1D, in which no kernel is tried


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("sparse_layers", [True, False])
def test_a_model_keeps_its_logits_its_text_and_its_checkpoint(sparse_layers: bool, tmp_path: Path) -> None:
    model, dense = llama(sparse_layers), llama(sparse_layers)
    ids = torch.randint(3, 100, (2, 12))
    choices = accelerate(model)
    assert kinds(model) == ({Sp24Linear, Sp24MLP, nn.Linear} if sparse_layers else {ShrunkMLP, nn.Linear})
    assert "lm_head" in [name for name, m in model.named_modules() if type(m) is nn.Linear]
    assert sum(row.count for row in choices.rows) == (15 if sparse_layers else 3)
    assert error(model(ids).logits, dense(ids).logits) < 2e-2
    for cache in ("dynamic", "static"):
        written = model.generate(ids, max_new_tokens=4, do_sample=False, cache_implementation=cache)
        assert written.shape == (2, 16)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=BF16)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), dense.parameters(), strict=True))


@pytest.mark.usefixtures("on_gpu")
def test_a_model_compiles_as_one_graph() -> None:
    model = llama(True)
    accelerate(model)
    ids = torch.randint(3, 100, (1, 7))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("loses_at", [1, 64])
def test_what_loses_stays_and_the_table_says_so(loses_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(layer: nn.Module, x: Tensor) -> float:
        return 3.0 if kernels_in(layer) and len(x) == loses_at else 1.0 if kernels_in(layer) else 2.0

    monkeypatch.setattr(acceleration, "_microseconds", clock)
    model = llama(True)
    table = str(accelerate(model))
    assert kinds(model) == {nn.Linear}
    assert all(line.endswith("  dense") for line in table.splitlines()[1:])
    monkeypatch.setattr(acceleration, "_microseconds", lambda layer, x: 2.0 if kernels_in(layer) else 2.08)
    accelerate(model, min_gain=1.05)
    assert kinds(model) == {nn.Linear}
    accelerate(model, min_gain=1.03)
    assert Sp24Linear in kinds(model)


@pytest.mark.usefixtures("on_gpu")
def test_the_most_tokens_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels here are twice as fast with one token, and half as fast with more than eight."""

    def clock(layer: nn.Module, x: Tensor) -> float:
        return (4.0 if len(x) > 8 else 1.0) if kernels_in(layer) else 2.0

    monkeypatch.setattr(acceleration, "_microseconds", clock)
    model = llama(True)
    table = str(accelerate(model))
    assert kinds(model) == {nn.Linear} and "2.00x    0.50x  dense" in table and "at 64" in table
    with pytest.raises(KernelError, match="most is a number of tokens, 1 or more, not 0"):
        accelerate(model, most=0)
    assert "2.00x    2.00x  Sp24Linear" in str(accelerate(model, most=8))
    assert Sp24Linear in kinds(model)


class Clamped(nn.Module):
    """An MLP with the right parts and another idea of what to do with them."""

    def __init__(self, mlp: Any, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn, self.change = mlp.act_fn, change

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.change(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("change", [lambda h: 2 * h, lambda h: h.clamp(-10, 10)], ids=["scaled", "clamped"])
def test_an_mlp_that_computes_something_else_stays(change: Callable[[Tensor], Tensor]) -> None:
    """Though it has the same parts, the same shape, and others of that shape are replaced."""
    model = llama(True)
    odd = model.model.layers[1]
    odd.mlp = Clamped(odd.mlp, change).eval()
    table = str(accelerate(model))
    assert type(odd.mlp) is Clamped and type(odd.mlp.gate_proj) is Sp24Linear
    assert type(model.model.layers[2].mlp) is Sp24MLP
    assert "dense: it computes something else" in table


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("sparse_layers", [True, False])
def test_an_mlp_that_overflows_in_float16_is_replaced(sparse_layers: bool) -> None:
    """As wide ones do on large inputs, whoever computes them."""
    model = tiny.model("llama", torch.float16)
    for layer in model.model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight.data *= 8
    if sparse_layers:
        make_24(model)
    mlp = model.model.layers[0].mlp
    assert not mlp(100 * torch.randn(4, model.config.hidden_size, dtype=torch.float16)).isfinite().all()
    choices = accelerate(model)
    assert {Sp24MLP if sparse_layers else ShrunkMLP} < kinds(model)
    assert not [note for row in choices.rows for note in row.notes]


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("wrong_from", [9, 129])
def test_a_kernel_that_is_wrong_with_many_tokens_stays_out(
    wrong_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Sp24Linear.forward
    monkeypatch.setattr(
        Sp24Linear,
        "forward",
        lambda self, x: right(self, x) * (1 if x.numel() < wrong_from * self.in_features else 2),
    )
    model = llama(True)
    assert "dense: it computes something else" in str(accelerate(model))
    assert Sp24Linear not in kinds(model)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_every_family_keeps_its_logits(family: str) -> None:
    """Also those that fuse, gate otherwise, or share weights: what is no linear layer stays."""
    model, dense = tiny.model(family, BF16), tiny.model(family, BF16)
    for one in (model, dense):
        make_24(one)
    ids = torch.randint(3, 100, (2, 12))
    choices = accelerate(model)
    assert kernels_in(model) == (family not in OTHER_CLASSES)
    assert error(model(ids).logits, dense(ids).logits) < 3e-2
    assert not [note for row in choices.rows for note in row.notes]


@pytest.mark.usefixtures("on_gpu")
def test_what_fails_stays_and_the_rest_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sp24MLP, "from_mlp", classmethod(lambda cls, mlp: 1 / 0))
    model = llama(True)
    table = str(accelerate(model))
    assert "not timed  dense\n    dense: ZeroDivisionError: division by zero" in table
    assert kinds(model) == {nn.Linear, Sp24Linear}


@pytest.mark.usefixtures("on_gpu")
def test_hooks_and_other_types_keep_a_layer_dense() -> None:
    model = llama(True)
    layer = model.model.layers[0]
    layer.mlp.down_proj.register_forward_hook(lambda module, inputs, out: out * 1.01)
    layer.self_attn.q_proj.float()
    accelerate(model)
    assert type(layer.mlp) not in (Sp24MLP, ShrunkMLP) and type(layer.mlp.down_proj) is nn.Linear
    assert type(layer.self_attn.q_proj) is nn.Linear and type(layer.self_attn.k_proj) is Sp24Linear


@pytest.mark.usefixtures("on_gpu")
def test_dense_weights_are_freed_as_they_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(True)
    old = [weakref.ref(layer.mlp) for layer in model.model.layers]
    alive: list[int] = []
    build = Sp24MLP.from_mlp.__func__

    def counted(cls: type, mlp: Any) -> Any:
        gc.collect()
        alive.append(sum(ref() is not None for ref in old))
        return build(cls, mlp)

    monkeypatch.setattr(Sp24MLP, "from_mlp", classmethod(counted))
    accelerate(model)
    assert alive == [3, 2, 1]


def test_no_gated_mlp_is_mistaken_for_one() -> None:
    assert acceleration.is_gated_mlp(tiny.model("llama", BF16).model.layers[0].mlp)
    for family in ("gemma", "opt", "phi3"):  # gelu, no gate, gate and up in one
        assert not any(map(acceleration.is_gated_mlp, tiny.model(family, BF16).modules()))


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (nn.Module.train, "the model is in training mode"),
        (lambda model: model, "the kernels need a GPU, and the model is on cpu"),
    ],
)
def test_without_a_gpu_all_stays_dense_and_why_is_said(prepare, reason: str) -> None:  # type: ignore[no-untyped-def]
    model = llama(True)
    prepare(model)
    choices = accelerate(model)
    assert str(choices).startswith(f"kernels: every layer stays dense: {reason}") and kinds(model) == {
        nn.Linear
    }


@pytest.mark.usefixtures("on_gpu")
def test_a_model_in_float32_stays_dense() -> None:
    assert "the model is in torch.float32" in str(accelerate(tiny.model("llama")))


def test_triton_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmprune_kernels.device.triton_version", lambda: None)
    assert "Triton is not installed" in str(accelerate(llama(True)))
    monkeypatch.setattr("llmprune_kernels.device.triton_version", lambda: "3.4.0")
    assert "need Triton 3.6 or newer, and 3.4.0 is installed" in str(accelerate(llama(True)))


def test_loading_says_what_the_kernels_do(
    checkpoints: tiny.Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(checkpoints("llama"))
    model, _ = llmprune.load(folder, device="cpu")
    assert "kernels: every layer stays dense: the kernels need a GPU" in capsys.readouterr().err
    assert kinds(model) == {nn.Linear}
    llmprune.load(folder, device="cpu", kernels="none")
    assert "kernels" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="kernels: 'fast' is not known; allowed: auto, none"):
        llmprune.load(folder, kernels="fast")  # type: ignore[arg-type]


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("wins", [True, False])
def test_a_second_copy_serves_many_tokens_where_it_wins(wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuSPARSELt runs on GPUs alone: here its functions multiply the dense weight, and are counted."""
    called = []

    def multiply(blob: Tensor, x: Tensor, bias: Tensor | None = None, **how: object) -> Tensor:
        assert x.shape[1] % 8 == 0
        called.append(how)
        return (blob.float() @ x.float()).T.to(x.dtype) + (0 if bias is None else bias)

    def seconds(run: Callable[[], object]) -> float:
        called.clear()
        run()
        return 1.0 if wins == bool(called) else 2.0

    monkeypatch.setattr(torch, "_cslt_compress", torch.clone)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, **__: 7)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    monkeypatch.setattr(prefill, "_seconds", seconds)
    monkeypatch.setattr(prefill, "_FOUND", {})
    monkeypatch.setattr(prefill, "BUCKETS", (256,))
    monkeypatch.setattr(prefill, "SIDES", 8)
    model, dense = llama(True), llama(True)
    accelerate(model, prefill="dual")
    called.clear()
    ids = torch.randint(3, 100, (3, 47))  # 141 tokens, more than the decode kernels take
    assert error(model(ids).logits, dense(ids).logits) < 2e-2
    assert [how["alg_id"] for how in called] == ([7] * 18 if wins else [])
    called.clear()
    model(ids[:1])
    assert not called
    with pytest.raises(KernelError, match="prefill is 'single' or 'dual', not 'both'"):
        accelerate(model, prefill="both")  # type: ignore[arg-type]


@pytest.mark.usefixtures("on_gpu")
def test_without_cusparselt_one_copy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(weight: Tensor) -> Tensor:
        raise RuntimeError("cuSPARSELt not supported on your machine")

    monkeypatch.setattr(torch, "_cslt_compress", refused)
    monkeypatch.setattr(prefill, "_FOUND", {})
    monkeypatch.setattr(prefill, "SIDES", 8)
    model = llama(True)
    table = str(accelerate(model, prefill="dual"))
    assert {Sp24Linear, Sp24MLP} < kinds(model)
    assert "    one copy: RuntimeError: cuSPARSELt not supported on your machine" in table
    assert "dense: " not in table
