import errno
import fcntl
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siri.engine.errors import UserError
from siri.engine.files import hold_folder, strict_json, write_json_atomic, write_text_atomic


def test_json_is_strict():
    value = {
        "nan": float("nan"),
        "inf": [-np.inf, (1, np.float32(0.5))],
        3: np.int64(7),
        "t": torch.tensor(2),
        "b": True,
    }
    text = strict_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None, [1, 0.5]],
        "3": 7,
        "t": 2,
        "b": True,
    }


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_json_loses_nothing_else(value):
    assert json.loads(strict_json(value)) == value


def test_json_of_half_a_surrogate_pair_can_be_written(tmp_path):
    """Texts of official products hold some, and so do the sample episodes of a run that met them."""
    value = {"seen \ud83d": ["\\\ude00 é ★", "\U0001f600"]}
    write_json_atomic(tmp_path / "samples.json", value)
    text = (tmp_path / "samples.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "é ★" in text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"a": 2, "text": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2, "text": "é"}
    for name in ("fsync", "replace"):
        for code, remedy in ((errno.ENOSPC, "free some space"), (errno.EACCES, "make that place writable")):

            def fail(*_, code=code):
                raise OSError(code, os.strerror(code))

            with monkeypatch.context() as patch:
                patch.setattr(os, name, fail)
                with pytest.raises(UserError, match=f"summary.json: cannot be written .*{remedy}"):
                    write_text_atomic(path, "half")
            assert json.loads(path.read_text(encoding="utf-8"))["a"] == 2
            assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent/x: cannot be written .No such file"):
        write_text_atomic(tmp_path / "absent" / "x", "")


def test_a_folder_has_one_holder(tmp_path):
    folder = tmp_path / "runs" / "a"
    with hold_folder(folder):
        (folder / "file").write_text("")
        with (
            pytest.raises(UserError, match=r"runs/a: another process is at work in this folder; wait"),
            hold_folder(folder),
        ):
            pytest.fail("held twice")
        with hold_folder(tmp_path / "runs" / "b"):
            pass
    with hold_folder(folder):
        pass
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "runs",
        "runs/a",
        "runs/a/file",
    ]


def test_a_holder_that_was_killed_holds_nothing(tmp_path):
    program = "import sys; from pathlib import Path; from siri.engine.files import hold_folder\n"
    program += "with hold_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process"), hold_folder(tmp_path):
            pass
        holder.kill()
    with hold_folder(tmp_path):
        pass


def test_a_folder_that_stays_empty_is_removed_and_one_that_was_there_is_not(tmp_path, monkeypatch):
    with pytest.raises(KeyError), hold_folder(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a").exists()
    with hold_folder(tmp_path):
        pass
    assert tmp_path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/a: cannot be written"), hold_folder(tmp_path / "file" / "a"):
        pytest.fail("a file holds no folder")


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EOPNOTSUPP, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_folder(tmp_path), hold_folder(tmp_path):
        pass
