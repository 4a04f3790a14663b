"""What ships compiles to what was promised, seen in the machine code; no GPU is needed for that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="needs triton: pip install triton"
)


def gate(*arguments: str) -> list[str]:
    """The gate's lines; it must pass."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-m", "llmprune_kernels.aot", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    return ran.stdout.splitlines()


def test_decoding_one_token_keeps_its_promise_on_hopper() -> None:
    lines = gate("--architectures", "90", "--only", "skinny M=1 ")
    assert len(lines) > 3
    assert all(line.startswith("sm_90 skinny M=1 ") and line.endswith(": kept") for line in lines)


@pytest.mark.slow
def test_every_kernel_keeps_its_promise_on_every_architecture() -> None:
    lines = gate()
    assert len(lines) > 60 and {line.split()[0] for line in lines} == {"sm_80", "sm_90", "sm_100"}
    for kernel in ("skinny", "portable", "dense", "unpack", "pack tokens", "combine"):
        assert any(line.startswith(f"sm_90 {kernel}") for line in lines)


def test_what_is_broken_is_seen() -> None:
    """Machine code with every fault: the gate names each."""
    from llmprune_kernels import aot

    case = aot.Case("broken", None, {}, 4, sparse_core=True, registers=64, weights_per_warp=32)
    codes = ["LDG.E.U16", "HMMA.16816.F32", "STL", *["PRMT"] * 10, "BRA"]
    machine = aot.Machine(registers=200, shared=300_000, local=16, opcodes=codes, loop=codes)
    said = "; ".join(aot.faults(case, machine, 90))
    for fault in (
        "no sparse tensor core instruction",
        "no 128-bit load",
        "16 bytes of registers spilled",
        "200 registers, 64 allowed",
        "300000 bytes of shared memory",
        "10.00 integer operations a weight, 3.90 allowed",
    ):
        assert fault in said
    assert "no loop to be seen" in aot.faults(case, aot.Machine(32, 0, 0, codes, []), 90)


def test_a_listing_is_read_as_written() -> None:
    from llmprune_kernels import aot

    listing = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   HMMA.SP.16832.F32.BF16 R4, R8, R12, R4, R16, 0x0 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   EXIT ;
.L_x_2:
        /*0050*/                   BRA `(.L_x_2);
"""
    opcodes, loop = aot._read(listing)
    assert opcodes == ["LDC", "LDG.E.128", "HMMA.SP.16832.F32.BF16", "BRA", "EXIT", "BRA"]
    assert loop == ["LDG.E.128", "HMMA.SP.16832.F32.BF16", "BRA"]
