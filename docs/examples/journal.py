"""Tables of JSON values in memory and in one file, in which each line is a transaction."""

import asyncio
import errno
import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from usersvc.application.errors import StorageUnavailable

T = TypeVar("T")

Key = int | str
Change = tuple[str, Key, Any]
"""A table, a key and its new value; None deletes the key."""

CALL_TIMEOUT = 4.0
"""The maximum time of any call, in seconds."""


class Journal:
    """The file and its tables.

    All work runs in one thread, so transactions are isolated and the event loop never waits for the disk. Only one
    process can open the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._lock: FileIO | None = None
        self._file: FileIO | None = None
        self._end = 0
        self.tables: defaultdict[str, dict[Key, Any]] = defaultdict(dict)
        """Read and changed only by functions that ``run`` executes."""

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the thread and return its result.

        Raises:
            StorageUnavailable: the disk fails, or takes too long; it is unknown whether the work was done.
        """
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            raise StorageUnavailable("the journal does not respond in time") from None
        except OSError as error:
            # Without the path, which does not belong into a log.
            raise StorageUnavailable(f"the journal fails: {error.strerror}") from error

    def open(self) -> None:
        """Read the file, create it if it is missing, and rewrite it without outdated lines.

        Raises:
            StorageUnavailable: another process uses it, or it is not a journal.
        """
        self._lock = _open(self._path.with_suffix(".lock"))
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
            self.rewrite()
        except BlockingIOError:
            self.close()
            raise StorageUnavailable("another process has the journal open") from None
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        *lines, _ = self._path.read_bytes().split(b"\n") if self._path.exists() else [b""]
        # The process crashed while it wrote a last line without a newline, so that transaction was never acknowledged.
        try:
            for line in lines:
                self._apply(json.loads(line))
        except ValueError:
            raise StorageUnavailable("the journal is damaged") from None

    def close(self) -> None:
        """Close the file; later writes fail."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = None

    def write(self, changes: Iterable[Change]) -> None:
        """Store all changes or none: on the disk first, then in the tables."""
        if self._file is None:
            raise StorageUnavailable("the journal is closed")
        changes = list(changes)
        line = _line(changes)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError:
            # Remove the incomplete line before the next one is appended.
            self._file.truncate(self._end)
            raise
        self._end += len(line)
        self._apply(changes)

    def rewrite(self) -> None:
        """Replace the file atomically by one with the current values only."""
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        file = _open(fresh)
        try:
            for table, rows in self.tables.items():
                for key, value in rows.items():
                    _write_all(file, _line([(table, key, value)]))
            os.fsync(file.fileno())
            fresh.replace(self._path)
            _sync(self._path.absolute().parent)
        except BaseException:
            file.close()
            raise
        if self._file is not None:
            self._file.close()
        self._file, self._end = file, file.tell()

    def _apply(self, changes: Iterable[Change]) -> None:
        for table, key, value in changes:
            if value is None:
                self.tables[table].pop(key, None)
            else:
                self.tables[table][key] = value


def _line(changes: list[Change]) -> bytes:
    return json.dumps(changes, separators=(",", ":")).encode() + b"\n"


def _open(path: Path) -> FileIO:
    """Open a file for appending, unbuffered, with access for its owner only."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "a")


def _write_all(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
