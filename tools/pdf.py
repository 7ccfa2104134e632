"""The whole book as one PDF: ``python -m tools.pdf [FILE]``, after ``make book``.

The built pages are joined into one document, so that every link between them stays a link, and Chromium prints it once
the formulas are drawn. A control is shown as three of its pictures. Chromium prints twice: the first print tells on
which page each chapter begins, the second has a table of contents with these numbers.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter

from tools import pages

TARGET = pages.ROOT / "_build" / "noethers-learning-dynamics.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
JOINED = "print.html"  # beside the pages, so that their pictures are found
FRAMES = 3  # of a control

STYLE = """
@page { size: A4; }
html { font-size: 10.5pt; }
body { background: white; }
main { break-before: page; max-width: none; }
h1 { break-before: auto; }
h1, h2, h3 { break-after: avoid; }
figure, img, table.docutils tr, .nl-claim, div.cell_input, mjx-container[display="true"] { break-inside: avoid; }
.headerlink, .nl-find, .nl-explorer-label, .copybtn, button { display: none !important; }
details.hide > summary { display: none; }
.nl-frames { display: grid; gap: 0.5rem; grid-template-columns: repeat(3, 1fr); break-inside: avoid; }
.nl-frames figure { margin: 0; }
.nl-frames img { max-width: 100% !important; }
.nl-frames figcaption { font-size: 0.85em; text-align: center; }
.nl-title { align-items: center; display: flex; flex-direction: column; height: 90vh; justify-content: center; }
.nl-title h1 { break-before: auto; font-size: 28pt; text-align: center; }
.nl-title img { width: 8rem; }
nav.nl-contents { break-before: page; font-size: 0.9em; }
nav.nl-contents li { display: flex; gap: 0.5rem; line-height: 1.35; list-style: none; margin: 0; }
nav.nl-contents li span:first-of-type { border-bottom: 1px dotted #888; flex: 1; }
nav.nl-contents .nl-part { font-weight: 600; margin-top: 0.6rem; }
table { font-size: 0.8em; }
pre { white-space: pre-wrap !important; }
"""

FOOTER = """<div style="width: 100%; text-align: center; font: 8pt sans-serif"><span class="pageNumber"></span></div>"""


def anchor(page: str, target: str = "") -> str:
    """The name, within the joined document, of a place on a page."""
    return f"{page.replace('/', '-')}--{target}" if target else page.replace("/", "-")


def article(page: str, names: Sequence[str], html: Path) -> Tag:
    """A page's article, its names and links made unique to the page."""
    soup = BeautifulSoup((html / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
    found = soup.select_one("article.bd-article")
    for useless in found.select("script, .headerlink, .nl-find"):
        useless.decompose()
    for tag in found.select("[id]"):
        tag["id"] = anchor(page, tag["id"])
    for link in found.select("a[href]"):
        link["href"] = inner_link(page, link["href"], names)
    for control in found.select(".nl-explorer"):
        control.replace_with(frames_of(control, soup))
    for folded in found.select("details"):
        # code that a page folds away is left out; the solution of an exercise is shown
        if "hide" in folded.get("class", []) and "above-input" in folded.get("class", []):
            folded.decompose()
        else:
            folded["open"] = ""
    found["id"] = anchor(page)
    return found


def inner_link(page: str, address: str, names: Sequence[str]) -> str:
    """A link to another page of the book as a link within the document; any other as it is."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return address
    folder = Path(page).parent
    wanted = (folder / parts.path.removesuffix(".html")).as_posix() if parts.path else page
    if wanted not in names:
        return address
    return "#" + anchor(wanted, parts.fragment)


def frames_of(control: Tag, soup: BeautifulSoup) -> Tag:
    """Three pictures of a control: its first, one in the middle, its last."""
    pictures = control.select("img")
    values = json.loads(control["data-values"])
    label = control.select_one(".nl-explorer-label span")
    last = len(pictures) - 1
    shown = sorted({round(last * share / (FRAMES - 1)) for share in range(FRAMES)})
    grid = soup.new_tag("div", attrs={"class": "nl-frames"})
    for index in shown:
        figure = soup.new_tag("figure")
        picture = pictures[index]
        picture.attrs.pop("hidden", None)
        caption = soup.new_tag("figcaption")
        caption.string = f"{label.get_text()} = {values[index]}"
        figure.extend([picture.extract(), caption])
        grid.append(figure)
    return grid


def contents(articles: Mapping[str, Tag], parts: Mapping[str, str], numbers: Mapping[str, int]) -> str:
    """The table of contents, with page numbers where they are known."""
    lines, part = [], None
    for name, found in articles.items():
        if parts[name] and parts[name] != part:
            part = parts[name]
            lines.append(f'<li class="nl-part">{part}</li>')
        title = found.select_one("h1").get_text().strip()
        number = numbers.get(name, "")
        link = f'<a href="#{anchor(name)}">{title}</a>'
        lines.append(f"<li>{link}<span></span><span>{number}</span></li>")
    return f'<nav class="nl-contents"><h2>Contents</h2><ul>{"".join(lines)}</ul></nav>'


def joined(html: Path, numbers: Mapping[str, int]) -> str:
    """The whole book as one HTML document."""
    parts = pages.contents()
    articles = {name: article(name, list(parts), html) for name in parts}
    first = BeautifulSoup((html / f"{next(iter(parts))}.html").read_text(encoding="utf-8"), "html.parser")
    head = [str(tag) for tag in first.select('head link[rel="stylesheet"], head script, head style')]
    mathjax = [str(tag) for tag in first.select("body script") if "mathjax" in str(tag).lower()]
    title = yaml.safe_load((pages.ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    cover = f'<section class="nl-title"><img src="../_static/logo.svg" alt=""><h1>{title}</h1></section>'
    body = "".join(f'<main class="bd-content">{found}</main>' for found in articles.values())
    return (
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{''.join(dict.fromkeys(head + mathjax))}<style>{STYLE}</style></head>"
        f"<body>{cover}{contents(articles, parts, numbers)}{body}</body></html>"
    )


def printed(browser, document: Path, target: Path) -> None:
    """Print one HTML file once its formulas are drawn."""
    page = browser.new_page()
    page.set_default_timeout(600_000)
    page.goto(document.as_uri())
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.emulate_media(media="print", color_scheme="light")
    page.pdf(
        path=str(target),
        format="A4",
        margin={"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
        print_background=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
        tagged=True,
    )
    page.close()


def pages_of(reader: PdfReader) -> dict[str, int]:
    """On which page of a print each named place lies, counted from 1."""
    named = reader.named_destinations.items()
    return {name.lstrip("/"): reader.get_destination_page_number(place) + 1 for name, place in named}


def with_outline(target: Path, headings: Sequence[tuple[int, str, str]]) -> None:
    """Give a print its outline: each heading's depth, text and name."""
    reader = PdfReader(target)
    numbers = pages_of(reader)
    writer = PdfWriter(clone_from=reader)
    above: dict[int, object] = {}
    for depth, text, name in headings:
        if name in numbers:
            page, parent = numbers[name] - 1, above.get(depth - 1)
            above[depth] = writer.add_outline_item(title=text, page_number=page, parent=parent)
    writer.write(target)


def headings_of(html: Path) -> list[tuple[int, str, str]]:
    """Titles of chapters and sections with the names of their places, in reading order."""
    found = []
    names = list(pages.contents())
    for name in names:
        for heading in article(name, names, html).select("h1, h2"):
            depth = int(heading.name[1])
            place = anchor(name) if depth == 1 else heading.find_parent("section")["id"]
            found.append((depth, heading.get_text().strip(), place))
    return found


def main(arguments: list[str]) -> int:
    target = Path(arguments[0]) if arguments else TARGET
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if reason := pages.unfinished() or ("" if program else f"no Chromium among {', '.join(BROWSERS)}; install one"):
        print(f"No PDF was made: {reason}.", file=sys.stderr)
        return 2
    target.parent.mkdir(parents=True, exist_ok=True)
    document = pages.HTML / "book" / JOINED
    names = list(pages.contents())
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            numbers: dict[str, int] = {}
            for _ in range(2):
                document.write_text(joined(pages.HTML, numbers), encoding="utf-8")
                printed(browser, document, target)
                places = pages_of(PdfReader(target))
                numbers = {name: places[anchor(name)] for name in names if anchor(name) in places}
            browser.close()
        with_outline(target, headings_of(pages.HTML))
    finally:
        document.unlink(missing_ok=True)
    missing = [name for name in names if name not in numbers]
    if missing:
        print(f"Printed, but no page number was found for {', '.join(missing)}.", file=sys.stderr)
        return 1
    print(f"The book is printed: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
