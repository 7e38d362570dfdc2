"""Random bytes for ids, read from the system in advance.

Each read releases the interpreter lock, which another thread may then take for milliseconds.
"""

import os
import threading
from uuid import UUID

_READ_BYTES = 4096

_lock = threading.Lock()
_unused = memoryview(b"")


def random_bytes(count: int) -> bytes:
    """Return bytes that no earlier call has returned, at most 4,096 of them."""
    global _unused  # noqa: PLW0603  # one source for the process
    with _lock:
        if len(_unused) < count:
            _unused = memoryview(os.urandom(_READ_BYTES))
        taken, _unused = _unused[:count], _unused[count:]
    return bytes(taken)


def random_uuid() -> str:
    """Return a UUID of version 4."""
    return str(UUID(bytes=random_bytes(16), version=4))
