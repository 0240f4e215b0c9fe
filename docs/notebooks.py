"""Runs the notebooks in colab/ and keeps what they show: ``python docs/notebooks.py [NAME ...]``.

Without names it runs those whose code is no longer that which their outputs are of. Every notebook begins
with a title, and has the two cells below, which are written into it from here.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import re
import resource
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image, ImageSequence

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
COLAB = ROOT / "colab"

INSTALL = """\
# Installs the library where it is missing. The runtime's own jax is made for its TPU or GPU: where it is new
# enough, it stays, with all that belongs to it; where it is not, the newest one for this device is installed.
REPOSITORY = "https://github.com/jdl-jax/jdl"

import importlib.metadata
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

if importlib.util.find_spec("jdl") is None:
    present = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    is_new = [int(n) for n in re.findall(r"\\d+", present.get("jax", "0"))[:2]] >= [0, 10]
    own = [name for name in present if re.fullmatch(r"jax|jaxlib|jax[-_]cuda.*|libtpu.*", name) and is_new]
    kept = pathlib.Path(tempfile.mkdtemp(), "kept.txt")
    kept.write_text("".join(f"{name}=={present[name]}\\n" for name in own))
    device = ",cuda12" if shutil.which("nvidia-smi") else ",tpu" if "libtpu" in present else ""
    source = f"jdl-jax[experiments{'' if is_new else device}] @ git+{REPOSITORY}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(kept), source]
    subprocess.run(command, check=True)
    if "jax" in sys.modules and not is_new:
        raise SystemExit("There is a new jax now: restart the session, and run on from the top.")"""

DEVICES = """\
# What this runtime has.
%matplotlib inline
import collections
import os

import jax

from jdl import train

train.prepare()
print(f"jax {jax.__version__}, {os.cpu_count()} CPU cores")
for kind, count in collections.Counter(device.device_kind for device in jax.local_devices()).items():
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    print(f"{count} x {kind}" + (f" with {memory / 2**30:.0f} GiB each" if memory else ""))"""

SHARED = {"install": INSTALL, "devices": DEVICES}
"""The cells that all notebooks have, by the id of the cell."""


def notebooks() -> list[Path]:
    """The notebooks, in order."""
    return sorted(COLAB.glob("*.ipynb"))


def read(path: Path) -> Any:
    """A notebook, its shared cells as they are here."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.id in SHARED:
            cell.source = SHARED[cell.id]
    return notebook


def fingerprint(notebook: Any) -> str:
    """A hash of what the outputs follow from: the code of all cells but the installation, without comments,
    and the ledger's tables of estimates where it reads the ledger.
    """
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.id != "install"]
    lines = [line.rstrip() for source in code for line in source.splitlines()]
    told = [line for line in lines if line and not line.lstrip().startswith("#")]
    if any("ledger.read(" in line for line in told):
        told += [path.read_text() for path in sorted(RESULTS.glob("estimate_*.json"))]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def is_current(notebook: Any) -> bool:
    """Whether the outputs are of the code beside them."""
    return bool(notebook.metadata.get("jdl", {}).get("code") == fingerprint(notebook))


def with_constants(notebook: Any, constants: Mapping[str, Any]) -> Any:
    """The notebook with other values for its constants.

    Raises:
        ValueError: if one is not set exactly once, at the beginning of a line.
    """
    for name, value in constants.items():
        found = 0
        for cell in notebook.cells:
            if cell.cell_type == "code":
                line = f"{name} = {value!r}".replace("\\", r"\\")
                cell.source, n = re.subn(rf"^{name} = .*$", line, cell.source, flags=re.MULTILINE)
                found += n
        if found != 1:
            raise ValueError(f"{name} is set {found} times")
    return notebook


def execute(notebook: Any, folder: Path, *, timeout: int = 3600) -> float:
    """Runs a notebook from top to bottom in a folder, with this checkout's code.

    Returns:
        The seconds that its process had of all cores together: about the longest that it takes on a machine
        with nothing else to do.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # The notebook's own, so that figures are drawn into it.
    environment.pop("MPLBACKEND", None)
    client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}})
    start = _seconds_of_children()
    client.execute(env=environment)
    return _seconds_of_children() - start


def _seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keep(path: Path, notebook: Any, seconds: float) -> None:
    """Writes an executed notebook, with what its outputs are of, and without what changes from run to run."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in joined(cell.outputs) if output.get("name") != "stderr"]
            for output in cell.outputs:
                for kind in {"image/png", "image/gif"} & output.get("data", {}).keys():
                    output.data[kind] = smaller(output.data[kind])
    notebook.metadata["jdl"] = {"code": fingerprint(notebook), "cpu_seconds": round(seconds)}
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs with neighbouring pieces of text made one."""
    kept: list[Any] = []
    for output in outputs:
        if kept and "text" in output and kept[-1].get("name") == output.get("name"):
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


LARGE = 2**18
"""Letters of a picture in base64 that may have fewer colours."""


def smaller(picture: str) -> str:
    """A picture in base64 with 256 colours, a large one with 32, every other image of a film with 16; or as
    it is where that is no smaller.
    """
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        if image.format == "GIF":
            frames, times = [], []
            for i, frame in enumerate(ImageSequence.Iterator(image)):
                if i % 2:
                    continue
                times.append(2 * frame.info.get("duration", 100))
                frames.append(frame.convert("RGB").quantize(16, dither=Image.Dither.NONE))
            frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
        else:
            colours = 32 if len(picture) > LARGE else 256
            image.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(
                buffer, "PNG", optimize=True
            )
    made = base64.b64encode(buffer.getvalue()).decode()
    return min(made, picture, key=len)


def main() -> None:
    known = [path.stem for path in notebooks()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no notebook is called {', '.join(unknown)}: there are {', '.join(known)}")
    for path in notebooks():
        notebook = read(path)
        if path.stem in names if names else not is_current(notebook):
            with tempfile.TemporaryDirectory() as folder:
                seconds = execute(notebook, Path(folder))
            keep(path, notebook, seconds)
            print(f"{path.name}: {seconds:.0f} CPU seconds", flush=True)
        else:
            nbformat.write(notebook, path)  # The shared cells may be other ones.


if __name__ == "__main__":
    main()
