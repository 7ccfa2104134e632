"""Execute the book's notebooks in place, so that a second run on the same machine changes nothing.

``python -m tools.notebooks [NOTEBOOK ...]``. Each notebook is replaced only once it has run to its end; one that
fails keeps its old outputs, the others still run, and the command fails. What would differ from run to run is made
regular: widgets get their numbers in order of appearance, and the kernel's version and all timings are left out.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image

from tools.captions import join_captions

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
README_FIGURE = ("homogeneity.ipynb", "fig-homogeneity-rails", ROOT / "assets" / "readme-figure.png")
WIDGETS = "application/vnd.jupyter.widget-state+json"
MODEL_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


def widget_order(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """A new id for every widget model: first those shown, in order, and what they hold; then the rest, by content."""
    state = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    names: dict[str, str] = {}

    def text(model: str) -> str:
        return json.dumps(state[model], sort_keys=True)

    def visit(model: str) -> None:
        if model in state and model not in names:
            names[model] = f"{len(names):032x}"
            for inner in MODEL_ID.findall(text(model)):
                visit(inner)

    for shown in MODEL_ID.findall(json.dumps(notebook.cells)):
        visit(shown)
    for model in sorted(state, key=lambda model: MODEL_ID.sub(lambda found: names.get(found[0], ""), text(model))):
        visit(model)
    return names


def regular(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without what changes from run to run; what it shows is the same."""
    names = widget_order(notebook)
    text = MODEL_ID.sub(lambda found: names.get(found[0], found[0]), nbformat.writes(notebook))
    copy = nbformat.reads(text, as_version=4)
    for cell in copy.cells:
        cell.metadata.pop("execution", None)
    copy.metadata.get("language_info", {}).pop("version", None)
    return copy


_COLOURS = 256  # of a picture: drawings of lines need no more, and take half of the room


def lighter(picture: str) -> str:
    """A PNG of few colours, in base64 as a notebook holds it; the picture as it was, where that is smaller."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as drawn:
        drawn.convert("RGB").quantize(_COLOURS).save(small, format="png", optimize=True)
    return min(base64.b64encode(small.getvalue()).decode("ascii") + "\n", picture, key=len)


def with_lighter_pictures(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = lighter(data["image/png"])
    return notebook


RECORD = "nlcompanion"  # under which a notebook's metadata say with what and how fast it was executed
PACKAGES = ("torch", "numpy", "scipy")


def without_record(notebook: nbformat.NotebookNode) -> str:
    copy = nbformat.from_dict(notebook)
    copy.metadata.pop(RECORD, None)
    return nbformat.writes(copy)


def execute(path: Path, timeout: float = 600.0) -> bool:
    """Run one notebook in its own folder and write it back; returns whether the file changed.

    The page says with which versions it was executed and in how many seconds. Where nothing else is new, the old
    record stays.
    """
    before = nbformat.read(path, as_version=4)
    notebook = nbformat.from_dict(before)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # else what is printed is cut where the kernel happened to pause
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],  # no remark on the kernel's own transport
    ).execute()
    after = with_lighter_pictures(regular(notebook))
    changed = without_record(after) != without_record(before) or RECORD not in before.metadata
    if changed:
        after.metadata[RECORD] = {
            "seconds": round(time.perf_counter() - start),
            "versions": {package: version(package).partition("+")[0] for package in PACKAGES},
        }
        part = path.with_name(f".{path.name}.part")
        part.write_text(nbformat.writes(after) + "\n", encoding="utf-8")
        os.replace(part, path)
    return changed


def figure(path: Path, name: str) -> bytes:
    """The picture of an executed notebook that carries this figure name, as PNG."""
    for cell in join_captions(nbformat.read(path, as_version=4))["cells"]:
        if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == name:
            for output in cell["outputs"]:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"])
    raise LookupError(f"{path.name} shows no figure named {name}; execute it, or name another in tools/notebooks.py")


def main(arguments: list[str]) -> int:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ["NLCOMPANION_CLAIMS"] = "raise"  # what is stored holds
    os.environ.pop("MPLBACKEND", None)  # a kernel that inherits one shows no figures
    failed = []
    for path in [Path(name) for name in arguments] or sorted(BOOK.glob("*.ipynb")):
        start = time.perf_counter()
        try:
            changed = "changed" if execute(path) else "unchanged"
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed.append(path.name)
            print(f"{path.name}: left as it was, since a cell failed:\n{error}", file=sys.stderr)
        else:
            print(f"{path.name}: {changed}, {time.perf_counter() - start:.0f} s", flush=True)
    notebook, name, target = README_FIGURE
    target.write_bytes(figure(BOOK / notebook, name))
    if failed:
        print(f"Not executed to the end: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
