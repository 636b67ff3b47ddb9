from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def shared_path(*parts: str) -> Path:
    """A file of the data and oracle folder beside the checkout; skips the calling test with the reason where it is absent."""
    path = REPO.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)} beside the checkout")
    return path
