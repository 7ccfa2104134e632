"""Every built page in a real browser: formulas, controls, links, both themes, a phone's width, accessibility.

Pages are opened from their files, as a reader opens them; whatever would be loaded from a network fails.
"""

import shutil
from urllib.parse import urlsplit

import pytest

from tools import pages

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, BROWSERS)), None)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
NAMES = list(pages.contents())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine, so no page was opened in one"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if reason := pages.unfinished():
        pytest.fail(reason)
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        program = driver.chromium.launch(executable_path=PROGRAM, args=options)
        yield program
        program.close()


@pytest.fixture(scope="module")
def opened(browser):
    """Each page once, with what went wrong while it was opened."""
    context = browser.new_context(viewport=DESK)
    context.set_default_timeout(120_000)  # a busy machine is slow, not wrong
    known = {}

    def open_page(name):
        if name not in known:
            page = context.new_page()
            errors, addresses = [], []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("request", lambda request: addresses.append(request.url))
            page.emulate_media(reduced_motion="reduce")
            page.goto((pages.HTML / f"{name}.html").as_uri())
            page.wait_for_load_state("load")
            page.evaluate("() => window.MathJax?.startup?.promise")
            known.clear()  # one page at a time stays open
            known[name] = page, errors, addresses
        return known[name]

    yield open_page
    context.close()


@pytest.fixture(scope="module", params=NAMES)  # of the module: all tests of one page follow one another
def name(request):
    return request.param


def test_nothing_fails_and_nothing_comes_from_elsewhere(opened, name):
    _, errors, addresses = opened(name)
    assert errors == []
    assert {urlsplit(address).scheme for address in addresses} <= {"file", "data"}


def test_every_formula_is_drawn(opened, name):
    page, *_ = opened(name)
    wanted = len(pages.parse(pages.HTML / f"{name}.html").select("article .math"))
    assert page.locator("article .math mjx-container").count() >= wanted
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0
    text = page.locator("article").inner_text()
    assert not any(mark in text for mark in (r"\(", r"\[", "$$", r"\frac"))


def shown(control):
    return control.evaluate("box => [...box.querySelectorAll('img')].filter(image => !image.hidden).map(i => i.alt)")


def test_every_control_changes_its_picture_by_mouse_and_by_key(opened, name):
    page, *_ = opened(name)
    for control in page.locator(".nl-explorer").all():
        slider = control.locator("input")
        seen = [shown(control)]
        slider.focus()
        for key in ("Home", "ArrowRight"):
            page.keyboard.press(key)
            seen.append(shown(control))
        box = slider.bounding_box()
        slider.click(position={"x": box["width"] - 2, "y": box["height"] / 2})
        seen.append(shown(control))
        assert all(len(pictures) == 1 for pictures in seen)
        assert len({str(pictures) for pictures in seen[1:]}) == 3, "two positions of the slider show one picture"
        assert slider.get_attribute("aria-valuetext") == control.locator("output").inner_text()


def test_motion_waits_for_the_reader_and_can_be_paused(browser, opened, name):
    page, *_ = opened(name)  # which asks for reduced motion
    buttons = page.locator(".nl-explorer button")
    assert all(not button.is_visible() for button in buttons.all())
    if not buttons.count():
        return
    context = browser.new_context(viewport=DESK, reduced_motion="no-preference")
    lively = context.new_page()
    lively.goto((pages.HTML / f"{name}.html").as_uri(), timeout=120_000)
    for control in lively.locator(".nl-explorer:has(button)").all():
        button, slider = control.locator("button"), control.locator("input")
        slider.evaluate("slider => { slider.value = 0; slider.dispatchEvent(new Event('input')) }")
        lively.wait_for_timeout(600)
        assert slider.input_value() == "0", "it moves by itself"
        button.click()
        assert button.inner_text() == "Pause"
        lively.wait_for_function("slider => Number(slider.value) >= 2", arg=slider.element_handle(), timeout=30_000)
        button.click()
        stopped = slider.input_value()
        lively.wait_for_timeout(600)
        assert slider.input_value() == stopped
    context.close()


def test_a_figure_is_shown_in_full_size_on_a_tap(opened, name):
    page, *_ = opened(name)
    pictures = page.locator(".bd-article .cell_output img:visible, .bd-article figure img:visible")
    if not pictures.count():
        return
    picture = pictures.first
    picture.click()
    dialog = page.locator("dialog.nl-full-size")
    assert dialog.is_visible()
    assert dialog.locator("img").get_attribute("alt") == picture.get_attribute("alt")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_what_is_wider_than_a_phone_shows_that_it_scrolls(opened, name):
    page, *_ = opened(name)
    page.set_viewport_size(PHONE)
    try:
        without_a_shadow = """() => [
                ...document.querySelectorAll("article div.math, article .pst-scrollable-table-container")
            ].filter(box => box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible")
            .filter(box => !getComputedStyle(box).backgroundImage.includes("gradient")).length"""
        assert page.evaluate(without_a_shadow) == 0
    finally:
        page.set_viewport_size(DESK)


def test_no_page_is_wider_than_a_phone(opened, name):
    page, *_ = opened(name)
    page.set_viewport_size(PHONE)
    try:
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    finally:
        page.set_viewport_size(DESK)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(opened, name, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page, *_ = opened(name)
    page.evaluate("theme => { document.documentElement.dataset.theme = theme }", theme)
    # The theme's buttons fade from one colour to the other: what is judged is where they arrive.
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")
    page.mouse.move(0, 0)  # nothing is judged as it looks under a pointer
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    said = [f"{fault['id']}: {fault['help']}: {fault['nodes'][0]['html'][:200]}" for fault in serious]
    assert said == []
