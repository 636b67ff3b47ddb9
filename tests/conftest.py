"""What every test may use. `CI=true` makes property tests repeat the same cases in each run."""

import os
import shutil
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

# Read when torch is first imported. OpenMP threads that spin while they wait cost ten times the time on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPO = Path(__file__).resolve().parent.parent

# Two busy cores make a single example arbitrarily slow: no deadline. On CI the examples are fixed, so that a failure
# belongs to the change that is tested; at a desk they are new every time.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
# Triton's interpreter takes seconds for an example.
hypothesis.settings.register_profile("interpreter", deadline=None, derandomize=True, max_examples=4)
if os.environ.get("TRITON_INTERPRET") == "1":
    hypothesis.settings.load_profile("interpreter")
else:
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")


def shared_path(*parts: str) -> Path:
    """A file of the data and oracle folder beside the checkout; skips the calling test where that is absent."""
    path = REPO.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)} beside the checkout")
    return path


@pytest.fixture(scope="session")
def sound_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from refusals import make_sound_place  # trains for a second: only for those who ask

    folder = tmp_path_factory.mktemp("sound")
    make_sound_place(folder)
    return folder


@pytest.fixture
def place(sound_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sound place, which is the working directory."""
    folder = tmp_path / "place"
    shutil.copytree(sound_place, folder, symlinks=True)
    monkeypatch.chdir(folder)
    for name in ("ALFWORLD_DATA", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """siri.engine.native with the C++ extension behind it."""
    from siri.engine import native

    chosen = pytest.importorskip("siri._native", reason="the C++ extension is not built")
    monkeypatch.setattr(native, "implementation", chosen)
    return chosen


@pytest.fixture(params=["extension", "twin"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """siri.engine.native with the one behind it, then with the other."""
    if request.param == "extension":
        return request.getfixturevalue("extension")
    from siri.engine import native, native_twin

    monkeypatch.setattr(native, "implementation", native_twin)
    return native_twin
