"""JSON files from users: whole, or record by record."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from siri.engine.errors import UserError

# The official file of 1.18 M products has 5 GB: read whole, text and records would take several times that.
_CHUNK = 1 << 22
# No record is as long: where one cannot be read, looking further would read the rest of the file into memory.
_LONGEST_RECORD = 1 << 26
# With or without a byte order mark.
_ENCODING = "utf-8-sig"
_BLANKS = re.compile(r"\s*")


def read_object(path: str | Path, field: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, naming `field`, where there is none."""
    path = Path(path).expanduser()
    try:
        with path.open(encoding=_ENCODING) as file:
            data = json.load(file)
    except OSError as error:
        raise _unreadable(path, field, error) from error
    except ValueError as error:
        raise _not_json(path, field, str(error)) from error
    if not isinstance(data, dict):
        raise UserError(f"{field}: '{path}' holds a {type(data).__name__}; it must hold an object")
    return data


def read_records(
    path: str | Path,
    field: str,
    chunk: int = _CHUNK,
    watch: Callable[[int], None] | None = None,
    *,
    longest: int = _LONGEST_RECORD,
) -> Iterator[Any]:
    """The elements of the JSON list in a file, one by one, each of at most about `longest` characters; `chunk`
    characters are read at a time.

    `watch` is called with the number of bytes read so far, after each chunk.
    Raises UserError, naming `field`, where there is no list or it breaks off.
    """
    path = Path(path).expanduser()
    try:
        with path.open(encoding=_ENCODING) as file:
            yield from _elements(file, chunk, watch or (lambda position: None), longest)
    except OSError as error:
        raise _unreadable(path, field, error) from error
    except ValueError as error:
        raise _not_json(path, field, str(error)) from error


class _Window:
    """The part of a file that has been read and not been used: `text` from `at` on."""

    def __init__(self, file: TextIO, chunk: int, watch: Callable[[int], None]) -> None:
        self._file = file
        self._chunk = chunk
        self._watch = watch
        self.text = ""
        self.at = 0

    def read(self) -> bool:
        """Reads one more chunk; says whether there was one."""
        more = self._file.read(self._chunk)
        self._watch(self._file.buffer.tell())
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def next(self) -> str:
        """The next character that is not blank, which `at` then points to."""
        while (at := _after_blanks(self.text, self.at)) == len(self.text):
            if not self.read():
                raise ValueError("the list breaks off")
        self.at = at
        return self.text[at]


def _elements(file: TextIO, chunk: int, watch: Callable[[int], None], longest: int) -> Iterator[Any]:
    decode = json.JSONDecoder().raw_decode
    window = _Window(file, chunk, watch)
    window.read()
    if window.next() != "[":
        raise ValueError(f"it begins with {window.text[window.at :][:20]!r} where a list begins with '['")
    window.at += 1
    while window.next() != "]":
        # By position: a copy of the rest of the chunk at each element took 218 us a record, this takes 6.
        try:
            element, end = decode(window.text, window.at)
            end = _after_blanks(window.text, end)
            if end == len(window.text):  # a number may go on, and what separates elements has not been read
                raise ValueError("the list breaks off")
        except ValueError:
            if len(window.text) - window.at > longest or not window.read():
                raise
            continue
        yield element
        if window.text[end] not in ",]":
            raise ValueError(f"{window.text[end : end + 20]!r} stands where elements are separated by ','")
        window.at = end + (window.text[end] == ",")


def _after_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    assert match, "it matches nothing too"
    return match.end()


def _unreadable(path: Path, field: str, error: OSError) -> UserError:
    return UserError(f"{field}: '{path}' cannot be read ({error.strerror}); give the path of the file")


def _not_json(path: Path, field: str, reason: str) -> UserError:
    return UserError(f"{field}: '{path}' is not the JSON it must be ({reason}); give the official file, unpacked")
