"""Every experiment can be listed without being imported, and the list says what it should."""

import ast

import pytest

from experiments import catalogue, ledger
from experiments.__main__ import listing

SCRIPT = '''"""Trains a thing.

More of it.
"""

import a_package_that_is_not_there

PUBLISHED = (
    "0.95 % "
    "(Someone, 1998)"
)


def main(config):
    ...
'''


def test_experiments_are_found_by_reading(tmp_path):
    (tmp_path / "thing.py").write_text(SCRIPT)
    (tmp_path / "tool.py").write_text('"""A tool."""\n\n\ndef main():\n    ...\n')
    inner = tmp_path / "benchmarks"
    inner.mkdir()
    (inner / "__init__.py").write_text("")
    (inner / "speed.py").write_text(SCRIPT.replace("Trains a thing", "Times a thing"))
    found = catalogue.experiments(tmp_path)
    assert [e.module for e in found] == ["experiments.thing", "experiments.benchmarks.speed"]
    assert found[0].summary == "Trains a thing."
    assert found[0].published == "0.95 % (Someone, 1998)"


def test_published_figure_must_be_written_out(tmp_path):
    (tmp_path / "thing.py").write_text(SCRIPT.replace('"0.95 % "', "figure +"))
    with pytest.raises(ValueError, match="PUBLISHED must be a text"):
        catalogue.experiments(tmp_path)


def test_every_script_with_a_configuration_is_listed():
    listed = {e.module for e in catalogue.experiments()}
    for path in (catalogue.ROOT / "experiments").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if {"Config", "main"} <= names:
            module = ".".join(path.relative_to(catalogue.ROOT).with_suffix("").parts)
            assert module in listed, f"{module} has a Config and a main, but no docstring or no PUBLISHED"


def test_listing_shows_published_and_recorded_figures():
    text = "\n".join(listing())
    for experiment in catalogue.experiments():
        assert f"python -m {experiment.module}\n    {experiment.summary}" in text
        assert experiment.published in text
    for entry in ledger.read():
        assert entry.title in text
