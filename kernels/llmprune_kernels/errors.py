"""What goes wrong with tensors that a kernel is given."""

from __future__ import annotations


class KernelError(ValueError):
    """A tensor does not fit; one sentence says what was found and what is needed."""
