"""The documentation: links lead somewhere, and every command can be typed as it is written.

No command runs. Flags are read from the source of the commands, configs are built.
"""

import ast
import functools
import importlib.util
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterator

import pytest
from ml_collections import ConfigDict

from moco_jax import config as pretraining
from moco_jax.segmentation import config as segmentation
from moco_jax.supervised import config as supervised

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))]
RECORDS = [REPOSITORY / "CHANGELOG.md", *sorted(REPOSITORY.glob("benchmarks/**/*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_EXTRAS = re.compile(r"moco-jax\[([^\]]+)\]")
_PATH = re.compile(r"(moco_jax|configs|launch|tests|benchmarks|docs)/[\w./-]*")
_KEY = re.compile(r"(data|model|knn|bank|mesh|head)\.(?!py$)[a-z_]+")
_MESSAGES = re.compile(r"^\| message \|.*\n((?:\|.*\n)*)", re.MULTILINE)
_COMMANDS = ("python -m ", "bash launch/", "pip install ", "moco-jax ")
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_ABSL_FLAGS = {"help", "helpfull", "verbosity"}
_BASES = (
    pretraining.base(),
    supervised.linear(),
    supervised.finetune(),
    segmentation.base(),
)


def problems(text: str, page: pathlib.Path) -> list[str]:
    """Returns what is wrong with a page, one line a problem."""
    found = [*_links(text, page), *_extras(text), *_python(text), *_names(text), *_messages(text)]
    for command in _commands(text):
        found += [f"{shlex.join(command)}: {problem}" for problem in _command(command)]
    return found


def _blocks(text: str, language: str) -> list[str]:
    return [block for name, block in _FENCE.findall(text) if name == language]


def _inline_code(text: str) -> list[str]:
    return _CODE.findall(_FENCE.sub("", text))


def _links(text: str, page: pathlib.Path) -> Iterator[str]:
    for target in _LINK.findall(_CODE.sub("", _FENCE.sub("", text))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            yield f"link to {target}: there is no such file"
        elif anchor and anchor not in _anchors(file.read_text()):
            yield f"link to {target}: there is no such heading"


def _anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to headings."""
    titles = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _extras(text: str) -> Iterator[str]:
    for names in _EXTRAS.findall(text):
        for name in names.split(","):
            if name not in _known_extras():
                yield f"moco-jax[{names}]: setup.py has no extra {name!r}"


@functools.cache
def _known_extras() -> set[str]:
    for node in ast.walk(ast.parse((REPOSITORY / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == "extras_require":
            return set(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no extras_require")


def _python(text: str) -> Iterator[str]:
    for block in _blocks(text, "python"):
        try:
            ast.parse(block)
        except SyntaxError as error:
            yield f"Python block: {error}"


def _names(text: str) -> Iterator[str]:
    """Yields paths and config keys in the prose that do not exist."""
    for code in _inline_code(text):
        path = code.partition(":")[0]
        if _PATH.fullmatch(path) and not (REPOSITORY / path).exists():
            yield f"`{code}`: there is no such file or folder"
        if _KEY.fullmatch(code) and not any(_has(base, code) for base in _BASES):
            yield f"`{code}`: no base config has this key"


def _messages(text: str) -> Iterator[str]:
    """Yields messages in tables of messages that the package does not print."""
    for table in _MESSAGES.findall(text):
        for message in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE):
            parts = [part.strip() for part in message.split("...")]
            yield from (
                f"`{message}`: no message has {part!r}"
                for part in parts
                if not any(part in literal for literal in _literals())
            )


@functools.cache
def _literals() -> list[str]:
    """Returns the strings of the package, formatted values as {}."""
    found = []
    for file in (REPOSITORY / "moco_jax").rglob("*.py"):
        for node in ast.walk(_tree(file)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "") for part in node.values)
                found.append("".join(x if isinstance(x, str) else "{}" for x in parts))
    return found


def _commands(text: str) -> Iterator[list[str]]:
    """Yields the words of every command in bash blocks, and of those within the prose."""
    lines = [line for block in _blocks(text, "bash") for line in _joined(block).splitlines()]
    lines += [code for code in _inline_code(text) if code.startswith(_COMMANDS)]
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        if words:
            yield words


def _joined(block: str) -> str:
    return block.replace("\\\n", " ")


def _command(words: list[str]) -> Iterator[str]:
    if words[:2] == ["pip", "install"] or words[0] == "export":
        return
    if words[0] == "mpirun":
        words = words[words.index("python") :]
    if words[:2] == ["python", "-m"]:
        yield from _pytest(words[3:]) if words[2] == "pytest" else _module(words[2], words[3:])
    elif words[0] == "moco-jax":
        yield from _module("moco_jax.main", words[1:])
    elif words[0] in ("bash", "sbatch"):
        yield from _script(words)
    elif words[0] == "docker":
        yield from _docker(words)
    else:
        yield "this test does not know the command"


def _script(words: list[str]) -> Iterator[str]:
    """Yields the problems of `bash launch/x.sh` and of `sbatch ... launch/x.sbatch`."""
    folders = ("launch/", "benchmarks/")
    at = next((i for i, word in enumerate(words) if word.startswith(folders)), None)
    if at is None or not (REPOSITORY / words[at]).is_file():
        yield "there is no such script"
        return
    if words[at].startswith("benchmarks/"):  # it takes folders, and no options
        return
    arguments = words[at + 1 :]
    if words[at] == "launch/test.sh":
        yield from _pytest([word for word in arguments if word != "--dry-run"])
        return
    own, run = arguments, []
    first = next((i for i, word in enumerate(arguments) if word.startswith("--config")), None)
    if "--" in arguments:
        first = arguments.index("--")
    if first is not None:
        own, run = arguments[:first], [word for word in arguments[first:] if word != "--"]
    text = (REPOSITORY / words[at]).read_text()
    text += (REPOSITORY / "launch/commands.sh").read_text()
    for word in own:
        option = word.partition("=")[0]
        if not re.search(rf"{re.escape(option)}(?![\w-])", text):
            yield f"{words[at]} has no option {option}"
    yield from _module("moco_jax.main", run)


def _docker(words: list[str]) -> Iterator[str]:
    if "--file" in words and not (REPOSITORY / words[words.index("--file") + 1]).is_file():
        yield "there is no such Dockerfile"
    if words[1] == "run":
        yield from _module("moco_jax.main", words[words.index("moco_jax") + 1 :])


def _pytest(words: list[str]) -> Iterator[str]:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    declared = settings["tool"]["pytest"]["ini_options"]["markers"]
    marks = {line.partition(":")[0] for line in declared}
    for before, word in zip([""] + words, words, strict=False):
        if before == "-m":
            names = set(re.findall(r"\w+", word)) - {"not", "or", "and"}
            yield from (f"there is no mark {name!r}" for name in sorted(names - marks))
        elif not word.startswith("-") and not (REPOSITORY / word.partition("::")[0]).exists():
            yield f"there is no {word}"


def _module(name: str, words: list[str]) -> Iterator[str]:
    file = _module_file(name)
    if file is None:
        yield f"there is no module {name}"
        return
    known, experiment = _flags(file) | _ABSL_FLAGS, None
    for word in words:
        flag, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            if not name.startswith("benchmarks."):  # whose flags may take several words
                yield f"unexpected argument {word}; a flag has the form --name=value"
        elif flag == "config":
            experiment = _built(value)
            if isinstance(experiment, str):
                yield experiment
        elif flag.startswith("config."):
            if isinstance(experiment, ConfigDict) and not _has(experiment, flag[7:]):
                yield f"the config has no key {flag[7:]}"
        elif flag not in known and flag.removeprefix("no") not in known:
            yield f"{name} has no flag --{flag}"


def _module_file(name: str) -> pathlib.Path | None:
    """Returns the file that `python -m name` runs."""
    base = REPOSITORY.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__main__.py")
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def _flags(file: pathlib.Path) -> set[str]:
    """Returns the flags of a command, defined in its file or in what that imports."""
    names, seen, pending = set(), set(), [file]
    while pending:
        file = pending.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in ast.walk(_tree(file)):
            names |= _defined(node)
            pending += [file for file in map(_source, _imported(node)) if file]
    return names


@functools.cache
def _tree(file: pathlib.Path) -> ast.Module:
    return ast.parse(file.read_text())


def _defined(node: ast.AST) -> set[str]:
    """Returns the flag that absl's DEFINE_* or argparse's add_argument defines, if it is one."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
        return set()
    if not node.func.attr.startswith("DEFINE_") and node.func.attr != "add_argument":
        return set()
    return {ast.literal_eval(node.args[0]).removeprefix("--")}


def _imported(node: ast.AST) -> list[str]:
    """Returns the modules that an import or `runpy.run_module` names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "runpy.run_module":
        return [ast.literal_eval(node.args[0])]
    return []


def _source(name: str) -> pathlib.Path | None:
    if not name.startswith(("moco_jax", "benchmarks")):
        return None
    base = REPOSITORY.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


@functools.cache
def _built(value: str) -> ConfigDict | str:
    """Returns the config of `--config=file.py:argument`, or what is wrong with it."""
    name, _, argument = value.partition(":")
    file = REPOSITORY / name
    if not file.is_file():
        return f"there is no config file {name}"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.get_config(*([argument] if argument else []))
    except ValueError as error:
        return str(error)


def _has(config: ConfigDict, key: str) -> bool:
    holder = config
    for part in key.split("."):
        if not isinstance(holder, ConfigDict) or part not in holder:
            return False
        holder = holder[part]
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_commands_and_names_exist(page):
    assert problems(page.read_text(), page) == []


@pytest.mark.parametrize("page", RECORDS, ids=lambda page: page.name)
def test_links_of_records_exist(page):
    assert list(_links(page.read_text(), page)) == []


@pytest.mark.parametrize("folder", ["configs", "moco_jax", "benchmarks"])
def test_commands_in_docstrings_exist(folder):
    found = []
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        docstring = _joined(ast.get_docstring(_tree(file)) or "")
        lines = [line.strip().removeprefix("Command: ") for line in docstring.splitlines()]
        for line in (line for line in lines if line.startswith(_COMMANDS)):
            found += [f"{file.name}: {problem}" for problem in _command(shlex.split(line))]
    assert found == []


def test_readme_is_short_and_links_every_page():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    linked = {target.partition("#")[0] for target in _LINK.findall(text)}
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= linked


def test_version_is_the_packages():
    import moco_jax

    setup = (REPOSITORY / "setup.py").read_text()
    assert f'version="{moco_jax.__version__}"' in setup
    assert f"## [{moco_jax.__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"version: {moco_jax.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](docs/none.md)", "no such file"),
        ("![a](benchmarks/none.png)", "no such file"),
        ("[a](README.md#none)", "no such heading"),
        ("`pip install 'moco-jax[none]'`", "no extra 'none'"),
        ("```python\nx = (\n```", "Python block"),
        ("`moco_jax/none.py`", "no such file or folder"),
        ("`data.none`", "no base config has this key"),
        ("| message |\n|---|\n| `there is ... nonesuch` |\n", "no message has 'nonesuch'"),
        ("`python -m moco_jax.none`", "no module moco_jax.none"),
        ("`python -m moco_jax.knn --none=1`", "no flag --none"),
        ("`python -m moco_jax.data.benchmark --none=1`", "no flag --none"),
        ("`python -m moco_jax.knn --k 10`", "unexpected argument 10"),
        ("`moco-jax --config=configs/none.py`", "no config file configs/none.py"),
        ("`moco-jax --config=configs/imagenet.py:none`", "unknown"),
        ("`moco-jax --config=configs/digits.py --config.model.none=1`", "no key model.none"),
        ("`bash launch/none.sh`", "no such script"),
        ("`bash launch/gke.sh --none=1 -- --config=configs/digits.py`", "no option --none"),
        ("`bash launch/gke.sh --name=a -- --config=configs/none.py`", "no config file"),
        ("`bash launch/local.sh --config=configs/digits.py --none`", "no flag --none"),
        ("`bash launch/test.sh -m none`", "no mark 'none'"),
        ("`bash launch/test.sh tests/none.py`", "no tests/none.py"),
        ("```bash\nsbatch launch/slurm.sbatch --none\n```", "no option --none"),
        ("```bash\nmpirun -n 4 python -m moco_jax.none\n```", "no module moco_jax.none"),
        ("```bash\ndocker build --file launch/none .\n```", "no such Dockerfile"),
        ("```bash\ndocker run moco_jax --none=1\n```", "no flag --none"),
        ("```bash\ncurl none\n```", "does not know the command"),
        ("```bash\npython -m moco_jax.main \\\n  --none=1\n```", "no flag --none"),
    ],
)
def test_checks_find_what_is_broken(text, problem):
    found = problems(text, REPOSITORY / "README.md")
    assert len(found) == 1 and problem in found[0]
