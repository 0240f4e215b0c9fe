"""Builds the API reference from the docstrings: ``python docs/build.py`` writes docs/api/index.html."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import pdoc


def build(folder: Path) -> Path:
    """Writes the reference of every public module into ``folder`` and returns its first page."""
    pdoc.render.configure(docformat="google", math=True, search=True)
    with warnings.catch_warnings():
        # Of a NamedTuple's fields, and of what a Linen module inherits, pdoc cannot look up the annotation's
        # names; it then shows the annotation as it is written, which is what a reader wants.
        warnings.filterwarnings("ignore", message="Error parsing type annotation", category=UserWarning)
        pdoc.pdoc("jdl", output_directory=folder)
    return folder / "index.html"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent / "api")
    print(build(parser.parse_args().folder))
