"""Packaging of moco_jax."""

import pathlib
import sys

from setuptools import find_packages, setup

# The experiments are part of the installed package: `from moco_jax import configs`. The folder is
# absent where only the dependencies are installed, as for a layer of launch/Dockerfile. An editable
# install finds it in the clone, and then consists of a path: without, Python would prefer a clone
# named moco_jax in the current folder to the package in it.
INSTALLED = pathlib.Path("configs").is_dir() and "editable_wheel" not in sys.argv
EXPERIMENTS = {"moco_jax.configs.files": "configs"} if INSTALLED else {}

setup(
    name="moco-jax",
    version="0.2.0",
    description="Momentum Contrast (MoCo) for unsupervised visual representation learning in JAX",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["moco_jax", "moco_jax.*"]), *EXPERIMENTS],
    package_dir={"": "."} | EXPERIMENTS,
    # Type checkers read the annotations; the check has results, the report has a template.
    package_data={
        "moco_jax": ["py.typed"],
        "moco_jax.check": ["references.json"],
        "moco_jax.pages": ["assets/*"],
    },
    entry_points={"console_scripts": ["moco-jax = moco_jax.__main__:run"]},
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
        "simplejpeg>=1.8",  # libjpeg-turbo as a wheel; faster than Pillow on small JPEGs
        "safetensors>=0.4.5",  # reads encoder files without executing code
        "scikit-learn>=1.5",  # contains the handwritten digits of configs/digits.py
        "tqdm>=4.66",  # progress bars
        "tensorboardX>=2.6.2",  # writes TensorBoard files without TensorFlow
        "bokeh>=3.7",  # plots of the report; contains its JavaScript, and needs Jinja2
    ],
    extras_require={
        # JAX for the accelerator of this machine; launch/setup.sh installs the right one.
        "cuda13": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        # The TPU compiler, for `moco_jax.plan` on a machine without a TPU. jax[tpu] pins the
        # version of libtpu that belongs to this JAX.
        "plan": ["jax[tpu]>=0.10"],
        # TensorFlow, for `moco_jax.data.prepare` to download and build TFDS data sets. Reading
        # them and training do not need it.
        "tf": ["tensorflow-cpu", "tensorboard", "importlib_resources"],
        # Plots of `moco_jax.ablate` and the figures in benchmarks/.
        "plot": ["matplotlib"],
        # Images in Parquet and Arrow files, and features of `moco_jax.embed` as .parquet files.
        "parquet": ["pyarrow>=18"],
        # Images in buckets: s3:// and gs://. One wheel in Rust, without dependencies.
        "bucket": ["obstore>=0.8"],
        # Loggers besides files and TensorBoard. mlflow-skinny is MLflow without its web pages.
        "wandb": ["wandb>=0.19"],
        "mlflow": ["mlflow-skinny>=3"],
        # HEIC images, as phones write them.
        "heic": ["pillow-heif>=0.22"],
        # PyTorch, for `moco_jax.convert` to read and write .pth files. It reads and writes
        # .safetensors files without it.
        "convert": ["torch>=2.6"],
        # The libraries that tests/convert and tests/weights compare converted weights with.
        "convert-test": ["torch>=2.6", "torchvision", "timm>=1.0", "transformers>=4.48"],
        # What launch/test.sh runs.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",  # draws names and layouts of data sets
            "ruff",
            "pyright",
            "chex>=0.1.90",
            "filelock>=3.13",  # JAX locks the compilation cache that test processes share
            "scipy",
            "matplotlib",
            "pyarrow>=18",
            "obstore>=0.8",
            "nbclient>=0.10",  # executes docs/quickstart.ipynb
            "ipykernel>=6.29",
            "setuptools>=64",  # builds a wheel without a network
            "wheel",
        ],
    },
)
