"""Sliders over pre-drawn frames, and the style of the figures."""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from bs4 import BeautifulSoup

from nlcompanion.book.explorers import explore
from nlcompanion.book.plotting import COLORS, convergence, order_guide, panels, use_style


def draw(value):
    figure, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, value])
    return figure


def words(value):
    return f'a "line" to {value} <here>'


def test_every_value_is_a_frame_and_no_figure_stays_open():
    explorer = explore(draw, [0.5, 1.0, 2.0], name="η", describe=words)
    assert explorer.values == ("0.5", "1", "2")
    assert explorer.start == 1
    assert len(set(explorer.frames)) == 3
    assert not plt.get_fignums()


def test_one_output_has_both_forms():
    explorer = explore(draw, [1, 2, 3], name="n", describe=words)
    bundle = explorer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.widget.model_id
    page = BeautifulSoup(bundle["text/html"], "html.parser")
    assert len(page.select(".nl-explorer img")) == 3
    assert bundle["text/plain"] == "n: 1, 2, 3"


def test_the_html_control_has_a_name_and_its_value_as_text():
    page = BeautifulSoup(explore(draw, [0.5, 1.0], name='β "x"', describe=words, start=0).html, "html.parser")
    slider = page.select_one('input[type="range"]')
    assert slider["aria-label"] == 'β "x"'
    assert slider["aria-valuetext"] == page.select_one("output").text == "0.5"
    assert json.loads(page.select_one(".nl-explorer")["data-values"]) == ["0.5", "1"]
    shown = [image for image in page.select("img") if not image.has_attr("hidden")]
    assert [image["alt"] for image in shown] == [words(0.5)]
    assert "http" not in page.select_one("script").text


def test_the_widgets_link_lives_in_the_browser():
    slider, stack = explore(draw, [1, 2], name="n", describe=words, start=0).widget.children
    assert [label for label, _ in slider.options] == ["1", "2"]
    slider.index = 1
    assert stack.selected_index == 0  # no kernel moves it


def test_a_motion_has_a_button_that_the_reader_presses():
    still, moving = (explore(draw, [1, 2, 3], name="n", describe=words, motion=motion) for motion in (False, True))
    assert "<button" not in still.html
    button = BeautifulSoup(moving.html, "html.parser").select_one(".nl-explorer button")
    assert button.has_attr("hidden")  # until the script finds that motion is welcome
    assert "prefers-reduced-motion" in moving.html
    head, stack = moving.widget.children
    play, slider = head.children
    assert (play.min, play.max, play.value) == (0, 2, slider.index)
    assert not play.playing
    assert stack.selected_index == slider.index


def test_bad_arguments():
    with pytest.raises(ValueError, match="1 values"):
        explore(draw, [1], name="n", describe=words)
    with pytest.raises(ValueError, match="no index"):
        explore(draw, [1, 2], name="n", describe=words, start=2)
    with pytest.raises(TypeError, match="Figure"):
        explore(lambda value: value, [1, 2], name="n", describe=words)
    with pytest.raises(ValueError, match="3 titles for 2 panels"):
        panels(2, titles=("a", "b", "c"))
    plt.close("all")


def test_order_guide_has_its_slope():
    figure, axis = panels()
    order_guide(axis, [0.1, 0.2, 0.4], 8.0, 3)
    y = axis.lines[0].get_ydata()
    assert y[-1] == 8.0
    assert y[0] == pytest.approx(8.0 / 4**3)
    with pytest.raises(ValueError, match="positive"):
        order_guide(axis, [0.0, 1.0], 1.0, 1)
    plt.close(figure)


DIMMED = 0.92  # what the dark theme leaves of a figure's brightness (assets/book.css)


def luminance(colour, brightness=1.0):
    """Relative luminance as WCAG 2 defines it."""
    parts = [brightness * int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour, ground="#FFFFFF", brightness=1.0):
    darker, lighter = sorted(luminance(each, brightness) for each in (colour, ground))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("role", COLORS)
@pytest.mark.parametrize("brightness", [1.0, DIMMED], ids=["light", "dark"])
def test_every_colour_stands_out_from_the_ground_of_figures(role, brightness):
    assert contrast(COLORS[role], brightness=brightness) >= 3


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000") == pytest.approx(21)
    assert contrast("#E69F00") < 3  # the palette's own amber
    css = (Path(__file__).resolve().parents[2] / "assets" / "book.css").read_text(encoding="utf-8")
    assert f"filter: brightness({DIMMED})" in css


def test_studies_draw_in_these_colours():
    studies = (Path(__file__).resolve().parents[2] / "studies").glob("*.py")
    own = {path.name: re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8")) for path in studies}
    assert {name: colours for name, colours in own.items() if colours} == {}


def test_colours_are_distinct_and_the_style_applies():
    assert len(set(COLORS.values())) == len(COLORS)
    with plt.rc_context():
        use_style()
        assert plt.rcParams["axes.spines.top"] is False


def test_convergence_draws_curves_and_guides():
    figure, axis = panels()
    convergence(axis, [0.2, 0.1], {"a": [4e-2, 1e-2], "b": [0.2, 0.1]}, guides={"a": 2})
    assert len(axis.lines) == 3
    guide = axis.lines[2].get_ydata()
    assert guide[-1] / guide[0] == pytest.approx(4)
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0.2", "0.1"]
    with pytest.raises(ValueError, match="no curve named c"):
        convergence(axis, [0.2, 0.1], {"a": [1, 1]}, guides={"c": 2})
    with pytest.raises(ValueError, match="no curve named b"):
        convergence(axis, [0.2, 0.1], {"a": [1, 1]}, control="b")
    with pytest.raises(ValueError, match="not positive"):
        convergence(axis, [0.2, 0.1], {"a": [1, 0]})
    plt.close(figure)


def test_measured_orders_are_written_behind_the_names():
    figure, axis = panels()
    convergence(axis, [0.2, 0.1], {"two": [0.4, 0.1], "minus": [0.3, 0.6]}, orders=True)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["two: 2.00", "minus: −1.00"]
    plt.close(figure)


def test_only_a_control_has_the_colour_of_controls():
    figure, (left, right) = panels(2)
    curves = {name: [0.2, 0.1] for name in "abcdef"}
    convergence(left, [0.2, 0.1], curves)
    convergence(right, [0.2, 0.1], curves, control="c")
    assert COLORS["control"] not in [line.get_color() for line in left.lines]
    assert [line.get_label() for line in right.lines if line.get_color() == COLORS["control"]] == ["c"]
    plt.close(figure)
