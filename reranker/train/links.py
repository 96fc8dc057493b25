"""Connections of rank 0 with every other rank, for small messages that need no collective.

In: messages that JSON can tell, of the thread that watches. Out: those of the others, and whose connection has ended
without a goodbye. A forked process (a DataLoader's worker) holds none of them: one that outlives its rank would keep
the others from seeing the rank's end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import secrets
import socket
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge, wait
from typing import Any

from reranker.train.distributed import Ranks

_MOST_BYTES = 1 << 20
_GOODBYE = b""


class Links:
    """The connections of this rank: rank 0 has one with each other rank, the others with rank 0 only.

    One thread sends and receives; any may `wake` it.

    Attributes:
        heard: when each connected rank was last heard, by this machine's monotonic clock.
        ended: ranks whose connection has ended without a goodbye.
    """

    def __init__(self, ranks: Ranks, timeout: float) -> None:
        """Connect: a collective call. Raises OSError if rank 0 cannot be reached in `timeout` seconds."""
        self._woken, self._waker = multiprocessing.Pipe(duplex=False)
        self._connections = _connect(ranks, timeout) if ranks.world > 1 else {}
        self.heard = dict.fromkeys(self._connections, time.monotonic())
        self.ended: set[int] = set()
        os.register_at_fork(after_in_child=self._close_all)

    def send(self, message: Any) -> None:
        """Send to every connected rank."""
        self._send(json.dumps(message).encode())

    def receive(self, timeout: float) -> list[tuple[int, Any]]:
        """What has come, as (rank, message): at once if something has, else within `timeout` seconds or if woken."""
        ready = wait([self._woken, *self._connections.values()], max(0.0, timeout))
        if self._woken in ready:
            self._woken.recv_bytes()
        came: list[tuple[int, Any]] = []
        for rank in [rank for rank, connection in self._connections.items() if connection in ready]:
            connection = self._connections[rank]
            try:
                # All of it: behind a time in which this process stood still, what is old must not count as silence.
                while rank in self._connections and connection.poll():
                    message = connection.recv_bytes(_MOST_BYTES)
                    self.heard[rank] = time.monotonic()
                    if message == _GOODBYE:
                        self._drop(rank)
                    else:
                        came.append((rank, json.loads(message)))
            except (EOFError, OSError):
                self._drop(rank)
                self.ended.add(rank)
        return came

    def wake(self) -> None:
        """Let `receive` return."""
        with contextlib.suppress(OSError):  # closed: nobody waits any more
            self._waker.send_bytes(b"")

    def close(self, timeout: float) -> None:
        """Say goodbye, and wait `timeout` seconds at most until the others have heard it."""
        self._send(_GOODBYE)
        # They hang up when they have read it. Hanging up first, with messages unread, might undo what was sent (RST).
        end = time.monotonic() + timeout
        while self._connections and time.monotonic() < end:
            self.receive(end - time.monotonic())
        self._close_all()
        self._woken.close()
        self._waker.close()

    def _send(self, message: bytes) -> None:
        for connection in self._connections.values():
            # What is wrong with a connection is seen when it is read, behind what the other had to say.
            with contextlib.suppress(OSError):
                connection.send_bytes(message)

    def _drop(self, rank: int) -> None:
        self._connections.pop(rank).close()
        del self.heard[rank]

    def _close_all(self) -> None:
        for rank in list(self._connections):
            self._drop(rank)


def _connect(ranks: Ranks, timeout: float) -> dict[int, Connection]:
    """{other rank: connection}. Rank 0 is found under MASTER_ADDR, as it is by torch."""
    listener, port, key = None, 0, secrets.token_hex()
    if ranks.first:
        family = "AF_INET6" if socket.has_dualstack_ipv6() else "AF_INET"
        listener = Listener(("", 0), family, backlog=ranks.world, authkey=key.encode())
        port = listener.address[1]
    port, key = ranks.gather((port, key))[0]
    connections: dict[int, Connection] = {}
    if listener is None:
        connected = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout)
        connected.settimeout(None)
        connections[0] = Connection(connected.detach())
        answer_challenge(connections[0], key.encode())
        deliver_challenge(connections[0], key.encode())
        connections[0].send_bytes(json.dumps(ranks.rank).encode())
        return connections
    with listener:
        while len(connections) < ranks.world - 1:
            # Who does not know the key is no rank: something that searches for open ports.
            with contextlib.suppress(AuthenticationError, EOFError, OSError):
                connection = listener.accept()
                connections[json.loads(connection.recv_bytes(_MOST_BYTES))] = connection
    return connections
