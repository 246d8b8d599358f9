"""Notebooks: docs/quickstart.ipynb runs, and a run can be interrupted and continued."""

import ast
import os
import re

import nbformat
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # of Jupyter's libraries

RUN = """
import os, pathlib, signal, threading, time
import moco_jax
from tests.tiny import tiny_config

before = signal.getsignal(signal.SIGINT)
config = tiny_config(steps=100_000, knn__every_epochs=0.0, checkpoint_every=100_000)

def interrupt():  # as Jupyter does
    while not pathlib.Path("run/metrics.jsonl").exists():
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
moco_jax.pretrain(config, "run")
"""
CONTINUE = """
step = int(max(os.listdir("run/checkpoints"), key=int))
config.steps = step + 3
moco_jax.pretrain(config, "run")
assert signal.getsignal(signal.SIGINT) is before
assert threading.active_count() < 50
print("continued from", step)
"""


@pytest.fixture
def execute(repository, tmp_path, monkeypatch):
    """Executes the cells of a notebook in a new kernel, in an empty folder."""
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel shows figures in cells
    monkeypatch.setenv("XLA_FLAGS", "")

    def run(notebook, **options):
        resources = {"metadata": {"path": str(tmp_path)}}
        client = NotebookClient(notebook, timeout=3000, resources=resources, **options)
        client.execute(env=dict(os.environ))
        return notebook

    return run


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_quickstart_is_stored_clean(repository):
    file = repository / "docs" / "quickstart.ipynb"
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert file.stat().st_size < 20_000 and not re.search(r"/(home|work|root)/", file.read_text())
    for cell in cells:
        ast.parse(cell.source.replace("%pip", "pass #"))


@pytest.mark.slow
def test_the_quickstart_runs(repository, execute):
    file = repository / "docs" / "quickstart.ipynb"
    cells = execute(nbformat.read(file, as_version=4)).cells
    text = "\n".join(printed(cell) for cell in cells if cell.cell_type == "code")
    images = [
        output
        for cell in cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 2
    (accuracy,) = re.findall(r"top-1 ([\d.]+) %", text)
    assert float(accuracy) > 32  # 23 with a random encoder


@pytest.mark.slow
def test_an_interrupted_run_raises_and_continues(execute):
    from nbformat.v4 import new_code_cell, new_notebook

    notebook = new_notebook(cells=[new_code_cell(RUN), new_code_cell(CONTINUE)])
    first, second = execute(notebook, allow_errors=True).cells
    (error,) = [x for x in first.outputs if x.output_type == "error"]
    assert error.ename == "Interrupted" and "saved in" in error.evalue
    assert not [x for x in second.outputs if x.output_type == "error"], second.outputs
    assert "continued from" in printed(second) and "resumed at step" in printed(second)
