import errno
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from siri.engine.errors import UserError
from siri.engine.files import strict_json, write_json_atomic, write_text_atomic


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
