"""The notebooks run from top to bottom, at small size, and open on Colab as they stand."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

COLAB = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
SMALL = {
    "01_first_network": {"STEPS": 120},
    "02_convolutions": {"DATASET": "digits", "STEPS": 40, "INVERSION_STEPS": 10},
    "04_transformers": {"STEPS": 20, "DEPTH": 1, "WIDTH": 64, "LETTERS": 20},
}
# What a notebook says at the end of its training.
RESULT = {"04_transformers": "nats a letter"}


def small(notebook, constants):
    """The notebook with other values for its constants; each must be there."""
    for name, value in constants.items():
        found = 0
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source, n = re.subn(
                    rf"^{name} = .*$", f"{name} = {value!r}", cell.source, flags=re.MULTILINE
                )
                found += n
        assert found == 1, f"{name} is set {found} times"
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(COLAB.parent))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own, so that figures are drawn into it
    notebook = small(nbformat.read(path, as_version=4), SMALL[path.stem])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.get("text", "") for output in outputs)
    assert len(pictures) >= 4
    assert RESULT.get(path.stem, "test accuracy") in text
    assert not [output for output in outputs if output.get("name") == "stderr" and "Error" in output["text"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "clear the outputs"
    assert code[0].source.count("REPOSITORY = ") == 1
    assert "jdl-jax[experiments]" in code[0].source


def test_every_notebook_is_tested():
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == set(SMALL)
