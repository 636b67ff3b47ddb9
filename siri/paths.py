"""Where the shipped configurations lie: in a checkout, an editable installation or a wheel."""

from pathlib import Path

from siri.engine.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Inside the package in a wheel, at the top of a checkout."""


def find_config(name: str) -> Path:
    """The configuration file that `name` means: a path, or a shipped file as `configs/household.yaml` or `household`.

    A shipped file is found from any working directory. Raises UserError, with the shipped names, where there is none.
    """
    given = Path(name)
    if given.is_file():
        return given
    shipped = CONFIGS / given.with_suffix(".yaml").name
    if given.parent in (Path(), Path("configs")) and shipped.is_file():
        return shipped
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml"))) or "(none)"
    raise UserError(f"--config {name}: no such file; give the path of one, or the name of a shipped one: {known}")
