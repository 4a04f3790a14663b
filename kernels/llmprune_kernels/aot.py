"""Compile what we ship without a GPU, and read in the machine code whether it is what was promised.

`python -m llmprune_kernels.aot` prints a line for every kernel, configuration and architecture, and fails if
one of them spills registers, loads in small pieces, has lost the sparse tensor core, or needs more of the
multiprocessor or of its integer units than its budget.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from llmprune_kernels.dense import launch as dense
from llmprune_kernels.dense.product import product_kernel
from llmprune_kernels.epilogue import combine_kernel
from llmprune_kernels.sp24 import launch as sparse
from llmprune_kernels.sp24.pack_tokens import pack_kernel
from llmprune_kernels.sp24.portable import portable_kernel, unpack_kernel
from llmprune_kernels.sp24.skinny import skinny_kernel

ARCHITECTURES = (80, 90, 100)
SHAPES = {1: (4096, 14336), 2: (14336, 4096)}
"""N and K of Llama-3-8B's down projection, and of its gate and up."""
SHARED = {80: 163, 90: 227, 100: 227}
"""KiB of shared memory that a program can have."""
INTEGERS = {80: 5.4, 90: 3.9, 100: 3.9}
"""Integer operations a weight that fit into the time of reading it: 64 a cycle and multiprocessor, on an A100
at 2.0 TB/s and an H200 at 4.3 TB/s."""
INTEGER = re.compile(r"^(IADD3?|VIADD|LOP3|PLOP3|SHF|SGXT|PRMT|SEL|ISETP|LEA|MOV|IABS|IMNMX|VIMNMX)\b")
"""What the integer units do, 64 lanes a cycle; products (IMAD) go through the units of floating point."""
POINTERS = {"values_ptr": "*i32", "meta_ptr": "*i32", "parts_ptr": "*fp32"}
SIZES = ("M", "N", "K", "TILES", "STEPS")


@dataclass(frozen=True)
class Case:
    """One kernel with one configuration, and what its machine code must show."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int
    stages: int = 3
    pointers: dict[str, str] = field(default_factory=dict)
    sparse_core: bool = False
    wide: bool = True
    """Whether it reads 128 bits at a time."""
    registers: int = 255
    weights_per_warp: int = 0
    """Weights that a warp takes in one turn of the loop; 0 for kernels without one."""
    integers: float = 1.0
    """The part of INTEGERS that the loop may take."""


@dataclass(frozen=True)
class Machine:
    """What came out of the compiler."""

    registers: int
    shared: int
    local: int
    opcodes: list[str]
    loop: list[str]


def compile_for(case: Case, architecture: int) -> Machine:
    """Compile down to machine code, and read it."""
    names = case.kernel.arg_names
    signature = {name: "constexpr" for name in names}
    for name in names:
        if name not in case.constants:
            signature[name] = "i32" if name in SIZES else case.pointers.get(name, POINTERS.get(name, "*bf16"))
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    # Sizes that are multiples of 16, as a launch finds them: without this, loads come one number at a time.
    aligned = [n for n in names if signature[n].startswith("*") or n in ("N", "K")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = GluonASTSource if case.kernel.is_gluon() else ASTSource
    compiled = triton.compile(
        source(case.kernel, signature, constants, attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": case.warps, "num_stages": case.stages, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        listing = _tool("nvdisasm", "-c", file.name)
    used = {key: int(value) for key, value in re.findall(r"(REG|LOCAL|STACK):(\d+)", usage)}
    return Machine(used["REG"], compiled.metadata.shared, used["LOCAL"] + used["STACK"], *_read(listing))


def _tool(name: str, *arguments: str) -> str:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=True).stdout


def _read(listing: str) -> tuple[list[str], list[str]]:
    """All opcodes, and those of the longest loop: from a label to the branch back to it."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loop: list[str] = []
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\w+):", line):
            labels[label[1]] = len(opcodes)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            opcodes.append(found[1])
            target = re.search(r"\.L_x_\w+", found[2]) if found[1].startswith("BRA") else None
            if target and target[0] in labels and len(opcodes) - labels[target[0]] > max(1, len(loop)):
                loop = opcodes[labels[target[0]] :]
    return opcodes, loop


def integers_per_weight(case: Case, machine: Machine) -> float:
    """Integer operations of all lanes in the loop for each weight it takes."""
    return 32 * sum(bool(INTEGER.match(code)) for code in machine.loop) / case.weights_per_warp


def faults(case: Case, machine: Machine, architecture: int) -> list[str]:
    """What the machine code does not keep of what was promised."""
    codes = Counter(machine.opcodes)
    found = []
    if case.sparse_core and not any(code.startswith("HMMA.SP") for code in codes):
        found.append("no sparse tensor core instruction")
    if case.wide and not any(re.match(r"(LDG|LDGSTS)\..*128", code) for code in codes):
        found.append("no 128-bit load")
    if machine.local or any(re.match(r"(LDL|STL)\b", code) for code in codes):
        found.append(f"{machine.local} bytes of registers spilled")
    if machine.registers > case.registers:
        found.append(f"{machine.registers} registers, {case.registers} allowed")
    if machine.shared > 1024 * SHARED[architecture]:
        found.append(f"{machine.shared} bytes of shared memory, {SHARED[architecture]} KiB allowed")
    if case.weights_per_warp and not machine.loop:
        found.append("no loop to be seen")
    allowed = case.integers * INTEGERS[architecture]
    if case.weights_per_warp and (per := integers_per_weight(case, machine)) > allowed:
        found.append(f"{per:.2f} integer operations a weight, {allowed:.2f} allowed")
    return found


def cases() -> Iterator[Case]:
    """Every kernel with the configurations that are used where no card has been tuned for."""
    yield _skinny(_job(1, 1, torch.float16, 4096, 14336))
    for m in (1, 16, 64):
        yield _skinny(_job(m, 1, torch.bfloat16, 4096, 11008))
    for m in (1, 16):
        yield _skinny(_job(m, 1, torch.bfloat16, 1000, 328))  # nothing divides it: all masks are in the loop
    for halves in (1, 2):
        for m in (1, 16, 32, 64, 128):
            yield _skinny(_job(m, halves, torch.bfloat16, *SHAPES[halves]))
        for m in (1, 64):
            yield _portable(m, halves)
        for m in (1, 16):
            yield _dense(m, halves)
    yield Case("unpack", unpack_kernel, {"R": 4, "C": 2}, 4, pointers={"out_ptr": "*i64"})
    yield Case(
        "pack tokens",
        pack_kernel,
        {"BLOCK": 1024},
        4,
        pointers={"x_ptr": "*i32", "out_ptr": "*i32"},
        wide=False,
    )
    final = {"HALVES": 1, "HAS_BIAS": True, "HAS_RESIDUAL": True, "SPLITS": 4, "BLOCK": 512}
    yield Case("combine", combine_kernel, final, 4)


def _job(m: int, halves: int, dtype: torch.dtype, n: int, k: int) -> sparse.Sp24Job:
    """A product of those shapes, without memory."""
    empty = functools.partial(torch.empty, device="meta")
    tiles, steps = halves * -(-n // 16), 2 * -(-k // 64)
    values = empty(tiles, steps, 32, 4, dtype=torch.int32)
    meta = empty(tiles, steps // 2, 32, dtype=torch.int32)
    return sparse.Sp24Job(x=empty(m, k, dtype=dtype), n=n, halves=halves, values=values, meta=meta)


def _skinny(job: sparse.Sp24Job) -> Case:
    config = sparse.skinny_default(job)
    flags = sparse.flags(job, config)
    kind = flags["TYPE"]
    even = flags["EVEN_N"] and flags["EVEN_K"]
    elements = {"f16": "*fp16", "bf16": "*bf16"}[kind]
    (m, k), halves = job.x.shape, job.halves
    extras = halves == 1
    constants = {"HALVES": halves, "HAS_BIAS": extras, "HAS_RESIDUAL": extras} | flags
    return Case(
        f"skinny M={m} {halves} x {job.n} x {k} {kind}",
        skinny_kernel,
        constants | config,
        config["WARPS_N"] * config["WARPS_K"],
        pointers={
            "x_ptr": "*i32",
            "bias_ptr": elements,
            "residual_ptr": elements,
            "out_ptr": "*fp32" if config["SPLITS"] > 1 else elements,
        },
        sparse_core=True,
        registers=64 if m <= 8 else 255,
        weights_per_warp=config["UNROLL"] * config["RT"] * halves * 16 * 64,
        integers=0.2 if even else 0.5,
    )


def _portable(m: int, halves: int) -> Case:
    config = sparse.portable_default(_job(m, halves, torch.bfloat16, *SHAPES[halves]))
    warps = config.pop("num_warps")
    parts = config["SPLITS"] * halves > 1
    constants = {
        "HALVES": halves,
        "HAS_BIAS": False,
        "HAS_RESIDUAL": False,
        "PARTS": parts,
        "PRMT": True,
        "UPCAST": False,
    }
    return Case(
        f"portable M={m} halves={halves}",
        portable_kernel,
        constants | config,
        warps,
        pointers={"out_ptr": "*fp32" if parts else "*bf16"},
        weights_per_warp=16 * config["R"] * 64 * config["C"] // warps,
        integers=1.0 if m <= 16 else 1.15,  # with more tokens, taking the input apart costs more
    )


def _dense(m: int, halves: int) -> Case:
    job = _job(m, halves, torch.bfloat16, *SHAPES[halves])
    weight = torch.empty(job.n, job.x.shape[1], dtype=job.x.dtype, device="meta")
    config = dense.default(dense.DenseJob(x=job.x, n=job.n, halves=halves, weight=weight))
    warps, stages = config.pop("num_warps"), config.pop("num_stages")
    constants = {"HALVES": halves, "HAS_BIAS": halves == 1, "HAS_RESIDUAL": halves == 1, "UPCAST": False}
    return Case(
        f"dense M={m} halves={halves}",
        product_kernel,
        constants | config,
        warps,
        stages,
        {"out_ptr": "*fp32" if config["SPLITS"] > 1 else "*bf16"},
    )


def main() -> None:
    """Compile everything, and say what does not keep its promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--only", default="", help="cases whose name begins like this")
    asked = parser.parse_args()
    failed = False
    for case in (case for case in cases() if case.name.startswith(asked.only)):
        for architecture in asked.architectures:
            machine = compile_for(case, architecture)
            wrong = faults(case, machine, architecture)
            failed = failed or bool(wrong)
            per = (
                f", {integers_per_weight(case, machine):.2f} integers/weight" if case.weights_per_warp else ""
            )
            figures = f"{machine.registers} registers, {machine.shared} B shared{per}"
            sys.stdout.write(f"sm_{architecture} {case.name}: {figures}: {'; '.join(wrong) or 'kept'}\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
