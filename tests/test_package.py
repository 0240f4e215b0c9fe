"""The package as a whole: light to import, documented, and free of what belongs to one machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "grain",
    "matplotlib",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "torch",
    "tqdm",
    "transformers",
    "tyro",
}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a new process has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


def test_import_loads_nothing_beyond_flax():
    ours = loaded_by("import jdl") - loaded_by("import flax")
    assert ours <= {"jdl"}, f"`import jdl` also loads {sorted(ours - {'jdl'})}"


def test_no_module_loads_what_only_some_use():
    code = (
        "import importlib, pkgutil, jdl\n"
        "for module in pkgutil.walk_packages(jdl.__path__, 'jdl.'): importlib.import_module(module.name)"
    )
    heavy = loaded_by(code) & HEAVY
    assert not heavy, f"some module of jdl loads {sorted(heavy)} on import; load it where it is used"


def test_listing_experiments_loads_no_jax():
    code = (
        "import runpy, io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()), contextlib.suppress("
    )
    code += "SystemExit): runpy.run_module('experiments', run_name='__main__')"
    heavy = loaded_by(code) & (HEAVY | {"jax", "flax", "numpy"})
    assert not heavy, f"`python -m experiments` loads {sorted(heavy)}"


def test_every_public_function_and_class_has_a_docstring():
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "jdl").rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare, f"without a docstring: {bare}"


def tracked_texts() -> list[tuple[str, str]]:
    """Name and text of every tracked file that is text."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(git, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    texts = []
    for name in filter(None, names):
        try:
            texts.append((name, (ROOT / name).read_text(encoding="utf-8")))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
    return texts


def test_no_file_names_a_place_on_one_machine():
    absolute = re.compile(r"(?<![\w.~*}/-])/(?:work|root|home|Users|opt|mnt|srv)/[\w.]+")
    found = [f"{name}: {match[0]}" for name, text in tracked_texts() for match in absolute.finditer(text)]
    assert not found, "absolute paths of some machine:\n" + "\n".join(found)


def test_no_file_names_the_registry_of_one_machine():
    run = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    settings = run.stdout + " ".join(
        v for k, v in os.environ.items() if k.endswith(("INDEX_URL", "REGISTRY"))
    )
    hosts = set(re.findall(r"https?://(?:[^@/\s']*@)?([\w.-]+)", settings))
    found = [f"{name}: {host}" for name, text in tracked_texts() for host in hosts if host in text]
    assert not found, "package registries of some machine:\n" + "\n".join(found)
