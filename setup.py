"""Packaging of moco_jax."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="moco-jax",
    version="0.1.0",
    description="Momentum Contrast (MoCo) for unsupervised visual representation learning in JAX",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["moco_jax", "moco_jax.*"]),
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "ml_collections>=1.0",
        "clu>=0.0.12",
        "grain>=0.2.10",
        "tensorflow-datasets>=4.9.9",
        "numpy>=2.0",
        "pillow>=11",
        "simplejpeg>=1.8",  # libjpeg-turbo with nothing to build: CIFAR decodes 3x faster
        "safetensors>=0.4.5",  # encoders in files, read without executing anything
        "scikit-learn>=1.5",  # the embedded digits
        "tensorboardX>=2.6.2",  # TensorBoard files without TensorFlow
    ],
    extras_require={
        "cuda13": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        # The compiler for TPUs, to plan a pod without one; jax[tpu] pins the libtpu of its jax.
        "plan": ["jax[tpu]>=0.10"],
        # To prepare most TFDS data sets; reading and training need none of it.
        "tf": ["tensorflow-cpu", "tensorboard", "importlib_resources"],
        "plot": ["matplotlib", "pyarrow>=15"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff",
            "pyright",
            "chex>=0.1.90",
            "scipy",
            "matplotlib",
            "pyarrow>=15",
        ],
        # Files of torch in and out; safetensors need none of it.
        "convert": ["torch>=2.6"],
        # The libraries that converted weights are compared with.
        "convert-test": ["torch>=2.6", "torchvision", "timm>=1.0", "transformers>=4.48"],
        "parquet": ["pyarrow>=15"],  # features in this format
    },
)
