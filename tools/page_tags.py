"""A built page, read once: its tags by name and by class, its places to link to."""

from __future__ import annotations

import re
from functools import cache
from html import unescape
from pathlib import Path

from bs4 import BeautifulSoup, Tag


@cache
def _parse(path: Path, changed: int) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def parse(path: Path) -> BeautifulSoup:
    return _parse(path, path.stat().st_mtime_ns)


EVERY = "*"


@cache
def _tags(path: Path, changed: int) -> dict[str, list[Tag]]:
    """Every tag of a page by its name, and by each of its classes behind a dot; one walk in place of many searches."""
    found: dict[str, list[Tag]] = {EVERY: []}
    for tag in _parse(path, changed).descendants:
        if isinstance(tag, Tag):
            for key in (EVERY, tag.name, *(f".{name}" for name in tag.attrs.get("class", ()))):
                found.setdefault(key, []).append(tag)
    return found


def tags(path: Path, *keys: str) -> list[Tag]:
    """All tags of a page with one of these names, or with a class such as ``.math``; ``EVERY`` gives all."""
    known = _tags(path, path.stat().st_mtime_ns)
    return [tag for key in keys for tag in known.get(key, ())]


_PLACE = re.compile(r'<[a-z][^>]*?\sid="([^"]+)"|<a\b[^>]*?\sname="([^"]+)"')


@cache
def _anchors(path: Path, changed: int) -> frozenset[str]:
    """From the text, for most pages are asked by others that have no other use for their tags."""
    text = path.read_text(encoding="utf-8")
    return frozenset(unescape(name) for found in _PLACE.findall(text) for name in found if name)


def has_anchor(path: Path, anchor: str) -> bool:
    return anchor in _anchors(path, path.stat().st_mtime_ns)
