"""What a run prints when it ends: how long it took, where it is saved and what to do next."""

import dataclasses
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

import moco_jax
from moco_jax.terminal.progress import duration
from moco_jax.training.remote import copies

_PACKAGE = pathlib.Path(moco_jax.__file__).absolute().parent
# Keys of `data` that say which images a run has; the commands after a run repeat them.
_PLACES = (
    *("source", "path", "train_split", "test_split", "held_out", "class_folders", "exclude"),
    *("image_column", "label_column"),
)


@dataclasses.dataclass
class Clock:
    """The time of one start of a run, in seconds.

    Attributes:
      begun: the time of the start.
      stepping: spent on steps, without compilation and evaluations.
      steps: done in this start.
      parts: seconds of the parts of the way to the first step, by name.
    """

    begun: float = dataclasses.field(default_factory=time.perf_counter)
    stepping: float = 0.0
    steps: int = 0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._last = self.begun
        if same_command():  # another program may have done anything before
            self.parts["imports and images"] = _process_seconds()

    def passed(self, part: str) -> None:
        """Counts the time since the last call as a part of the way to the first step."""
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    def way_to_first_step(self) -> str:
        """Returns 'first step after 4.7 s: imports and images 2.1, compiling 1.3, ...'."""
        parts = ", ".join(f"{name} {x:.1f}" for name, x in self.parts.items() if x >= 0.05)
        return f"first step after {sum(self.parts.values()):.1f} s: {parts}"

    def stepped(self, begun: float) -> None:
        """Adds a step that began at a time of `time.perf_counter`."""
        self.stepping += time.perf_counter() - begun
        self.steps += 1

    def summary(self) -> str:
        """Returns 'in 12:34 (4.6 steps/s while training)'."""
        total = duration(time.perf_counter() - self.begun)
        if not self.steps:
            return f"in {total}"
        return f"in {total} ({self.steps / max(self.stepping, 1e-9):.3g} steps/s while training)"


def _process_seconds() -> float:
    """Returns the age of this process; 0 where it is unknown."""
    try:
        started = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0


def shown(path: str | os.PathLike) -> str:
    """Returns a path as a user of this folder writes it: relative if it is inside the folder.

    A path in the copy of a run in a bucket is a URL.
    """
    if url := copies.url_of(path):
        return url
    absolute = pathlib.Path(path).absolute()
    here = pathlib.Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def command(module: str, *arguments: str) -> str:
    """Returns the line that starts a module of moco_jax, quoted for a shell."""
    return shlex.join(["python", "-m", module, *arguments])


def same_command() -> str:
    """Returns the command line of this process, quoted for a shell; "" if it is not moco_jax's."""
    program = pathlib.Path(sys.argv[0]).absolute()
    if program.name == "moco-jax":
        return shlex.join(["moco-jax", *sys.argv[1:]])
    if program.is_relative_to(_PACKAGE) and "-m" in sys.orig_argv:
        return shlex.join(sys.orig_argv)
    return ""


def continues(what: str) -> str:
    """Returns 'This command <what>' and the command, 'The same command <what>' if it is unknown."""
    line = same_command()
    return f"This command {what}:\n  {line}" if line else f"The same command {what}."


def skipped(images: int, reasons: str) -> list[str]:
    """Returns a line about the images that this process can't read, none without any."""
    if not images:
        return []
    why = f": {reasons}" if reasons else ""
    here = " on this machine" if jax.process_count() > 1 else ""
    return [f"{images} image{'s' * (images > 1)} skipped{here}{why}"]


def encoder_commands(config: ConfigDict, workdir: pathlib.Path, *, classes: bool) -> Iterator[str]:
    """Yields the lines that use the encoder of a pretraining run, ready to paste.

    Args:
      config: of the run.
      workdir: of the run.
      classes: whether there are labelled images for training and test.
    """
    place = shown(workdir)
    yield f"import moco_jax; encoder = moco_jax.load({json.dumps(place, ensure_ascii=False)})"
    if classes:
        yield command("moco_jax.knn", f"--encoder={place}")
        if arguments := linear_arguments(config, sys.argv[1:]):
            # Its default workdir may hold the evaluation of another run.
            own = f"--workdir={place}_linear"
            yield command("moco_jax.main", *arguments, f"--config.pretrained={place}", own)
    outputs = "" if copies.url_of(workdir) else place  # the commands write local files
    features = f"--out={os.path.join(outputs, 'features.npz')}"
    yield command("moco_jax.embed", f"--encoder={place}", features)
    # timm has no narrower or wider ResNets.
    to = "timm" if config.model.width == 1 else "moco_jax"
    file = "encoder_timm.safetensors" if to == "timm" else "encoder.safetensors"
    out = f"--out={os.path.join(outputs, file)}"
    yield command("moco_jax.convert", f"--source={place}", f"--to={to}", out)


def linear_arguments(config: ConfigDict, argv: Sequence[str]) -> list[str]:
    """Returns --config of the linear protocol on the images of a run, and the keys of its images.

    Args:
      config: of the run.
      argv: the arguments of this process; what they say about the images is repeated.

    Returns:
      [] if no experiment file fits.
    """
    given = {key: argument for argument in argv if (key := _place(argument))}
    if config.data.source == "images":
        if not (file := _experiment("folder")):
            return []
        own = [given[key] for key in given if key not in ("source", "path")]
        return [f"--config={file}:{config.data.path}", *own]
    words = config.name.split("_")
    names = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    file = next(filter(None, map(_experiment, names)), "")
    if not file or (pathlib.Path(file).stem.startswith("folder")):
        return []
    if config.data.path:
        given.setdefault("path", f"--config.data.path={config.data.path}")
    if repr(config.data.source).strip("'") not in pathlib.Path(file).read_text():
        given.setdefault("source", f"--config.data.source={config.data.source}")
    return [f"--config={file}", *given.values()]


def _place(argument: str) -> str:
    """Returns the key of an argument --config.data.KEY=VALUE that names images, "" for others."""
    name, equals, _ = argument.lstrip("-").partition("=")
    key = name.removeprefix("config.data.")
    return key if equals and name != key and key in _PLACES else ""


def _experiment(name: str) -> str:
    """Returns the file of the linear protocol of an experiment, "" if there is none."""
    file = f"configs/{name}_linear.py"
    if os.path.isfile(file):
        return file
    found = (folder / file for folder in (_PACKAGE.parent, _PACKAGE))
    return next((str(path) for path in found if path.is_file()), "")
