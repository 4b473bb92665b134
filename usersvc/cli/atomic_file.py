"""Files that are created completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from usersvc.cli.output import Failure


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A new file, readable by its owner only, that appears at ``path`` when the block ends without an error.

    It is written in a temporary folder beside ``path``, together with any journal of its writer.

    Raises:
        Failure: ``path`` exists, or the file cannot be written.
    """
    folder = path.absolute().parent
    try:
        if path.exists():
            raise FileExistsError
        with TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as own_folder:
            unfinished = Path(own_folder, path.name)
            unfinished.touch(0o600)
            yield unfinished
            _sync(unfinished)
            # Unlike a rename, this never replaces a file.
            os.link(unfinished, path)
            _sync(folder)
    except FileExistsError:
        raise Failure(f"{path} exists already") from None
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
