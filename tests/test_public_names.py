"""The public names stand still: a change shows in public_names.txt, and in the changelog.

``python tests/test_public_names.py --write`` writes the names anew and says which line the changelog needs.
The names are read from the source text, so that they do not depend on the versions of Python and JAX.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = Path(__file__).resolve().with_name("public_names.txt")
CHANGELOG = ROOT / "CHANGELOG.md"
WRITE = "python tests/test_public_names.py --write"


def public_names(folder: Path = ROOT / "jdl") -> list[str]:
    """One line a public name: functions with their parameters, classes with their bases and members."""
    lines = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        lines += [f"{module}.{name}" for name in names_of(ast.parse(path.read_text(encoding="utf-8")))]
    return sorted(lines)


def names_of(tree: ast.Module) -> Iterator[str]:
    """The public names that a module defines, or lists in ``__all__``."""
    listed = None
    defined: dict[str, list[str]] = {}
    imported = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            defined[node.name] = [signature(node)]
        elif isinstance(node, ast.ClassDef):
            defined[node.name] = list(members(node))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{'.' * node.level}{node.module or ''}.{alias.name}"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in [t for whole in targets for t in getattr(whole, "elts", [whole])]:
                if isinstance(target, ast.Name) and target.id == "__all__":
                    listed = ast.literal_eval(node.value)
                elif isinstance(target, ast.Name):
                    defined.setdefault(target.id, [target.id])
    if listed is None:
        listed = [name for name in defined if not name.startswith("_")]
    for name in listed:
        yield from defined.get(name, [f"{name} = {imported.get(name, '?')}"])


def members(node: ast.ClassDef) -> Iterator[str]:
    """A class, its fields and its public methods."""
    yield f"{node.name}({', '.join(ast.unparse(base) for base in node.bases)})"
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and (not item.name.startswith("_") or item.name == "__call__"):
            yield f"{node.name}.{signature(item)}"
        elif isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_"):
            yield f"{node.name}.{item.target.id}{default(item.value)}"


def signature(node: ast.FunctionDef) -> str:
    """A function's name, its parameters' names, and their defaults where these are plain values."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    parameters = [p.arg + default(d) for p, d in zip(positional, defaults, strict=True)]
    if given.posonlyargs:
        parameters.insert(len(given.posonlyargs), "/")
    if given.vararg:
        parameters.append(f"*{given.vararg.arg}")
    elif given.kwonlyargs:
        parameters.append("*")
    keyword = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    parameters += [p.arg + default(d) for p, d in keyword]
    if given.kwarg:
        parameters.append(f"**{given.kwarg.arg}")
    return f"{node.name}({', '.join(parameters)})"


def default(node: ast.expr | None) -> str:
    """A default as it is shown: the value where it is plain, three dots where it is an expression."""
    if node is None:
        return ""
    try:
        return f"={ast.literal_eval(node)!r}"
    except ValueError:
        return "=..."


def digest(text: str) -> str:
    """What the changelog says of the names."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def newest_section(changelog: str) -> str:
    """The changelog's text from its first version to the second."""
    return re.split(r"(?m)^## ", changelog, maxsplit=2)[1]


def test_names_are_those_recorded():
    recorded = NAMES.read_text(encoding="utf-8").splitlines()
    changes = [
        line
        for line in difflib.unified_diff(recorded, public_names(), lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    message = f"public names changed; run `{WRITE}` and tell in CHANGELOG.md what changed:\n"
    assert not changes, message + "\n".join(changes)


def test_changelog_tells_of_the_names():
    line = f"API: {digest(NAMES.read_text(encoding='utf-8'))}"
    newest = newest_section(CHANGELOG.read_text(encoding="utf-8")).splitlines()
    assert line in newest, (
        f"the newest section of CHANGELOG.md must say what changed, and hold the line {line!r}"
    )


def test_every_listed_name_is_there():
    missing = [line for line in public_names() if line.endswith(" = ?")]
    assert not missing, f"__all__ lists names that the module neither defines nor imports: {missing}"


def test_signatures_are_shown_with_plain_defaults():
    tree = ast.parse(
        "from jdl.x import y\n"
        "SIZE: int = 3\n"
        "_hidden = 1\n"
        "LEFT, RIGHT = 0, 1\n"
        "def f(a, /, b=1, *args, c=-1.5, d=jnp.float32, **kwargs): ...\n"
        "def g(a, *, b='text', c=(1, None)): ...\n"
        "class C(Base):\n"
        "    width: int\n"
        "    depth: int = 2\n"
        "    def __call__(self, x, train=False): ...\n"
        "    def _private(self): ...\n"
    )
    assert list(names_of(tree)) == [
        "SIZE",
        "LEFT",
        "RIGHT",
        "f(a, /, b=1, *args, c=-1.5, d=..., **kwargs)",
        "g(a, *, b='text', c=(1, None))",
        "C(Base)",
        "C.width",
        "C.depth=2",
        "C.__call__(self, x, train=False)",
    ]
    tree.body.append(ast.parse("__all__ = ['y', 'SIZE', 'z']").body[0])
    assert list(names_of(tree)) == ["y = jdl.x.y", "SIZE", "z = ?"]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {WRITE}")
    NAMES.write_text("\n".join(public_names()) + "\n", encoding="utf-8")
    print(f"wrote {NAMES.name}; the newest section of CHANGELOG.md needs what changed, and the line")
    print(f"API: {digest(NAMES.read_text(encoding='utf-8'))}")
