"""The book as one PDF: its joining, piece by piece; printed with a real browser in the slow tests."""

import shutil

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader
from pypdfium2 import PdfDocument

from tools import pages, pdf

NAMES = ["book/index", "book/chapter"]
PROGRAM = next(filter(None, map(shutil.which, pdf.BROWSERS)), None)

CHAPTER = """<html><body><article class="bd-article"><section id="title">
<h1>Title<a class="headerlink" href="#title">#</a></h1><p>See <a href="#below">below</a>,
<a href="index.html#there">there</a>, <a href="https://example.org/x">outside</a>.</p><section id="below"><h2>Below</h2>
<details class="admonition hide above-input"><pre>code that is folded away</pre></details>
<details class="admonition dropdown"><p>the solution</p></details>
<div class="nl-explorer" data-values='["1", "2", "3", "4", "5"]'>
<label class="nl-explorer-label"><span>step</span></label>
<img alt="a"/><img alt="b" hidden/><img alt="c" hidden/><img alt="d" hidden/><img alt="e" hidden/></div>
</section></section><script>1</script></article></body></html>"""


@pytest.fixture
def chapter(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "chapter.html").write_text(CHAPTER)
    return pdf.article("book/chapter", NAMES, tmp_path)


def test_links_lead_to_places_of_the_same_document(chapter):
    links = [link["href"] for link in chapter.select("a")]
    assert links == ["#book-chapter--below", "#book-index--there", "https://example.org/x"]
    assert chapter.select_one("#book-chapter--below h2").get_text() == "Below"
    assert chapter["id"] == "book-chapter"


def test_folded_code_is_left_out_and_solutions_are_shown(chapter):
    assert "code that is folded away" not in chapter.get_text()
    assert chapter.select_one("details").has_attr("open")
    assert "the solution" in chapter.get_text()
    assert not chapter.select("script")


def test_a_control_becomes_three_pictures(chapter):
    captions = [caption.get_text() for caption in chapter.select(".nl-frames figcaption")]
    assert captions == ["step = 1", "step = 3", "step = 5"]
    assert [image["alt"] for image in chapter.select(".nl-frames img")] == ["a", "c", "e"]
    assert not any(image.has_attr("hidden") for image in chapter.select("img"))


def test_the_contents_know_parts_titles_and_pages(chapter):
    listed = BeautifulSoup(pdf.contents({"book/chapter": chapter}, {"book/chapter": "Mechanics"}), "html.parser")
    assert [line.get_text() for line in listed.select("li")] == ["Mechanics", "Title"]
    assert listed.select_one("a")["href"] == "#book-chapter"
    assert [place["data-page"] for place in listed.select("li span[data-page]")] == ["book-chapter"]


def is_filled(page) -> bool:
    """Whether a page shows more than its number, and nothing beyond its margins."""
    dark = page.render(scale=0.5, grayscale=True).to_numpy().squeeze() < 200
    height, width = dark.shape
    side = int(width * 15 / 210)  # a millimetre less than is left free
    beyond = dark[:, :side].sum() + dark[:, -side:].sum()
    return beyond == 0 and dark[: int(height * (1 - 18 / 297))].any()


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine, so no PDF was printed")
def test_the_whole_book_is_printed(tmp_path):
    if reason := pages.unfinished():
        pytest.fail(reason)
    target = tmp_path / "book.pdf"
    assert pdf.main([str(target)]) == 0
    outline = PdfReader(target).outline
    chapters = [entry for entry in outline if not isinstance(entry, list)]
    assert len(chapters) == len(pages.contents())
    assert sum(len(entry) for entry in outline if isinstance(entry, list)) > 100, "sections are in the outline too"

    book = PdfDocument(target)
    starts = [entry.get_dest().get_index() for entry in book.get_toc() if entry.level == 0]
    assert starts == sorted(set(starts)), "chapters begin on pages of their own, in order"
    text = [page.get_textpage().get_text_range() for page in book]
    listed = " ".join("".join(text[1 : starts[0]]).split())
    for chapter, start in zip(chapters, starts, strict=True):
        assert f"{chapter.title} {start + 1} " in f"{listed} ", "the contents name its page"
    for raw in (r"\frac", r"\(", "$$", "Show the code"):
        assert raw not in "".join(text)
    assert [number for number, page in enumerate(book, 1) if not is_filled(page)] == []
    assert not (pages.HTML / "book" / pdf.JOINED).exists()


def test_without_a_finished_book_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(pages, "unfinished", lambda: "it was never built")
    assert pdf.main([str(tmp_path / "book.pdf")]) == 2
    assert "No PDF was made: it was never built" in capsys.readouterr().err
