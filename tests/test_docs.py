"""The API reference builds from the docstrings, and shows what the packages offer."""

import importlib.util
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[1] / "docs" / "build.py"


def test_reference_builds_without_warnings(tmp_path):
    pytest.importorskip("pdoc")
    spec = importlib.util.spec_from_file_location("build_docs", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.build(tmp_path).is_file()
    page = (tmp_path / "jdl" / "core.html").read_text(encoding="utf-8")
    for name in ("Task", "Learner", "State", "Mean"):
        assert f'id="{name}"' in page
    assert "What to learn: pure functions of a variables tree" in page
