"""Maps the top-level folders to their import names, and builds the C++ extension.

siri/ -> siri    kernels/ -> siri.kernels    engine/ -> siri.engine
csrc/ -> siri._native    configs/ -> siri.configs (data files)
"""

from glob import glob

from setuptools import find_packages, setup


def extensions() -> list:
    """`siri._native` from every C++ file of csrc/."""
    sources = sorted(glob("csrc/*.cpp"))
    if not sources:
        return []
    from pybind11.setup_helpers import Pybind11Extension

    return [Pybind11Extension("siri._native", sources, cxx_std=17)]


setup(
    packages=[*find_packages(".", include=["siri", "siri.*"]), "siri.kernels", "siri.engine", "siri.configs"],
    package_dir={"siri": "siri", "siri.kernels": "kernels", "siri.engine": "engine", "siri.configs": "configs"},
    package_data={"siri": ["**/*.yaml", "policies/**/*"], "siri.configs": ["*.yaml"]},
    ext_modules=extensions(),
)
