"""A built page, read once: its tags by name and by class, its places to link to."""

from __future__ import annotations

from functools import cache
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


@cache
def _anchors(path: Path, changed: int) -> frozenset[str]:
    every = _tags(path, changed)[EVERY]
    return frozenset(tag.get("id") or tag.get("name") for tag in every if "id" in tag.attrs or tag.name == "a")


def has_anchor(path: Path, anchor: str) -> bool:
    return anchor in _anchors(path, path.stat().st_mtime_ns)
