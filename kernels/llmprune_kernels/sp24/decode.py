"""Kept values and nibbles of packed tiles as matrices, in plain Triton, for what has no sparse cores.

Letters used in shapes: R rows of tiles (16 rows each), C steps of 64 columns; a group is four columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmprune_kernels.formats.sp24 import NIBBLES

VALID = sorted({nibble for nibble in NIBBLES if nibble < 16})
FIRST, SECOND, ZERO = 0x10, 0x32, 0x54
"""Selectors of byte permutation: the low half of the word, its high half, or the zeros of the other word."""


def short(nibble: int) -> int:
    """Three bits that tell the six valid nibbles apart: bit 3 is folded into bits 0 and 1."""
    return (nibble ^ (nibble >> 3) * 3) & 7


def table(column: int) -> tuple[int, int]:
    """The selector of a column for each of the eight short nibbles, as the two words that PRMT looks up."""
    found = [ZERO] * 8
    for nibble in VALID:
        if column in (nibble & 3, nibble >> 2):
            found[short(nibble)] = FIRST if column == nibble & 3 else SECOND
    low, high = (sum(byte << 8 * i for i, byte in enumerate(found[at : at + 4])) for at in (0, 4))
    return low, high


def _permutations() -> str:
    """PTX that makes the columns of four groups: two words of each column from four words and short nibbles.

    Outputs $0 to $7, column by column; words $8 to $11, nibbles $12 to $15. The four nibbles make one
    selector, by products because adders are scarce; each table gives a column's byte for all four groups.
    """
    lines = ["{ .reg .b32 i, z, s<4>, g<4>;", "mov.b32 z, 0;", "mad.lo.u32 i, $15, 16, $14;"]
    lines += ["mad.lo.u32 i, i, 16, $13;", "mad.lo.u32 i, i, 16, $12;"]
    for column in range(4):
        low, high = table(column)
        lines.append(f"prmt.b32 s{column}, {low:#x}, {high:#x}, i;")
    for pair in (0, 2):
        for group in range(4):
            lines.append(f"prmt.b32 g{group}, s{pair}, s{pair + 1}, {group | group + 4 << 4:#x};")
            lines.append(f"prmt.b32 g{group}, ${8 + group}, z, g{group};")
        for column, halves in ((pair, 0x5410), (pair + 1, 0x7632)):
            for word in range(2):
                lines.append(f"prmt.b32 ${2 * column + word}, g{2 * word}, g{2 * word + 1}, {halves:#x};")
    return "\n".join([*lines, "}"])


PERMUTATIONS = tl.constexpr(_permutations())


@triton.jit
def words(values_ptr, meta_ptr, tile, first, TILES, STEPS, R: tl.constexpr, C: tl.constexpr):
    """Values and metadata of R tiles from `tile` and C steps of 64 columns from `first`.

    Values are int32 [16 R, 16 C], the two of a group in a word, zero beyond the matrix; metadata are as
    stored, eight nibbles in each of [R, C, 8, 4, 1, 1].
    """
    row = tile + tl.arange(0, R)
    lane = tl.arange(0, 128)
    step = 2 * first + tl.arange(0, 2 * C)
    at = (row.to(tl.int64)[:, None, None] * STEPS * 2 + step[None, :, None]) * 128 + lane[None, None, :]
    there = (row < TILES)[:, None, None] & (step < 2 * STEPS)[None, :, None]
    pairs = tl.load(values_ptr + at, there, 0)
    pairs = tl.permute(tl.reshape(pairs, [R, 2 * C, 8, 4, 2, 2]), [0, 5, 2, 1, 4, 3])
    lane = tl.arange(0, 32)
    step = first + tl.arange(0, C)
    at = (row.to(tl.int64)[:, None, None] * STEPS + step[None, :, None]) * 32 + lane[None, None, :]
    there = (row < TILES)[:, None, None] & (step < STEPS)[None, :, None]
    meta = tl.reshape(tl.load(meta_ptr + at, there, 0x44444444), [R, C, 8, 4, 1, 1])
    return tl.reshape(pairs, [16 * R, 16 * C]), meta


@triton.jit
def spread(meta, R: tl.constexpr, C: tl.constexpr):
    """The words of nibbles [R, C, 8, 4, 1, 1] shifted to each of their groups, [16 R, 16 C]."""
    shift = 16 * tl.arange(0, 2)[:, None] + 4 * tl.arange(0, 4)[None, :]
    nibbles = meta >> tl.reshape(shift, [1, 1, 1, 1, 2, 4])
    return tl.reshape(tl.permute(nibbles, [0, 4, 2, 1, 3, 5]), [16 * R, 16 * C])


@triton.jit
def quads(pairs, nibbles):
    """The four columns of every group as one int64, from its two values and its nibble."""
    low = (pairs & 0xFFFF).to(tl.int64) << ((nibbles & 3) * 16).to(tl.int64)
    return low | (pairs >> 16 & 0xFFFF).to(tl.int64) << ((nibbles >> 2 & 3) * 16).to(tl.int64)


@triton.jit
def column(quad, C: tl.constexpr):
    """Column C of every group, int16."""
    return (quad >> 16 * C & 0xFFFF).to(tl.int16)


@triton.jit
def columns(pairs, meta, R: tl.constexpr, C: tl.constexpr, PRMT: tl.constexpr, TYPE: tl.constexpr):
    """The four columns of every group, each [16 R, 16 C]."""
    if PRMT:
        eighths = meta & -2004318072  # 0x88888888, bit 3 of every nibble
        nibbles = spread(meta ^ (eighths >> 3 & 0x11111111) ^ (eighths >> 2 & 0x22222222), R, C) & 7
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            PERMUTATIONS,
            "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r,r,r,r,r",
            [pairs, nibbles],
            dtype=(tl.int16, tl.int16, tl.int16, tl.int16),
            is_pure=True,
            pack=4,
        )
    else:
        quad = quads(pairs, spread(meta, R, C))
        c0, c1, c2, c3 = column(quad, 0), column(quad, 1), column(quad, 2), column(quad, 3)
    return (
        c0.to(TYPE, bitcast=True),
        c1.to(TYPE, bitcast=True),
        c2.to(TYPE, bitcast=True),
        c3.to(TYPE, bitcast=True),
    )
