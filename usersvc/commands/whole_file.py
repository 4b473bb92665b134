"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from usersvc.commands.outcome import Failure


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, for its owner alone, that has its name from the moment on when this is left without an error.

    Raises:
        Failure: something has the name already, or the file cannot be written.
    """
    try:
        if path.exists():
            raise FileExistsError
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
        unfinished = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # Unlike a renaming, this takes nobody's place.
            os.link(unfinished, path)
            _sync_folder(path.absolute().parent)
        finally:
            unfinished.unlink(missing_ok=True)
    except FileExistsError:
        raise Failure(f"{path} exists already") from None
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
