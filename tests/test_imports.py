"""Our folders live beside other packages of their names: Hugging Face's `kernels`, and whatever siri/ could shadow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SITE = Path(pytest.__file__).resolve().parent.parent

# The three ways of touching the name, each of which may come first in a process.
KERNELS = """
import kernels
from kernels import get_kernel
"""
TRANSFORMERS = """
import importlib.util
import transformers
from transformers.utils.import_utils import is_kernels_available
assert importlib.util.find_spec("kernels") is not None
assert is_kernels_available()
"""
OURS = """
import siri.kernels
assert siri.kernels.__name__ == "siri.kernels"
"""
FINALLY = """
import importlib.util, sys
import kernels
assert sys.modules["kernels"] is kernels
assert "site-packages" in kernels.__file__, kernels.__file__
assert importlib.util.find_spec("kernels").origin == kernels.__file__
import siri.kernels
assert siri.kernels.__file__ == sys.argv[1] + "/kernels/__init__.py", siri.kernels.__file__
"""


def run(*arguments: str, cwd: Path = REPO, **environment: str) -> str:
    """Run this Python with `cwd` as the first entry of sys.path (`-c` does that); its standard output."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "order", [KERNELS + TRANSFORMERS + OURS, TRANSFORMERS + OURS + KERNELS, OURS + KERNELS + TRANSFORMERS]
)
def test_from_the_checkout_root_the_name_kernels_means_hugging_faces(order: str) -> None:
    pytest.importorskip("kernels")
    run("-c", order + FINALLY, str(REPO))


def test_an_error_inside_their_package_is_reported_as_theirs(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("raise ImportError('theirs is broken')")
    script = f"""
import sys
sys.path.insert(1, {str(tmp_path)!r})
try:
    import kernels
except ImportError as error:
    print(error, "kernels" in sys.modules)
"""
    assert run("-c", script) == "theirs is broken False\n"


def test_without_their_package_transformers_does_not_take_ours_for_it(tmp_path: Path) -> None:
    """A site-packages folder of links to everything but theirs; `-S` keeps the real one out."""
    for entry in SITE.iterdir():
        if not entry.name.startswith("kernels"):
            (tmp_path / entry.name).symlink_to(entry)
    run(
        "-S",
        "-c",
        f"""
import site; site.addsitedir({str(tmp_path)!r})
import transformers
from transformers.utils.import_utils import is_kernels_available
assert not is_kernels_available()
import kernels
assert not hasattr(kernels, "__version__")
try:
    from kernels import get_kernel
except ImportError:
    pass
else:
    raise AssertionError("get_kernel came from nowhere")
import siri.kernels
""",
    )


@pytest.mark.parametrize("script", ["train"])
@pytest.mark.parametrize("from_root", [True, False])
def test_a_script_of_siri_does_not_shadow_other_modules(script: str, from_root: bool, tmp_path: Path) -> None:
    """The real file, run from a folder where every name it could need is a trap."""
    original = REPO / "siri" / f"{script}.py"
    if not original.exists():
        pytest.skip(f"siri/{script}.py is not there yet")
    folder = tmp_path / "siri"
    folder.mkdir()
    (folder / original.name).write_bytes(original.read_bytes())
    for name in ("torch", "yaml", "numpy", "transformers", "config", "pydantic"):
        (folder / f"{name}.py").write_text("raise RuntimeError(__file__ + ' was imported')")
    assert run(str(folder / original.name), "--help", cwd=REPO if from_root else tmp_path)


def test_from_the_checkout_root_the_kernels_are_found_without_an_installation() -> None:
    """`siri/` of the checkout comes before an installed siri there, and has no kernels of its own. -S: no finders."""
    code = "import siri.kernels; from siri.engine.native import group_states; print(group_states(['a']))"
    path = {**os.environ, "PYTHONPATH": str(SITE)}
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=REPO, env=path, capture_output=True, text=True)
    assert result.stdout.strip() == "[0]", result.stderr
