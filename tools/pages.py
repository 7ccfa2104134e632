"""Look at every built page, and say what is wrong with it.

``python -m tools.pages`` runs at the end of ``make book``: it fails on any fault, and otherwise seals the book with a
fingerprint of its sources, so that a half-finished or outdated book is never mistaken for the current one. The tests
ask the same questions.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

from tools.page_loads import remote
from tools.page_tags import has_anchor, parse, tags

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
SEAL = "sources.sha256"
REFERENCE = "Reference"  # the part of the contents whose notebooks need no figure

# What is left in the text when a directive, a role or mathematics was not understood.
LEFTOVERS = {
    "a traceback": re.compile(r"Traceback \(most recent call last\)"),
    "raw $$": re.compile(r"\$\$"),
    "an unread role": re.compile(r"\{(cite|doc|eq|numref|prf|ref)[a-z:]*\}"),
    "an unread directive": re.compile(r"(^|\n)\s*(:::|```)"),
    "a Sphinx message": re.compile(r"\b(CRITICAL|ERROR|WARNING): "),
}
HEAVIEST = 1_500_000  # bytes of a page and its pictures

LINKS = (("a", "href"), ("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"))


def contents(root: Path = ROOT) -> dict[str, str]:
    """Names of all pages in reading order, each with the caption of its part (empty for the front matter)."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    pages = {toc["root"]: ""}
    for part in toc.get("parts", [toc]):
        todo = list(part.get("chapters", []))
        while todo:
            entry = todo.pop(0)
            if "file" in entry:
                pages[entry["file"]] = part.get("caption") or ""
            todo = [*entry.get("sections", []), *todo]
    return pages


def fingerprint(root: Path = ROOT) -> str:
    """One hash of everything the pages are made from."""
    files = [root / "_config.yml", root / "_toc.yml", root / "requirements.txt"]
    for folder in ("book", "assets"):
        files += [path for path in (root / folder).rglob("*") if path.is_file()]
    total = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(root)
        if not any(part.startswith(".") for part in name.parts) and name.suffix != ".py":
            total.update(name.as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def unfinished(root: Path = ROOT, html: Path = HTML) -> str:
    """Why the built book cannot be judged, or an empty string."""
    seal = html / SEAL
    if not seal.is_file():
        return f"{html} holds no finished book; run `make book`"
    if seal.read_text(encoding="utf-8") != fingerprint(root):
        return f"the book in {html} was built from other sources than these; run `make book`"
    return ""


def prose(page: BeautifulSoup) -> str:
    """The article's text as a reader sees it, without code, program output and mathematics."""
    article = page.select_one("article.bd-article") or page
    hidden = [tag for tag in article.find_all(["script", "style", "pre", "code"]) if not is_message(tag)]
    hidden += [*article.find_all(class_="math"), *article.find_all("annotation")]
    skip = {id(text) for tag in hidden for text in tag.find_all(string=True)}
    return "".join(text for text in article.find_all(string=True) if id(text) not in skip)


def is_message(tag: Tag) -> bool:
    return tag.find_parent(class_=["system-message", "stderr"]) is not None


def page_faults(name: str, root: Path = ROOT, html: Path = HTML) -> list[str]:
    """What is wrong with one page: each fault a sentence, none for a good page."""
    path = html / f"{name}.html"
    if not path.is_file():
        return ["is in the table of contents and was not built"]
    titles = [h1.get_text(strip=True) for h1 in tags(path, "h1") if h1.find_parent("article")]
    faults = [] if len(titles) == 1 and titles[0].strip("# ") else [f"has the titles {titles}, not one"]
    printed = [pre.get_text() for pre in tags(path, "pre") if pre.find_parent(class_="cell_output")]
    text = prose(parse(path)) + "".join(printed)
    faults += [
        f"shows {what}: {excerpt(text, found)}" for what, mark in LEFTOVERS.items() if (found := mark.search(text))
    ]
    faults += [
        f"shows the message {tag.get_text(' ', strip=True)[:100]!r}"
        for tag in tags(path, ".system-message", ".problematic")
    ]
    faults += broken_links(path)
    if (heavy := weight(path)) > HEAVIEST:
        faults.append(f"weighs {heavy / 1e6:.2f} MB with its pictures, {HEAVIEST / 1e6:g} MB at most")
    source = root / f"{name}.ipynb"
    if source.is_file():
        faults += notebook_faults(
            path, json.loads(source.read_text(encoding="utf-8")), contents(root)[name] != REFERENCE
        )
    return faults


def excerpt(text: str, found: re.Match[str]) -> str:
    return repr(text[max(0, found.start() - 30) : found.end() + 50].strip())


def notebook_faults(path: Path, notebook: dict, is_chapter: bool) -> list[str]:
    """What the page of a notebook lacks of it."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = [cell for cell in code if "remove-cell" not in cell["metadata"].get("tags", [])]
    faults = []
    if len(cells := tags(path, ".cell")) != len(shown):
        faults.append(f"shows {len(cells)} of the notebook's {len(shown)} code cells")
    controls = sum(
        "application/vnd.jupyter.widget-view+json" in output.get("data", {})
        for cell in shown
        for output in cell["outputs"]
    )
    if len(sliders := tags(path, ".nl-explorer")) != controls:
        faults.append(f"shows {len(sliders)} of the notebook's {controls} controls")
    if is_chapter and not any("\\(" in tag.text or "\\[" in tag.text for tag in tags(path, ".math")):
        faults.append("has no equation")
    if is_chapter and not any(is_drawn(tag) for tag in tags(path, "img", "svg")):
        faults.append("has no figure")
    return faults


def is_drawn(tag: Tag) -> bool:
    """Whether a picture belongs to the text, and not to the theme."""
    return tag.find_parent(class_="cell_output") is not None or tag.find_parent("figure") is not None


def broken_links(path: Path) -> list[str]:
    """Links and files named by a page that are not there, anchors in other pages included."""
    faults = []
    for kind, attribute in LINKS:
        for address in dict.fromkeys(tag.get(attribute) or "" for tag in tags(path, kind)):
            link = urlsplit(address)
            if link.scheme or link.netloc or not (link.path or link.fragment):
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path.resolve()
            if not target.exists():
                faults.append(f"names {link.geturl()}, which does not exist")
            elif link.fragment and target.suffix == ".html" and not has_anchor(target, unquote(link.fragment)):
                faults.append(f"links to {link.geturl()}, and that anchor does not exist")
    return list(dict.fromkeys(faults))


def loads(path: Path, html: Path) -> list[str]:
    return [f"{path.relative_to(html)} loads {address}" for address in remote(path)]


def loaded_from_elsewhere(html: Path = HTML) -> list[str]:
    """What the book's files load from the network, one sentence each; none for a book that is whole in itself."""
    return [fault for path in sorted([*html.rglob("*.html"), *html.rglob("*.css")]) for fault in loads(path, html)]


def weight(path: Path) -> int:
    """Bytes of a page with its own pictures; what all pages share, theme and MathJax, is not counted."""
    images = {tag.get("src") for tag in tags(path, "img")}
    own = [path.parent / unquote(source) for source in images if source and not urlsplit(source).scheme]
    return path.stat().st_size + sum(image.stat().st_size for image in own if image.is_file())


def faults(root: Path = ROOT, html: Path = HTML) -> list[str]:
    """What is wrong with the book, one line each."""
    found = [f"{name} {fault}" for name in contents(root) for fault in page_faults(name, root, html)]
    return found + loaded_from_elsewhere(html)


def _faults_of_page(name: str) -> list[str]:
    path = HTML / f"{name}.html"
    return [f"{name} {fault}" for fault in page_faults(name)] + (loads(path, HTML) if path.is_file() else [])


def faults_side_by_side() -> list[str]:
    """The same of this book, in a process for each core, which reads its pages once for all questions."""
    names = list(contents())
    own = {HTML / f"{name}.html" for name in names}
    others = [path for path in [*HTML.rglob("*.html"), *HTML.rglob("*.css")] if path not in own]
    with ProcessPoolExecutor() as pool:
        found = [fault for faults in pool.map(_faults_of_page, names) for fault in faults]
    return found + [fault for path in sorted(others) for fault in loads(path, HTML)]


def main() -> int:
    found = faults_side_by_side()
    if found:
        print(*found, sep="\n", file=sys.stderr)
        print(f"{len(found)} faults in the built pages; the book is not finished.", file=sys.stderr)
        return 1
    (HTML / SEAL).write_text(fingerprint(), encoding="utf-8")
    print(f"The book is built: open {(HTML / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
