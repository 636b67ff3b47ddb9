"""JSON files from users: whole, or record by record."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from siri.engine.errors import UserError

# The official file of 1.18 M products has 5 GB: read whole, text and records would take several times that.
_CHUNK = 1 << 22


def read_object(path: str | Path, field: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, naming `field`, where there is none."""
    path = Path(path).expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise _unreadable(path, field, error) from error
    except ValueError as error:
        raise _not_json(path, field, str(error)) from error
    if not isinstance(data, dict):
        raise UserError(f"{field}: '{path}' holds a {type(data).__name__}; it must hold an object")
    return data


def read_records(
    path: str | Path, field: str, chunk: int = _CHUNK, watch: Callable[[int], None] | None = None
) -> Iterator[Any]:
    """The elements of the JSON list in a file, one by one; `chunk` characters are read at a time.

    `watch` is called with the number of bytes read so far, after each chunk.
    Raises UserError, naming `field`, where there is no list or it breaks off.
    """
    path = Path(path).expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            yield from _elements(file, chunk, watch or (lambda position: None))
    except OSError as error:
        raise _unreadable(path, field, error) from error
    except ValueError as error:
        raise _not_json(path, field, str(error)) from error


def _elements(file: TextIO, chunk: int, watch: Callable[[int], None]) -> Iterator[Any]:
    decode = json.JSONDecoder().raw_decode
    text = _filled(file.read(chunk).removeprefix("\ufeff"), file, chunk)
    watch(file.buffer.tell())
    if text[0] != "[":
        raise ValueError(f"it begins with {text[:20]!r} where a list begins with '['")
    text = _filled(text[1:], file, chunk)
    while text[0] != "]":
        try:
            element, end = decode(text)
            rest = text[end:].lstrip()
            if not rest:  # a number may go on, and what separates elements has not been read
                raise ValueError("the list breaks off")
        except ValueError:
            more = file.read(chunk)
            if not more:
                raise
            watch(file.buffer.tell())
            text += more
            continue
        yield element
        if rest[0] not in ",]":
            raise ValueError(f"{rest[:20]!r} stands where elements are separated by ','")
        text = _filled(rest[1:], file, chunk) if rest[0] == "," else rest


def _filled(text: str, file: TextIO, chunk: int) -> str:
    """The text without leading blanks; more is read if that is all there is."""
    while not (text := text.lstrip()):
        text = file.read(chunk)
        if not text:
            raise ValueError("the list breaks off")
    return text


def _unreadable(path: Path, field: str, error: OSError) -> UserError:
    return UserError(f"{field}: '{path}' cannot be read ({error.strerror}); give the path of the file")


def _not_json(path: Path, field: str, reason: str) -> UserError:
    return UserError(f"{field}: '{path}' is not the JSON it must be ({reason}); give the official file, unpacked")
