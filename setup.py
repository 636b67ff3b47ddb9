"""Maps the top-level folders to their import names, and builds the C++ extension.

siri/ -> siri    kernels/ -> siri.kernels    engine/ -> siri.engine
csrc/ -> siri._native    configs/ -> siri.configs (data files)
"""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

# Optional: without a compiler its Python twin runs (engine/native_twin.py). Without -march=native: one checkout may
# serve machines with other processors, and the work is bound by memory.
native = Pybind11Extension(
    "siri._native",
    sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.h")),
    cxx_std=17,
    extra_compile_args=["-O3", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(
    packages=[*find_packages(".", include=["siri", "siri.*"]), "siri.kernels", "siri.engine", "siri.configs"],
    package_dir={"siri": "siri", "siri.kernels": "kernels", "siri.engine": "engine", "siri.configs": "configs"},
    package_data={"siri": ["**/*.yaml", "policies/**/*"], "siri.configs": ["*.yaml"]},
    ext_modules=[native],
)
