"""What a page or a style sheet makes a browser load by itself, from a network."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from tools.page_tags import EVERY, tags

# What makes a browser load something by itself.
LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
FETCHED = {"stylesheet", "preload", "modulepreload", "icon", "shortcut", "preconnect", "dns-prefetch", "prefetch"}
STYLE_URL = re.compile(r"""(?:@import\s+|url\(\s*)["']?((?:https?:)?//[^"')\s]+)""")
IMPORT = re.compile(r"""\bimport\s*\(?\s*["']((?:https?:)?//[^"']+)""")


def remote(path: Path) -> list[str]:
    """Addresses on the network that a page or a style sheet loads by itself; links to click do not count."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return STYLE_URL.findall(text)
    found = [tag.get(LOADING[tag.name]) for tag in tags(path, *LOADING)]
    found += [tag.get("href") for tag in tags(path, "link") if FETCHED & set(tag.get("rel") or [])]
    every = tags(path, EVERY)
    of_sizes = [tag["srcset"].split(",") for tag in every if "srcset" in tag.attrs]
    found += [address.split()[0] for addresses in of_sizes for address in addresses if address.strip()]
    found = [address for address in found if address and is_remote(address)]
    for tag in tags(path, "style"):
        found += STYLE_URL.findall(tag.get_text())
    for tag in every:
        found += STYLE_URL.findall(tag.attrs.get("style", ""))
    for tag in tags(path, "script"):
        found += IMPORT.findall(tag.get_text())
    return found


def is_remote(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ftp")
