"""Files that are either whole or absent, whatever happens while they are written."""

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from siri.engine.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces `path` by UTF-8 `text` on disk: after a crash it holds the old text or the new one.

    One writer at a time. Raises UserError if the file cannot be written (full disk, no permission); the old one is then
    untouched.
    """
    scratch = path.with_name(f".{path.name}.writing")
    with user_error_on_write(path):
        try:
            with open(scratch, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_json_atomic(path: Path, value: Any) -> None:
    """`write_text_atomic` of strict, indented JSON."""
    write_text_atomic(path, strict_json(value, indent=2) + "\n")


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """JSON that every parser reads: numpy scalars become numbers, and numbers that are not finite become null.

    Halves of surrogate pairs, which UTF-8 cannot hold, are spelled as escapes.
    """
    text = json.dumps(_strict(value), indent=indent, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def sync_directory(path: Path) -> None:
    """Makes renames and new names in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_folder(path: Path) -> Iterator[None]:
    """Makes the folder if need be, and keeps it from other callers until the block, or the process, ends.

    A folder that was made here and is still empty then is removed, with its parents. Where the file system has no locks
    nobody is kept out. Raises UserError if it cannot be made, or somebody else holds it.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with user_error_on_write(path):
            path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # no locks on this file system
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"{path}: another process is at work in this folder; wait for its end, or stop it"
                    ) from None
            yield
        finally:
            os.close(descriptor)
    finally:
        for folder in made:
            with suppress(OSError):  # there is something in it, or it was never made
                folder.rmdir()


@contextmanager
def user_error_on_write(path: Path) -> Iterator[None]:
    """An OSError of the body becomes a UserError about writing `path`."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in DISK_FULL else "make that place writable"
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); {remedy}, then give the same command again"
        ) from error


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # a numpy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
