"""SIRI: skills an agent finds in its own successes, validated by paired rollouts and internalised."""

from pathlib import Path

_root = Path(__file__).resolve().parent.parent
if not Path(__file__).with_name("kernels").is_dir() and (_root / "kernels").is_dir():
    # In a checkout the other packages lie beside this one. An editable installation knows that; Python in the root of a
    # checkout, where this folder comes before an installed siri, does not.
    __path__.append(str(_root))
