"""Few tokens times a 2:4 matrix on NVIDIA's sparse tensor cores, in Gluon with `mma.sp` as inline PTX.

With few tokens, reading the weight is all the work. So it is read once, in the order in which the
instruction wants it (formats/fragments.py): 128 bits a lane, nothing decoded. Gluon makes this possible: it
lets us say which lane holds which element, and in a layout whose last axis is a lane's four registers, an
elementwise asm over four elements is one tensor core instruction.

The weight is the instruction's left operand, so its 16 rows are outputs, and its 8 columns are tokens. The
inputs are shared out over warps and, with SPLITS > 1, over programs; both sums are taken in a fixed order.

Letters used in shapes: M tokens, N outputs, K inputs; T tiles of 16 outputs, S steps of 32 inputs. In layouts
[32 W, RT, MT, 4]: W warps of 32 lanes (lane = 4 g + t), RT tiles of outputs, MT tiles of 8 tokens, registers.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def multiply(a, b, total, meta, TYPE: gl.constexpr, SELECTOR: gl.constexpr):
    """total + a b for every tile; a [32 W, RT, 4] and b [32 W, MT, 4] hold two values a word."""
    return gl.inline_asm_elementwise(
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." + TYPE + "." + TYPE + ".f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9, $10, $11}, {$12, $13, $14, $15}, $16, "
        + SELECTOR
        + ";",
        "=f,=f,=f,=f,r,r,r,r,r,r,r,r,f,f,f,f,r,r,r,r",
        [gl.expand_dims(a, 2), gl.expand_dims(b, 1), total, meta[:, :, None, None]],
        dtype=gl.float32,
        is_pure=False,  # it speaks to the other lanes: it must be neither moved into a branch nor merged
        pack=4,
    )


@gluon.jit
def tiles_of(thread, kind, RT: gl.constexpr, WARPS_N: gl.constexpr, HALVES: gl.constexpr):
    """Which tile of outputs each thread has in its place `kind`, counted within one half of the weight."""
    return (gl.program_id(1) * WARPS_N + thread // 32 % WARPS_N) * RT + kind // HALVES


@gluon.jit
def tokens(at_ptr, step, there, pair, K, STEPS, PACKED: gl.constexpr, EVEN_K: gl.constexpr):
    """The right operand of a step [32 W, MT, 4]: two inputs of one token a word."""
    if PACKED:
        mask = None if EVEN_K else step < STEPS * 2
        words = gl.load(at_ptr + step * 128, mask, None if EVEN_K else 0)
    else:
        mask = there if EVEN_K else there & (step * 16 + pair < K // 2)
        words = gl.load(at_ptr + step * 16, mask, 0)
    return words


@gluon.jit(do_not_specialize=["M", "TILES", "STEPS"])
def skinny_kernel(
    x_ptr,  # int32: [M, K/2], or the words of `pack_kernel` if PACKED
    values_ptr,  # int32 [T, S, 32, 4]; if GATED, the gate's tiles and then the other half's
    meta_ptr,  # int32 [T, S/2, 32]
    bias_ptr,  # [N]
    residual_ptr,  # [M, N]
    out_ptr,  # [M, N]; if SPLITS > 1, float32 [SPLITS, HALVES, M, N]
    M,
    N,
    K,
    TILES,  # T, of one half
    STEPS,  # S/2
    TYPE: gl.constexpr,
    PACKED: gl.constexpr,
    HALVES: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    HAS_RESIDUAL: gl.constexpr,
    EVEN_N: gl.constexpr,  # no program has tiles beyond the last
    EVEN_K: gl.constexpr,  # no warp has steps beyond the last, and K is a multiple of 64
    RT: gl.constexpr,
    MT: gl.constexpr,
    WARPS_N: gl.constexpr,
    WARPS_K: gl.constexpr,
    SPLITS: gl.constexpr,
    UNROLL: gl.constexpr,
):
    """out = x weight^T with bias and residual, or silu(x gate^T) * (x up^T) of two halves."""
    W: gl.constexpr = WARPS_N * WARPS_K
    EVEN: gl.constexpr = EVEN_N and EVEN_K
    FULL: gl.constexpr = gl.BlockedLayout([1, RT * HALVES, MT, 4], [32, 1, 1, 1], [W, 1, 1, 1], [3, 2, 1, 0])
    LEFT: gl.constexpr = gl.SliceLayout(2, FULL)
    RIGHT: gl.constexpr = gl.SliceLayout(1, FULL)
    WORD: gl.constexpr = gl.SliceLayout(2, gl.SliceLayout(3, FULL))
    split = gl.program_id(2)

    thread = gl.arange(0, 32 * W, gl.SliceLayout(1, WORD))
    kind = gl.arange(0, RT * HALVES, gl.SliceLayout(0, WORD))[None, :]
    tile = tiles_of(thread[:, None], kind, RT, WARPS_N, HALVES)
    meta_there = tile < TILES
    meta_at = (tile + kind % HALVES * TILES).to(gl.int64) * STEPS * 32 + (thread % 32)[:, None]
    meta_step = (thread // (32 * WARPS_N))[:, None]

    thread = gl.arange(0, 32 * W, gl.SliceLayout(1, gl.SliceLayout(2, LEFT)))
    kind = gl.arange(0, RT * HALVES, gl.SliceLayout(0, gl.SliceLayout(2, LEFT)))[None, :, None]
    register = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, LEFT)))[None, None, :]
    tile = tiles_of(thread[:, None, None], kind, RT, WARPS_N, HALVES)
    a_there = tile < TILES
    a_at = (
        (tile + kind % HALVES * TILES).to(gl.int64) * STEPS * 256
        + (thread % 32)[:, None, None] * 4
        + register
    )
    a_step = (thread // (32 * WARPS_N))[:, None, None]

    thread = gl.arange(0, 32 * W, gl.SliceLayout(1, gl.SliceLayout(2, RIGHT)))[:, None, None]
    eight = (
        gl.program_id(0) * MT + gl.arange(0, MT, gl.SliceLayout(0, gl.SliceLayout(2, RIGHT)))[None, :, None]
    )
    register = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, RIGHT)))[None, None, :]
    b_step = thread // (32 * WARPS_N)
    token = eight * 8 + thread % 32 // 4
    pair = thread % 4 + register * 4
    b_at = eight * STEPS * 256 + thread % 32 * 4 + register if PACKED else token * (K // 2) + pair

    total = gl.zeros([32 * W, RT * HALVES, MT, 4], gl.float32, FULL)
    for first in range(split * WARPS_K, STEPS, WARPS_K * SPLITS * UNROLL):
        for u in gl.static_range(UNROLL):
            start = first + u * WARPS_K * SPLITS
            meta_mask = None if EVEN else meta_there & (start + meta_step < STEPS)
            a_mask = None if EVEN else a_there & (start + a_step < STEPS)
            meta = gl.load(
                meta_ptr + meta_at + (start + meta_step) * 32,
                meta_mask,
                None if EVEN else 0x44444444,  # the instruction wants ordered positions even where nothing is
                eviction_policy="evict_first",
            )
            for half in gl.static_range(2):
                a = gl.load(
                    values_ptr + a_at + (start + a_step) * 256 + half * 128,
                    a_mask,
                    None if EVEN else 0,
                    eviction_policy="evict_first",
                )
                step = (start + b_step) * 2 + half
                b = tokens(x_ptr + b_at, step, token < M, pair, K, STEPS, PACKED, EVEN_K)
                total = multiply(a, b, total, meta, TYPE, "0x0" if half == 0 else "0x1")

    # The warps that shared out the inputs add up their sums.
    total = gl.sum(gl.reshape(total, [WARPS_K, 32 * WARPS_N, RT, HALVES, MT, 4]), 0)
    KINDS: gl.constexpr = RT if SPLITS == 1 else RT * HALVES
    if HALVES == 2 and SPLITS == 1:
        gate, up = gl.split(gl.permute(total, [0, 1, 3, 4, 2]))
        total = gate / (1 + gl.exp(-gate)) * up
    else:
        total = gl.reshape(total, [32 * WARPS_N, KINDS, MT, 4])
    OUT: gl.constexpr = gl.BlockedLayout([1, KINDS, MT, 4], [32, 1, 1, 1], [W, 1, 1, 1], [3, 2, 1, 0])
    total = gl.convert_layout(total, OUT)
    rows: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, OUT)))
    kinds: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, OUT)))
    eights: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, OUT)))
    registers: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, OUT)))
    thread = gl.arange(0, 32 * WARPS_N, rows)[:, None, None, None]
    kind = gl.arange(0, KINDS, kinds)[None, :, None, None]
    eight = gl.program_id(0) * MT + gl.arange(0, MT, eights)[None, None, :, None]
    register = gl.arange(0, 4, registers)[None, None, None, :]
    n = tiles_of(thread, kind, RT, WARPS_N, KINDS // RT) * 16 + thread % 32 // 4 + register // 2 * 8
    m = eight * 8 + thread % 4 * 2 + register % 2
    mask = (m < M) & (n < N)
    at = m * N + n
    if SPLITS > 1:
        at += (split * HALVES + kind % HALVES) * M * N
    else:
        if HAS_BIAS:
            total += gl.load(bias_ptr + n + 0 * m, mask, 0).to(gl.float32)
        if HAS_RESIDUAL:
            total += gl.load(residual_ptr + at, mask, 0).to(gl.float32)
    gl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask)
