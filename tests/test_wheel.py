"""The built wheel is what the notebooks install: it holds everything they import, and the data that ship."""

import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, because the build leaves files where it works
    for name in ("jdl", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_name_and_extra_of_the_install_cell_exist(wheel):
    metadata = email.message_from_bytes(
        wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA")))
    )
    for path in sorted((ROOT / "colab").glob("*.ipynb")):
        install = next(
            cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
        ).source
        name, extra = re.search(r'"([\w-]+)\[(\w+)[^"]*\] @ git\+', install).groups()
        assert metadata["Name"] == name
        extras = {extra, *re.findall(r'",(\w+)"', install)}
        assert len(extras) == 3, "of every device, and those of a GPU and a TPU"
        assert extras <= set(metadata.get_all("Provides-Extra"))


def test_it_runs_without_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path)
    script = (
        "import jdl, experiments.lenet, experiments.ledger; from jdl import data, train; "
        f"assert jdl.__file__.startswith({str(tmp_path)!r}); "
        "assert len(data.load('digits').train['labels']) == 1437; "
        "assert len(data.load_text('tiny_shakespeare').train) == 1003854"
    )
    # First on the path, before an editable install of the checkout.
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {script}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
