"""The C library's heap: what a process keeps beyond the memory that it has asked for.

glibc takes blocks of up to 32 MiB from one growing heap and gives back only the end of it; what is
free between blocks in use stays resident. How much depends on the order in which tensors come and go,
so it is not modelled but found out: blocks of the same sizes are asked for in the same order. Nothing
is written to them, so they take no memory.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["Heap"]

_ALIGNMENT_BYTES: Final = 64
"""Of torch's tensors on a CPU."""
_FIELDS: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
    "keepcost",
)  # fmt: skip
"""Of `struct mallinfo2` (mallinfo(3)); `fordblks` are the free bytes of the heap."""


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


class Heap:
    """Blocks of this process's heap, and how much of the heap lies free between them."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.posix_memalign.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
        ]  # fmt: skip
        self._library.free.argtypes = [ctypes.c_void_p]
        self._info = getattr(self._library, "mallinfo2", None)
        if self._info is not None:
            self._info.restype = _Mallinfo2
        self._free_at_start = self.free_bytes()

    def allocate(self, size_bytes: int) -> int | None:
        """Return the address of a new block, or None where the system grants none."""
        address = ctypes.c_void_p()
        self._library.posix_memalign(ctypes.byref(address), _ALIGNMENT_BYTES, max(1, size_bytes))
        return address.value

    def release(self, address: int) -> None:
        """Give a block back."""
        self._library.free(address)

    def free_bytes(self) -> int:
        """Return the free bytes between blocks; 0 where the C library does not tell."""
        return 0 if self._info is None else int(self._info().fordblks)

    def slack_bytes(self) -> int:
        """Return by how much the free bytes grew since the start."""
        return self.free_bytes() - self._free_at_start
