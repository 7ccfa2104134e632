"""The whole book as one PDF: ``python -m tools.pdf [FILE]``, after ``make book``.

The built pages are joined into one document, so that every link between them stays a link, and Chromium prints it once
the formulas are drawn. A control is shown as three of its pictures. Chromium draws once and prints twice: the first
print tells on which page each chapter begins, the second has a table of contents with these numbers, tags for screen
readers and an outline.
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
MARGIN = {"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
VIEW = {"width": round((210 - 2 * 16) * 96 / 25.4), "height": 1000}  # between the margins, at 96 pixels an inch

STYLE = Path(__file__).with_name("print.css").read_text(encoding="utf-8")

# A path for each letter instead of a reference to a shared one, and no menu: half as many elements to lay out.
MATHJAX = "window.MathJax.svg = {fontCache: 'none'}; window.MathJax.options.enableMenu = false;"

# For the page numbers: all lies where it will, and nothing is drawn.
UNSEEN = "body { visibility: hidden; }"

FILL_IN = """numbers => document.querySelectorAll("[data-page]").forEach(
    place => { place.textContent = numbers[place.dataset.page] ?? "" })"""

# Chromium knows the place of what a link leads to, be the link hidden: one to each heading.
LINK_HEADINGS = """() => {
    const links = document.createElement("div");
    const headings = [...document.querySelectorAll("main h1, main h2")].map(heading => {
        const place = heading.tagName === "H1" ? heading.closest("article") : heading.closest("section");
        const link = links.appendChild(document.createElement("a"));
        link.href = "#" + place.id;
        return [Number(heading.tagName[1]), heading.textContent.trim(), place.id];
    });
    links.hidden = true;
    document.body.append(links);
    return headings;
}"""

# What scrolls on a screen is cut off on paper.
CUT_OFF = """() => [
        ...document.querySelectorAll("main :is(div.math, pre, table, img, .pst-scrollable-table-container)")
    ]
    .filter(box => box.scrollWidth > box.clientWidth + 2 || box.getBoundingClientRect().right > innerWidth + 2)
    .map(box => `${box.closest("article").id}: ${box.textContent.trim().slice(0, 60)}`)"""

FOOTER = """<div style="width: 100%; text-align: center; font: 8pt sans-serif"><span class="pageNumber"></span></div>"""


def anchor(page: str, target: str = "") -> str:
    """The name, within the joined document, of a place on a page."""
    return f"{page.replace('/', '-')}--{target}" if target else page.replace("/", "-")


def article(page: str, names: Sequence[str], html: Path) -> Tag:
    """A page's article, its names and links made unique to the page."""
    text = (html / f"{page}.html").read_text(encoding="utf-8")
    soup = BeautifulSoup(text[text.index("<article") : text.rindex("</article>")], "html.parser")
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


def contents(articles: Mapping[str, Tag], parts: Mapping[str, str]) -> str:
    """The table of contents, with places for the page numbers."""
    lines, part = [], None
    for name, found in articles.items():
        if parts[name] and parts[name] != part:
            part = parts[name]
            lines.append(f'<li class="nl-part">{part}</li>')
        title = found.select_one("h1").get_text().strip()
        link = f'<a href="#{anchor(name)}">{title}</a>'
        lines.append(f'<li>{link}<span></span><span data-page="{anchor(name)}"></span></li>')
    return f'<nav class="nl-contents"><p class="nl-heading">Contents</p><ul>{"".join(lines)}</ul></nav>'


def joined(html: Path) -> str:
    """The whole book as one HTML document."""
    parts = pages.contents()
    articles = {name: article(name, list(parts), html) for name in parts}
    first = BeautifulSoup((html / f"{next(iter(parts))}.html").read_text(encoding="utf-8"), "html.parser")
    head = [str(tag) for tag in first.select('head link[rel="stylesheet"], head script, head style')]
    mathjax = [str(tag) for tag in first.select("body script") if "mathjax" in str(tag).lower()]
    title = yaml.safe_load((pages.ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    cover = f'<section class="nl-title"><img src="../_static/logo.svg" alt=""><p>{title}</p></section>'
    body = "".join(f'<main class="bd-content">{found}</main>' for found in articles.values())
    return (
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{''.join(dict.fromkeys(head + mathjax))}<script>{MATHJAX}</script>"
        f"<style>{STYLE}</style></head><body>{cover}{contents(articles, parts)}{body}</body></html>"
    )


def drawn(browser, document: Path):
    """An HTML file opened, once its formulas are drawn."""
    page = browser.new_page(viewport=VIEW)
    page.set_default_timeout(600_000)
    page.emulate_media(media="print", color_scheme="light")
    page.goto(document.as_uri())
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    return page


def pages_of(target: Path) -> dict[str, int]:
    """On which page of a print each named place lies, counted from 1."""
    reader = PdfReader(target)
    named = reader.named_destinations.items()
    return {name.lstrip("/"): reader.get_destination_page_number(place) + 1 for name, place in named}


def page_numbers(page, target: Path) -> dict[str, int]:
    """The same, from a first print."""
    style = page.add_style_tag(content=UNSEEN)
    page.pdf(path=str(target), format="A4", margin=MARGIN, print_background=True)
    style.evaluate("style => style.remove()")
    return pages_of(target)


def printed(page, target: Path) -> None:
    """The print to keep, with page numbers and tags."""
    page.pdf(
        path=str(target),
        format="A4",
        margin=MARGIN,
        print_background=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
        tagged=True,
    )


def with_outline(target: Path, headings: Sequence[tuple[int, str, str]]) -> None:
    """Give a print its outline: each heading's depth, text and name. Chromium's own says some headings twice."""
    numbers = pages_of(target)
    writer = PdfWriter(target, incremental=True)
    above: dict[int, object] = {}
    for depth, text, name in headings:
        above[depth] = writer.add_outline_item(title=text, page_number=numbers[name] - 1, parent=above.get(depth - 1))
    writer.write(target)


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
        document.write_text(joined(pages.HTML), encoding="utf-8")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            page = drawn(browser, document)
            headings = page.evaluate(LINK_HEADINGS)
            numbers = page_numbers(page, target)
            page.evaluate(FILL_IN, numbers)
            cut_off = page.evaluate(CUT_OFF)
            printed(page, target)
            browser.close()
        with_outline(target, headings)
    finally:
        document.unlink(missing_ok=True)
    missing = [name for name in names if anchor(name) not in numbers]
    faults = [f"no page number was found for {name}" for name in missing]
    faults += [f"wider than the page, and cut off: {box}" for box in cut_off]
    if faults:
        print("Printed, with faults:", *faults, sep="\n", file=sys.stderr)
        return 1
    print(f"The book is printed: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
