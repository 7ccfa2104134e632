"""Build the book: ``python -m tools.build``, which is what ``make book`` calls.

What ``jupyter-book build . --all -W -n --keep-going`` does, in a process for each core: its command line has no option
for that. The register's page is written before, the built pages are judged after.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

# jsonschema, with which Jupyter Book reads its settings, compiles a grammar for addresses in other alphabets as soon as
# that package is there. It takes as long as five chapters, and no setting of this book is such an address.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

from jupyter_book.sphinx import build_sphinx  # noqa: E402

from tools import pages, what_holds  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"external_toc_path": "_toc.yml", "latex_individualpages": False, "nitpicky": True}


def build(root: Path = ROOT) -> int:
    """Write the pages; a warning is an error. Returns the exit status."""
    for folder in ("html", ".doctrees"):
        shutil.rmtree(root / "_build" / folder, ignore_errors=True)
    result = build_sphinx(
        root,
        root / "_build" / "html",
        noconfig=True,
        path_config=root / "_config.yml",
        confoverrides=SETTINGS,
        quiet=True,
        freshenv=True,
        warningiserror=True,
        keep_going=True,
        jobs=os.cpu_count(),
    )
    if isinstance(result, Exception):
        raise result
    write_first_page(root / "_build" / "html")
    return int(result)


def write_first_page(html: Path) -> None:
    """The page that a folder opens with, which leads on to the book's."""
    address = "book/index.html"
    page = f'<meta charset="utf-8"><meta http-equiv="Refresh" content="0; url={address}">'
    (html / "index.html").write_text(f'<!doctype html><title>The book</title>{page}<a href="{address}">The book</a>\n')


def main() -> int:
    os.chdir(ROOT)
    return what_holds.main([]) or build() or pages.main()


if __name__ == "__main__":
    raise SystemExit(main())
