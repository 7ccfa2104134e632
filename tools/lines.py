"""How much code the house holds: lines with code, comments and docstrings apart.

``python -m tools.lines``. A line counts if a token of code begins or ends on it; what stands between triple quotes as
a docstring, a comment or nothing does not. The library's own code is what is neither data, training nor the book.
"""

from __future__ import annotations

import ast
import io
import statistics
import token
import tokenize
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
NOT_OWN = ("datasets", "training", "book")
_NO_CODE = {token.COMMENT, token.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENCODING, token.ENDMARKER}


def code_lines(source: str) -> int:
    """How many lines of a module hold code.

    Example:
        >>> code_lines('# why\\n\\ndef one():\\n    "What it is."\\n    return (\\n        1  # one\\n    )\\n')
        4
    """
    lines: set[int] = set()
    for piece in tokenize.generate_tokens(io.StringIO(source).readline):
        if piece.type not in _NO_CODE:
            lines.update(range(piece.start[0], piece.end[0] + 1))
    return len(lines - _docstrings(source))


def _docstrings(source: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def counted(folder: Path) -> dict[str, int]:
    """Lines of code of each module below a folder, by its path."""
    found = sorted(folder.rglob("*.py"))
    return {path.relative_to(folder).as_posix(): code_lines(path.read_text(encoding="utf-8")) for path in found}


def _row(name: str, modules: Iterable[int]) -> list[object]:
    sizes = sorted(modules)
    return [name, len(sizes), sum(sizes), int(statistics.median(sizes)), sizes[-1]]


def table(modules: dict[str, int]) -> list[list[object]]:
    """A row for each folder, for the library's own code and for all: modules, lines, their median and the largest."""
    folders: dict[str, list[int]] = {}
    for path, size in modules.items():
        folders.setdefault(path.partition("/")[0] if "/" in path else "(top)", []).append(size)
    rows = [_row(name, sizes) for name, sizes in sorted(folders.items())]
    own = [size for name, sizes in folders.items() if name not in NOT_OWN for size in sizes]
    rows.append(_row("the library's own", own))
    rows.append(_row("the whole package", modules.values()))
    return rows


def main() -> None:
    modules = counted(ROOT / "nlcompanion")
    print(tabulate(table(modules), ("folder", "modules", "lines", "median", "largest"), tablefmt="github"))
    print("\nthe largest modules:")
    for path, size in sorted(modules.items(), key=lambda item: -item[1])[:12]:
        print(f"{size:5}  {path}")


if __name__ == "__main__":
    main()
