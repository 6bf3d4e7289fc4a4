"""A hash over a file whose bytes come from several threads: they go in by ticket, in the file's order."""

from __future__ import annotations

import threading

from blake3 import blake3


class Turnstile:
    """The blake3 of a file; pieces are numbered when they are handed out, and hashed when their number comes up.

    Only the thread whose number is up touches the hash, and it takes no lock unless another one waits. A waiting thread
    announces itself before it looks at the number, and the number is raised before anybody is looked for, so one of the
    two always sees the other.
    """

    def __init__(self, header: bytes | memoryview) -> None:
        self._hasher = blake3(header)
        self._issued = self._served = self._num_waiting = 0
        self._changed = threading.Condition()
        self._is_closed = False

    def ticket(self) -> int:
        """Issue the next number; called in the file's order, by one thread at a time."""
        self._issued += 1
        return self._issued - 1

    def update(self, ticket: int, piece: memoryview) -> None:
        """Hash a piece as soon as all before it are."""
        if self._served != ticket and not self._wait_for(ticket):
            return
        self._hasher.update(piece)
        self._served = ticket + 1
        if self._num_waiting:
            with self._changed:
                self._changed.notify_all()

    def _wait_for(self, ticket: int) -> bool:
        """Wait for a number to come up; False where it never will."""
        with self._changed:
            self._num_waiting += 1
            while self._served != ticket and not self._is_closed:
                self._changed.wait()
            self._num_waiting -= 1
            return self._served == ticket

    def close(self) -> None:
        """Let every waiting thread go; unless all pieces are in, the hash is void."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def hexdigest(self) -> str:
        """Return the hash of the pieces so far."""
        return self._hasher.hexdigest()
