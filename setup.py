"""Maps the top-level folders to their import names (`kernels/` is imported as `siri.kernels`, `engine/` as `siri.engine`)."""

from setuptools import find_packages, setup

setup(
    packages=[
        *["siri" if name == "" else name for name in find_packages(".", include=["siri", "siri.*"])],
        "siri.kernels",
        "siri.engine",
    ],
    package_dir={"siri": "siri", "siri.kernels": "kernels", "siri.engine": "engine"},
)
