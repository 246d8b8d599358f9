"""The experiments of the folder configs/, wherever the package is installed.

from moco_jax import configs
config = configs.digits.get_config()
"""

import importlib
import pathlib
from typing import Any

_INSTALLED = pathlib.Path(__file__).parent / "files"
# A checkout has the experiments beside the package, an installed package inside.
FOLDER = _INSTALLED if _INSTALLED.is_dir() else pathlib.Path(__file__).parents[2] / "configs"
__path__ = [str(FOLDER)]


def names() -> list[str]:
    """Returns the names of all experiments, such as 'digits'."""
    return sorted(file.stem for file in FOLDER.glob("*.py"))


def __getattr__(name: str) -> Any:
    # An experiment imports JAX: only those that are used are loaded.
    if name in names():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"there is no experiment {name!r}; allowed: {', '.join(names())}")


def __dir__() -> list[str]:
    return [*globals(), *names()]
