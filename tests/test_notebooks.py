"""The notebooks run from top to bottom at small size, show what they compute, and open on Colab as is."""

import base64
import importlib.metadata
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(notebooks)
NOTEBOOKS = notebooks.notebooks()
SMALL = {
    "01_first_network": {"STEPS": 2},
    "02_convolutions": {"DATASET": "digits", "STEPS": 2, "INVERSION_STEPS": 2},
    "03_recurrence": {
        "CELLS": ("rnn",),
        "ADDING_STEPS": 2,
        "SPEAKER_STEPS": 2,
        "DATE_STEPS": 2,
        "LETTER_STEPS": 2,
        "CELL": "rnn",
        "LAYERS": 1,
        "WIDTH": 32,
    },
    "04_transformers": {"STEPS": 2, "FILL_STEPS": 2, "CONTEXT": 48, "DEPTH": 1, "WIDTH": 32, "LETTERS": 20},
    "05_autoencoders_and_gans": {
        "DATASET": "digits",
        "AUTOENCODER_STEPS": 2,
        "VAE_STEPS": 2,
        "JUDGE_STEPS": 2,
        "GAN_STEPS": 2,
        "GAME_STEPS": 2,
        "WIDTHS": (30, 10),
        "CODE": 2,
        "GAMES": ("minimax",),
    },
    "06_scaling": {
        "STEPS": 2,
        "DEPTH": 1,
        "WIDTH": 32,
        "MESHES": ("data:1", "data:2,fsdp:2,tensor:2"),
        "TOPOLOGY": "v5e:2x4" if importlib.util.find_spec("libtpu") else "",
    },
}
# What each notebook says of what it trained, and what that comes to at full size.
RESULTS = {
    "01_first_network": (r"test accuracy: .*, ([\d.]+)% after", 97, 100),
    "02_convolutions": (r"test accuracy: ([\d.]+)% after", 87, 95),
    "03_recurrence": (r"([\d.]+)% of the dates are right from end to end", 90, 100),
    "04_transformers": (r"validation loss: ([\d.]+) nats a letter", 1.5, 2.0),
    "05_autoencoders_and_gans": (r"minus the bound on the test images: ([\d.]+) nats", 95, 115),
    "06_scaling": (r"data:2,fsdp:2,tensor:2: loss ([\d.]+)", 2.0, 4.0),
}
LARGEST = 3 * 2**20
"""Bytes of a notebook with its pictures."""


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def text(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def pictures(notebook):
    return [output for output in outputs(notebook) if "image/png" in output.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    # What is computed here is little, and compiled in order to be computed once.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    notebook = notebooks.with_constants(notebooks.read(path), SMALL[path.stem])
    for cell in code(notebook):
        cell.outputs = []
    notebooks.execute(notebook, tmp_path, timeout=300)
    assert len(pictures(notebook)) >= 3
    assert re.search(RESULTS[path.stem][0], text(notebook))
    assert not [output for output in outputs(notebook) if "Error" in output.get("text", "")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_outputs_are_of_the_code_beside_them(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert outputs(notebook), f"python docs/notebooks.py {path.stem}"
    assert notebooks.is_current(notebook), f"python docs/notebooks.py {path.stem}"
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert notebook.metadata["jdl"]["cpu_seconds"] < 2 * 600
    kinds = {output.output_type for output in outputs(notebook)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert len(pictures(notebook)) >= 3
    pattern, least, most = RESULTS[path.stem]
    assert least <= float(re.search(pattern, text(notebook)).group(1)) <= most
    assert path.stat().st_size < LARGEST
    assert not re.search(r"/(home|tmp|work|root)/", text(notebook)), (
        "the name of a folder of somebody's machine"
    )


def test_every_notebook_is_tested():
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == set(SMALL) == set(RESULTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shared_cells_are_the_same_everywhere(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    assert [(cell.id, cell.source) for cell in notebook.cells if cell.id in notebooks.SHARED] == [
        *notebooks.SHARED.items()
    ]
    assert code(notebook)[0].id == "install"
    assert "REPOSITORY" not in "".join(cell.source for cell in notebook.cells[2:])
    assert notebook.metadata["accelerator"] == "TPU"


def test_new_tables_make_the_outputs_of_a_notebook_that_draws_them_stale(monkeypatch, tmp_path):
    scaling, other = (notebooks.read(path) for path in (NOTEBOOKS[-1], NOTEBOOKS[0]))
    before = notebooks.fingerprint(scaling), notebooks.fingerprint(other)
    monkeypatch.setattr(notebooks, "RESULTS", tmp_path)
    assert notebooks.fingerprint(scaling) != before[0]
    assert notebooks.fingerprint(other) == before[1]


def test_large_pictures_and_films_are_made_smaller():
    rng = np.random.default_rng(0)

    def kept(image, kind, **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        told = base64.b64encode(buffer.getvalue()).decode()
        made = notebooks.smaller(told)
        assert len(made) <= len(told)
        return Image.open(io.BytesIO(base64.b64decode(made)))

    def noise(side):
        return Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))

    assert len(kept(noise(40), "PNG").convert("RGB").getcolors(2**16)) > 32
    assert len(kept(noise(400), "PNG").convert("RGB").getcolors(2**16)) <= 32
    film = [noise(40) for _ in range(5)]
    made = kept(film[0], "GIF", save_all=True, append_images=film[1:], duration=80)
    assert (made.n_frames, made.info["duration"]) == (3, 160)


def test_changed_code_makes_outputs_stale_and_changed_words_do_not():
    notebook = notebooks.read(NOTEBOOKS[0])
    notebook.metadata["jdl"] = {"code": notebooks.fingerprint(notebook)}
    title, install, *rest = notebook.cells
    other = next(cell for cell in rest if cell.cell_type == "code" and cell.id != "devices")
    title.source += " again"
    install.source += "\n1 + 1"
    other.source += "\n\n# That was that."
    assert notebooks.is_current(notebook)
    other.source += "\n1 + 1"
    assert not notebooks.is_current(notebook)


def test_what_is_kept_of_a_run(tmp_path):
    output = nbformat.v4.new_output
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8) // 64 * 64
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    drawn = base64.b64encode(buffer.getvalue()).decode()
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("print(1)", id="one")]
    cells[1].outputs = [
        output("stream", name="stdout", text="1"),
        output("stream", name="stdout", text="2\n"),
        output("stream", name="stderr", text="a warning"),
        output("display_data", data={"image/png": drawn}),
        output("stream", name="stdout", text="3"),
    ]
    cells[1].metadata["execution"] = {"iopub.status.busy": "just now"}
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebooks.keep(tmp_path / "kept.ipynb", notebook, 12.6)
    kept = notebooks.read(tmp_path / "kept.ipynb")
    assert notebooks.is_current(kept)
    assert kept.metadata["jdl"]["cpu_seconds"] == 13
    assert [one.get("text") for one in outputs(kept)] == ["12\n", None, "3"]
    assert kept.cells[1].metadata == {}
    (picture,) = pictures(kept)
    assert len(picture.data["image/png"]) < len(drawn)
    with Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"]))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)


def test_a_constant_that_is_not_set_once_is_refused():
    with pytest.raises(ValueError, match="NOTHING is set 0 times"):
        notebooks.with_constants(notebooks.read(NOTEBOOKS[0]), {"NOTHING": 1})


def installed(monkeypatch, packages, has_gpu=False):
    """What the installation cell asks of pip in an environment: the source, and what must stay."""
    asked = []

    def run(command, check):
        assert check
        asked.append((command, Path(command[command.index("--constraint") + 1]).read_text().split()))

    distributions = [SimpleNamespace(metadata={"Name": name}, version=v) for name, v in packages.items()]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: distributions)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if has_gpu else None)
    monkeypatch.setattr(subprocess, "run", run)
    # This process has imported jax; a notebook's has not before its first cell.
    monkeypatch.delitem(sys.modules, "jax")
    exec(notebooks.INSTALL, {})
    (found,) = asked
    return found


@pytest.mark.parametrize(
    ("packages", "has_gpu", "extras", "kept"),
    [
        (
            {"jax": "0.10.0", "jaxlib": "0.10.0", "libtpu": "0.0.40", "numpy": "2.0.2"},
            False,
            "[experiments]",
            ["jax==0.10.0", "jaxlib==0.10.0", "libtpu==0.0.40"],
        ),
        (
            {"jax": "1.2.3", "jaxlib": "1.2.3", "jax-cuda12-plugin": "1.2.3", "jax_cuda12_pjrt": "1.2.3"},
            True,
            "[experiments]",
            ["jax==1.2.3", "jaxlib==1.2.3", "jax-cuda12-plugin==1.2.3", "jax_cuda12_pjrt==1.2.3"],
        ),
        ({"jax": "0.9.2", "jaxlib": "0.9.2", "libtpu": "0.0.30"}, False, "[experiments,tpu]", []),
        ({"jax": "0.7.2", "jaxlib": "0.7.2"}, True, "[experiments,cuda12]", []),
        ({"numpy": "2.0.2"}, False, "[experiments]", []),
    ],
    ids=["tpu", "gpu", "tpu, old jax", "gpu, old jax", "no jax"],
)
def test_installation_keeps_a_jax_that_is_new_enough(monkeypatch, packages, has_gpu, extras, kept):
    command, constraints = installed(monkeypatch, packages, has_gpu)
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1].startswith(f"jdl-jax{extras} @ git+https://")
    assert constraints == kept


def test_installation_of_a_new_jax_beside_the_one_in_use_asks_for_a_restart(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distributions", list)
    monkeypatch.setattr(subprocess, "run", lambda command, check: None)
    assert "jax" in sys.modules
    with pytest.raises(SystemExit, match="restart the session"):
        exec(notebooks.INSTALL, {})
