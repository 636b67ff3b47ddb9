"""What every test may use. `CI=true` makes property tests repeat the same cases in each run."""

import os
from pathlib import Path

import hypothesis
import pytest

REPO = Path(__file__).resolve().parent.parent

# Two busy cores make a single example arbitrarily slow: no deadline. On CI the examples are fixed, so that a failure
# belongs to the change that is tested; at a desk they are new every time.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")


def shared_path(*parts: str) -> Path:
    """A file of the data and oracle folder beside the checkout; skips the calling test where that is absent."""
    path = REPO.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)} beside the checkout")
    return path
