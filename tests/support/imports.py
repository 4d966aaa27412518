"""What the package's files import, read off their syntax trees."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

OURS = "sana"
"""First part of the names of our own modules here, whatever the package is called where it is installed."""


@dataclass(frozen=True)
class Import:
    """One name that a file imports: ``sana.room.module`` or ``torch.nn``; ``lazy`` where a function does."""

    name: str
    lazy: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


def package_folders(root: Path) -> list[Path]:
    """The folders of every package that pyproject.toml lists, its root first."""
    names = _packages((root / "pyproject.toml").read_text(encoding="utf-8"))
    return [root.joinpath(*name.split(".")[1:]) for name in names]


def _packages(text: str) -> list[str]:
    """[tool.setuptools] packages; Python 3.10 has no tomllib, so the list is read as the Python that it also is."""
    listed = text.split("[tool.setuptools]", 1)[1].split("packages =", 1)[1]
    return ast.literal_eval(listed[: listed.index("]") + 1].strip())


def package_files(root: Path) -> list[Path]:
    return sorted(file for folder in package_folders(root) for file in folder.glob("*.py"))


def imports_of(file: Path, root: Path) -> list[Import]:
    """Every import in a file but those for annotations alone; ``from . import a`` gives ``a`` as a module would be."""
    parts = (OURS, *file.relative_to(root).parts[:-1])
    found = []
    for node, lazy in _imports(ast.parse(file.read_text(encoding="utf-8")), lazy=False):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level == 0:
            names = [node.module]
        else:
            base = [*parts[: len(parts) - node.level + 1], *(node.module or "").split(".")]
            names = [".".join([*filter(None, base), alias.name]) for alias in node.names]
        found += [Import(name, lazy) for name in names]
    return found


def _imports(node: ast.AST, lazy: bool):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, lazy
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _imports(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


def file_of(name: str, root: Path) -> Path | None:
    """The file behind one of our names: a module's, or a package's ``__init__`` for what is defined in it."""
    parts = name.split(".")[1:]
    while parts:
        for file in (root.joinpath(*parts).with_suffix(".py"), root.joinpath(*parts, "__init__.py")):
            if file.is_file():
                return file
        parts.pop()
    return root / "__init__.py" if (root / "__init__.py").is_file() else None


def graph(root: Path) -> dict[Path, list[Path]]:
    """Each file of the package to those of ours that it imports, in functions too.

    Importing ``a.b`` runs ``a/__init__`` before, which is Python's doing and no edge: only who takes a name that
    ``__init__`` itself defines depends on it.
    """
    edges = {}
    for file in package_files(root):
        targets = [file_of(i.name, root) for i in imports_of(file, root) if i.top == OURS]
        edges[file] = sorted({target for target in targets if target not in (None, file)})
    return edges


def circle(edges: dict[Path, list[Path]]) -> list[Path] | None:
    """A shortest way from a file back to itself, or None."""
    found = [way for start in edges if (way := _way_back(start, edges))]
    return min(found, key=len, default=None)


def _way_back(start: Path, edges: dict[Path, list[Path]]) -> list[Path] | None:
    ways = [[start]]
    seen = set()
    for way in ways:  # breadth first: the list grows while it is read
        for target in edges.get(way[-1], ()):
            if target == start:
                return [*way, start]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return None


def functions_of(file: Path) -> list[tuple[str, int]]:
    """Name and lines, from ``def`` to the end, of every function in a file."""
    tree = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in tree
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def is_standard(top: str) -> bool:
    return top in sys.stdlib_module_names or top == "__future__"
