"""The ledger: every text that was ever translated, so that none is translated, and paid, twice.

In: hashes of texts and what became of them, by backend (its identity holds the version and the languages). Out: the
same, after any kill: a batch is one SQLite transaction. Several processes of one machine share a ledger: a text is
claimed before it is sent, and the claim of a process that died is void. Liveness is a lock of the system on a file
beside the ledger and no process id, which containers count differently and which come again. SQLite's locks are not
safe on a network file system: processes of several machines have a ledger each, with a part of the texts, which they
hold alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from reranker.errors import UserError
from reranker.files import make_directory

TRANSLATED, REJECTED, FAILED, MISSING = "translated", "rejected", "failed", "missing"
_VERSION = 1
_AT_ONCE = 900  # SQLite before 3.32 takes 999 values at most
_TABLES = """
CREATE TABLE IF NOT EXISTS backends (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS entries (
    backend INTEGER NOT NULL, text BLOB NOT NULL, status TEXT NOT NULL, translation TEXT, reason TEXT,
    gates TEXT NOT NULL, characters INTEGER NOT NULL, UNIQUE (backend, text)
);
CREATE TABLE IF NOT EXISTS claims (
    backend INTEGER NOT NULL, text BLOB NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (backend, text)
) WITHOUT ROWID;
"""
_UPSERT = """
INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (backend, text) DO UPDATE SET
    status=excluded.status, translation=excluded.translation, reason=excluded.reason, gates=excluded.gates,
    characters=excluded.characters
WHERE excluded.translation IS NOT NULL OR entries.translation IS NULL
"""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry:
    """What became of one text.

    Attributes:
        text: its hash.
        status: translated, rejected (by a gate; the translation is kept), failed or missing.
        translation: the translation, or None.
        reason: why it is not used, or None.
        gates: digest of the gates that judged it.
        characters: characters of the source text.
    """

    text: bytes
    status: str
    translation: str | None
    reason: str | None
    gates: str
    characters: int


def hash_of(text: str) -> bytes:
    """16 bytes that stand for a text: two among a billion texts are alike with probability 1.5e-21."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


class Ledger:
    """One ledger file, opened for reading and writing, or `read_only`: for reading alone.

    `durable` makes each batch outlive a loss of power as well, at the price of waiting for the disk; a kill -9 loses
    nothing that was recorded either way. `alone`: no other process opens it meanwhile, so that no memory is shared
    through the file system. Used by one thread. Raises UserError for a file that is no ledger, and from every method
    for one that cannot be read or written.
    """

    def __init__(self, path: str | Path, durable: bool = False, read_only: bool = False, alone: bool = False) -> None:
        # Two names of one ledger, a link and its target, must find the same locks beside it.
        self.path = Path(path).resolve()
        self.owner = uuid.uuid4().hex
        self._lock = FileLock(self._lock_file(self.owner))
        self._identities: dict[str, int | None] = {}
        self._alone = alone
        if read_only:
            if not self.path.is_file():
                raise UserError("ledgers", f"{path}, no such file", "a ledger of another run", "check the path")
        else:
            make_directory(self.path.parent)
        try:
            uri = f"{self.path.as_uri()}?mode={'ro' if read_only else 'rwc'}"
            # Isolation level None: transactions begin where the code says so. A minute for another process's batch.
            self._database = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
            if alone:
                self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            if not read_only:
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                version = self._database.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    self._database.executescript(_TABLES)
                    self._database.execute(f"PRAGMA user_version={_VERSION}")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise UserError(path, f"a file that SQLite cannot open ({error})", "a ledger",
                            "name another one, on a disk of this machine") from None  # fmt: skip
        if version != _VERSION:
            raise UserError(path, f"a ledger of version {version}", f"version {_VERSION}", "name another one")
        if not read_only:
            self._lock.acquire()

    def entries(self, identity: str, texts: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries of those texts that a backend was asked for."""
        found: dict[bytes, Entry] = {}
        with self._errors_told():
            backend = self._backend(identity)
            if backend is None:
                return found
            for some in _chunks(texts):
                marks = ",".join("?" * len(some))
                rows = self._database.execute(
                    "SELECT text, status, translation, reason, gates, characters FROM entries "
                    f"WHERE backend=? AND text IN ({marks})",
                    (backend, *some),
                )
                found.update((row[0], Entry(*row)) for row in rows)
        return found

    def claim(self, identity: str, texts: Sequence[bytes], again: Sequence[str]) -> set[bytes]:
        """Those of `texts` that are this process's to send.

        Left out are those that another living process claims and those that have an entry, unless its status is one
        of `again`.
        """
        backend = self._register(identity)
        mine: set[bytes] = set()
        with self._transaction():
            self._void_claims_of_the_dead()
            for some in _chunks(texts):
                entries = self.entries(identity, some)
                free = [text for text in some if text not in entries or entries[text].status in again]
                self._database.executemany(
                    "INSERT OR IGNORE INTO claims VALUES (?, ?, ?)", [(backend, text, self.owner) for text in free]
                )
                marks = ",".join("?" * len(free))
                rows = self._database.execute(
                    f"SELECT text FROM claims WHERE backend=? AND owner=? AND text IN ({marks})",
                    (backend, self.owner, *free),
                )
                mine.update(text for (text,) in rows)
        return mine

    def record(self, identity: str, entries: Iterable[Entry]) -> None:
        """Write entries and give up their claims, in one transaction.

        What was translated, and paid, stays where another attempt at it has failed.
        """
        backend = self._register(identity)
        rows = [
            (backend, entry.text, entry.status, entry.translation, entry.reason, entry.gates, entry.characters)
            for entry in entries
        ]
        with self._transaction():
            self._database.executemany(_UPSERT, rows)
            self._database.executemany("DELETE FROM claims WHERE backend=? AND text=?", [row[:2] for row in rows])

    def close(self) -> None:
        """Give up this process's claims and close the file."""
        if self._lock.is_locked:
            with self._transaction():
                self._database.execute("DELETE FROM claims WHERE owner=?", (self.owner,))
            if self._alone:
                with self._errors_told():  # who reads it afterwards shares no memory with anyone either
                    self._database.execute("PRAGMA journal_mode=DELETE")
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
        self._database.close()

    def _void_claims_of_the_dead(self) -> None:
        owners = self._database.execute("SELECT DISTINCT owner FROM claims WHERE owner!=?", (self.owner,)).fetchall()
        for (owner,) in owners:
            lock = FileLock(self._lock_file(owner))
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            self._database.execute("DELETE FROM claims WHERE owner=?", (owner,))
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def _lock_file(self, owner: str) -> str:
        return str(self.path.with_name(f".{self.path.name}.{owner}.lock"))

    def _register(self, identity: str) -> int:
        with self._errors_told():
            if self._backend(identity) is None:
                self._database.execute("INSERT OR IGNORE INTO backends (identity) VALUES (?)", (identity,))
            backend = self._backend(identity)
        assert backend is not None
        return backend

    def _backend(self, identity: str) -> int | None:
        if self._identities.get(identity) is None:
            row = self._database.execute("SELECT id FROM backends WHERE identity=?", (identity,)).fetchone()
            self._identities[identity] = row[0] if row else None
        return self._identities[identity]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        # Immediate: two readers that both go on to write would else refuse each other.
        with self._errors_told():
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise UserError(self.path, f"a ledger that cannot be read or written ({error})",
                            "a whole one, on a disk of this machine that has room",
                            "make room or bring back a copy, and run the same command again") from None  # fmt: skip


class Seen:
    """The hashes that one run has met, in a temporary file of SQLite and not in memory."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("CREATE TABLE seen (text BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, texts: Sequence[bytes]) -> set[bytes]:
        """Those of `texts` that are new, which they are no more afterwards."""
        new = set(texts)
        for some in _chunks(texts):
            marks = ",".join("?" * len(some))
            new -= {text for (text,) in self._database.execute(f"SELECT text FROM seen WHERE text IN ({marks})", some)}
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO seen VALUES (?)", [(text,) for text in sorted(new)])
        self._database.execute("COMMIT")
        return new

    def remove(self, texts: Iterable[bytes]) -> None:
        """Forget `texts`."""
        self._database.execute("BEGIN")
        self._database.executemany("DELETE FROM seen WHERE text=?", [(text,) for text in texts])
        self._database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]
