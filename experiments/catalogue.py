"""Finds the experiments by reading their files, importing none of them."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A script that reproduces a figure or measures a speed.

    Attributes:
        module: what ``python -m`` takes.
        summary: the first sentence of its docstring.
        published: the figure it reproduces, in words.
    """

    module: str
    summary: str
    published: str


def module_file(module: str) -> Path:
    """The file that ``python -m`` runs for a module under ``experiments``, whether there or not."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def parse(path: Path, module: str) -> Experiment | None:
    """The experiment in a file: a docstring, a function ``main`` and a constant ``PUBLISHED``; or None."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    published = None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "PUBLISHED" for t in targets):
            value = getattr(node, "value", None)
            if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                raise ValueError(f"{path}: PUBLISHED must be a text written out, so that it can be listed")
            published = value.value
    docstring = ast.get_docstring(tree)
    if docstring is None or published is None or "main" not in functions:
        return None
    return Experiment(module, " ".join(docstring.split("\n\n")[0].split()), published)


def experiments(folder: Path = ROOT / "experiments", package: str = "experiments") -> list[Experiment]:
    """All experiments of a package and the packages in it, by name, those of inner packages last."""
    files = {path: f"{package}.{path.stem}" for path in sorted(folder.glob("*.py"))}
    found = [parse(path, module.removesuffix(".__main__")) for path, module in files.items()]
    for inner in sorted(folder.glob("*/__init__.py")):
        found += experiments(inner.parent, f"{package}.{inner.parent.name}")
    return [experiment for experiment in found if experiment is not None]
