"""The heavy tensor operations, each written once in torch.

Letters used in shapes: R rows, C columns, T tokens, I input features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from llmprune import ranks

CHUNK = 1 << 22  # elements looked at in one go, so that scratch memory stays in the tens of megabytes
PANELS = 4  # the Gram matrix is symmetric: computed in panels, 5/8 of the products are enough
FEW = 8  # columns up to which comparing them all is faster than selecting
CACHED = 1 << 18  # elements that stay in a core's cache
DIGIT = 16  # bits that one histogram pass settles


def keep_largest(score: Tensor, drops: int) -> Tensor:
    """A mask that drops exactly the `drops` smallest entries of every row; of equals, the leftmost go first.

    Args:
        score: [R, C], any float dtype, without NaN.
        drops: entries to drop from every row, 0 to C.

    Returns:
        bool [R, C], True where an entry survives.
    """
    keep = torch.ones(score.shape, dtype=torch.bool, device=score.device)
    if drops == 0:
        return keep
    if score.shape[1] <= FEW:
        return _above_few(score, drops)
    if drops == score.shape[1]:
        return ~keep
    # On a CPU pieces that its cache holds; elsewhere larger ones, for fewer launches.
    rows = max(1, (CACHED if score.device.type == "cpu" else CHUNK) // score.shape[1])
    for part, kept in zip(score.split(rows), keep.split(rows), strict=True):
        part = _wide(part)
        kept.copy_(_from(part, _kth_of_rows(part, drops + 1), drops))
    return keep


def _kth_of_rows(rows: Tensor, k: int) -> Tensor:
    """The k-th smallest entry (from 1) of every row [R, 1]."""
    if rows.device.type != "cpu":
        return rows.kthvalue(k, dim=1, keepdim=True).values
    # NumPy partitions several numbers with one instruction, torch selects one by one.
    return torch.from_numpy(np.partition(rows.numpy(), k - 1, axis=1)[:, k - 1 : k])


def _above_few(score: Tensor, drops: int) -> Tensor:
    """The same for short rows: count for each entry how many of its row go before it, by comparing pairs."""
    columns = score.T.contiguous()  # all rows at once: a selection in each of them would take far longer
    count = len(columns)
    later = torch.arange(count - 1, -1, -1, dtype=torch.int8, device=score.device)
    before = later[:, None].repeat(1, columns.shape[1])  # as if of each pair the later one went first
    for first, second in itertools.combinations(range(count), 2):
        goes = (columns[first] <= columns[second]).view(torch.int8)
        before[first] -= goes
        before[second] += goes
    return (before >= drops).T.contiguous()


def keep_largest_of_all(score: Tensor, drops: int) -> Tensor:
    """Like `keep_largest`, with all entries of `score` [R, C] competing as if they were one row."""
    row = _wide(score).reshape(1, -1)
    if drops == row.numel():
        return torch.zeros_like(score, dtype=torch.bool)
    least = kth_smallest(lambda: [row], drops + 1)
    return _from(row, least.to(score.device), drops).reshape(score.shape)


def _from(rows: Tensor, least: Tensor, drops: int) -> Tensor:
    """True from the least that stays [R, 1] on, but for its leftmost equals until `drops` are gone."""
    keep = rows >= least
    surplus = keep.sum(1, keepdim=True, dtype=torch.int32) - (rows.shape[1] - drops)
    uneven = (surplus > 0).squeeze(1)
    if uneven.any():
        ties = (rows == least)[uneven]
        keep[uneven] &= ~(ties & (ties.cumsum(1, dtype=torch.int32) <= surplus[uneven]))
    return keep


def kth_smallest(pieces: Callable[[], Iterable[Tensor]], k: int) -> Tensor:
    """The k-th smallest (from 1) of all entries of all pieces, without sorting or holding them together.

    A radix selection: the bits of a float order like an integer's, so a histogram of the leading 16 bits
    tells which of them the answer has, and the next pass counts only the entries that share them.

    Args:
        pieces: gives the same tensors, of one dtype and without NaN, each time it is called (once per
            16 bits).
        k: rank, from 1 to the number of entries.
    """
    prefix, bits = 0, 0
    while True:
        histogram, integer = _histogram(pieces(), prefix, bits)
        ranked = histogram.cumsum(0)
        found = int((ranked < k).sum())
        k -= int(ranked[found] - histogram[found])
        prefix = prefix << DIGIT | found if bits else found - 0x8000
        bits += DIGIT
        if bits == torch.iinfo(integer).bits:
            return _from_sortable(prefix, integer)


def _histogram(pieces: Iterable[Tensor], prefix: int, bits: int) -> tuple[Tensor, torch.dtype]:
    """How often each next digit occurs among the keys whose leading `bits` are `prefix`; the keys' dtype."""
    histogram = torch.zeros(1 << DIGIT, dtype=torch.int64)
    for part in (part for piece in pieces for part in piece.flatten().split(CHUNK)):
        key = _sortable(part)
        shift = torch.iinfo(key.dtype).bits - bits - DIGIT
        if bits:
            key = key[key >> (shift + DIGIT) == prefix]
        # The leading digit carries the sign; flipping its top bit makes it count from zero.
        digit = ((key >> shift) & 0xFFFF) ^ (0 if bits else 0x8000)
        histogram += torch.bincount(digit, minlength=1 << DIGIT).cpu()
    return histogram, key.dtype


def _wide(x: Tensor) -> Tensor:
    """The same numbers in a dtype that every operation here supports, with one zero instead of two."""
    return (x if x.dtype == torch.float64 else x.float()) + 0.0


def _sortable(x: Tensor) -> Tensor:
    """Integers that order as the floats do (negative floats count downwards, so their bits are flipped)."""
    x = _wide(x)
    bits = x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)
    info = torch.iinfo(bits.dtype)
    return bits ^ (bits >> (info.bits - 1) & info.max)


def _from_sortable(key: int, integer: torch.dtype) -> Tensor:
    bits = key if key >= 0 else key ^ torch.iinfo(integer).max
    return torch.tensor(bits, dtype=integer).view(torch.float64 if integer == torch.int64 else torch.float32)


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add x^T x to the lower triangle of `total`, in place.

    Args:
        total: float32 [I, I]; only panels on and below the diagonal are written (see `mirrored`).
        x: activations [T, I], any float dtype; the products are float32.
    """
    x = x.float()
    start = 0
    for part in panels(total):
        stop = part.shape[1]
        part.addmm_(x[:, start:stop].T, x[:, :stop])
        start = stop


def panels(lower: Tensor) -> Iterator[Tensor]:
    """The panels [R, C] on and below the diagonal of a matrix, as views."""
    size = -(-lower.shape[0] // PANELS)
    for start in range(0, lower.shape[0], size):
        stop = min(start + size, lower.shape[0])
        yield lower[start:stop, :stop]


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix [I, I] whose lower triangle this is."""
    return lower.tril() + lower.tril(-1).T


def factored(matrix: Tensor, damping: float) -> tuple[Tensor, float]:
    """The lower Cholesky factor of a symmetric matrix [I, I] with a damped diagonal, and the damping used.

    Args:
        matrix: changed in place, since a copy in float64 is large.
        damping: share of the mean diagonal to add to the diagonal; ten times more each time the
            factorisation fails.
    """
    scale = float(matrix.diagonal().mean()) or 1.0  # of a matrix of zeros, any makes a factor
    added = 0.0
    while True:
        matrix.diagonal().add_(damping * scale - added)
        added = damping * scale
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return lower, damping
        damping = max(damping * 10, 1e-6)


def mean_cosine(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """Mean cosine over all tokens between two hidden states [..., D] of each, batch by batch."""
    return _mean(cosine.double() for cosine in _cosines(before, after))


def mean_angle(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """Mean angle over all tokens between two hidden states [..., D] of each, as a share of pi."""
    return _mean(cosine.double().acos() for cosine in _cosines(before, after)) / torch.pi


def _mean(batches: Iterable[Tensor]) -> float:
    """The mean of all entries, of all processes."""
    parts = ranks.gathered([(float(batch.sum()), batch.numel()) for batch in batches])
    return sum(total for total, _ in parts) / sum(count for _, count in parts)


def _cosines(before: Iterable[Tensor], after: Iterable[Tensor]) -> Iterable[Tensor]:
    for a, b in zip(before, after, strict=True):
        # Rounding can push the cosine of parallel vectors past 1, where its angle is NaN.
        yield torch.cosine_similarity(a.float(), b.float(), dim=-1).clamp(-1, 1)
