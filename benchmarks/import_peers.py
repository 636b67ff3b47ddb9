"""Parts of packages, without what the rest of these packages needs.

The functions that are compared need torch and triton. Their packages import Ray, pandas, datasets and more before they
can be reached, so `pip install --no-deps trl verl` is all that is asked for.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType


def skip_init(*packages: str) -> None:
    """Makes their modules importable without their own __init__.py, outer packages first. Raises ImportError."""
    for name in packages:
        if name not in sys.modules:
            spec = find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            sys.modules[name] = module_from_spec(spec)


class StandIn(ModuleType):
    """Has every name that is imported from it, as an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def stand_ins(*packages: str) -> Iterator[None]:
    """Meanwhile those of the packages that are not installed can be imported. Nothing of them works."""
    absent = [name for name in packages if name not in sys.modules and find_spec(name) is None]
    for name in absent:
        sys.modules[name] = StandIn(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)  # others look it up, to see whether it is there
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
