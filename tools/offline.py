"""Build a book that needs no network to be read: ``_build/offline/html``.

The libraries that pages otherwise take from a CDN come from npm, once, in the exact versions below, checked against
their published digests. ``python -m tools.offline`` fetches, builds, looks for anything that would still be loaded
from elsewhere, and, where a Chromium is installed, opens every page with the network cut off and looks whether the
mathematics and the widgets are really there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from bs4 import BeautifulSoup

from tools import pages

ROOT = pages.ROOT
OFFLINE = ROOT / "_build" / "offline"
HTML = OFFLINE / "html"
STATIC = OFFLINE / "static"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Library:
    """An npm package, the digest of its archive as the registry publishes it, and the files taken from it."""

    name: str
    version: str
    integrity: str
    files: dict[str, str]  # path in the package: path among the book's static files


LIBRARIES = (
    Library(
        "mathjax",
        "3.2.2",
        "sha512-Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        {"es5/tex-svg-full.js": "offline/mathjax.js"},
    ),
    Library(
        "requirejs",
        "2.3.8",
        "sha512-7/cTSLOdYkNBNJcDMWf+luFvMriVm7eYxp4BcFCsAX0wF421Vyce5SXP17c+Jd5otXKGNehIonFlyQXSowL6Mw==",
        {"require.js": "offline/require.js"},
    ),
    Library(
        "@jupyter-widgets/html-manager",
        "1.0.15",
        "sha512-5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
        {
            f"dist/{name}": f"offline/html-manager/dist/{name}"
            for name in ("embed-amd.js", "1551f4f60c37af51121f.woff2")  # the second: the icons of buttons
        },
    ),
)


class OfflineError(RuntimeError):
    """The offline book could not be made; the message says what to do."""


def verified(archive: bytes, library: Library) -> bytes:
    """The archive, if it is the published one."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != library.integrity:
        raise OfflineError(
            f"{library.name} {library.version} from npm has the digest {found}, published is {library.integrity}; "
            "it was changed on its way and is not used: try another registry"
        )
    return archive


def pack(library: Library) -> bytes:
    """Let npm fetch a package, by the reader's own npm settings, without its dependencies or scripts."""
    npm = shutil.which("npm")
    if npm is None:
        raise OfflineError("npm was not found, and the offline book takes its libraries from it; install Node.js")
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"{library.name}@{library.version}"
        run = subprocess.run([npm, "pack", "--silent", wanted], cwd=folder, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or len(archives) != 1:
            raise OfflineError(
                f"npm could not fetch {wanted}: {run.stderr.strip() or 'no archive'}; is there a network?"
            )
        return archives[0].read_bytes()


def fetch(library: Library, static: Path) -> None:
    """Put a library's files among the static ones, unless they are there already."""
    stamp = static / "offline" / f"{library.name.replace('/', '-')}.integrity"
    files = [static / target for target in library.files.values()]
    if stamp.is_file() and stamp.read_text() == library.integrity and all(map(Path.is_file, files)):
        return
    stamp.unlink(missing_ok=True)
    archive = io.BytesIO(verified(pack(library), library))
    with tarfile.open(fileobj=archive) as package:
        for source, target in library.files.items():
            member = package.extractfile(f"package/{source}")  # read, never unpacked: no path of theirs is used
            (static / target).parent.mkdir(parents=True, exist_ok=True)
            (static / target).write_bytes(member.read())
    stamp.write_text(library.integrity)


def configuration(root: Path, static: Path) -> dict:
    """The book's settings with every library taken from the static files."""
    settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    sphinx = settings["sphinx"]["config"]
    sphinx["html_static_path"] = [*sphinx["html_static_path"], str(static)]
    sphinx["mathjax_path"] = "offline/mathjax.js"
    # Relative to a page, all of which lie one folder below the root.
    sphinx["html_js_files"] = [["book.js", {"priority": 1, "data-widgets": "../_static/offline/html-manager/dist"}]]
    sphinx["nb_ipywidgets_js"] = {"offline/require.js": {}, "offline/html-manager/dist/embed-amd.js": {}}
    return settings


def build(root: Path = ROOT) -> None:
    """Build into ``_build/offline`` and leave the pages in ``_build/offline/html``."""
    settings = OFFLINE / "_config.yml"
    text = yaml.safe_dump(configuration(root, STATIC), allow_unicode=True, sort_keys=False)  # require.js comes first
    settings.write_text(text, encoding="utf-8")
    shutil.rmtree(HTML, ignore_errors=True)
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        ".",
        "--all",
        "-W",
        "-n",
        "--keep-going",
        "--quiet",
    ]
    where = ["--config", os.path.relpath(settings, root), "--path-output", os.path.relpath(OFFLINE, root)]
    run = subprocess.run([*command, *where], cwd=root, stdout=subprocess.DEVNULL)
    if run.returncode:
        raise OfflineError("the book does not build; mend what is named above")
    shutil.move(OFFLINE / "_build" / "html", HTML)
    shutil.rmtree(OFFLINE / "_build")


# --- what a page still wants from elsewhere ---------------------------------------------------------------------

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


def outside(path: Path) -> list[str]:
    """Addresses on the network that a page or a style sheet loads by itself; links to click do not count."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return STYLE_URL.findall(text)
    page = BeautifulSoup(text, "html.parser")
    found = [tag.get(LOADING[tag.name]) for tag in page.find_all(list(LOADING))]
    found += [tag.get("href") for tag in page.find_all("link") if FETCHED & set(tag.get("rel") or [])]
    found += [
        address.split()[0] for tag in page.select("[srcset]") for address in tag["srcset"].split(",") if address.strip()
    ]
    found = [address for address in found if address and is_remote(address)]
    for tag in page.find_all("style"):
        found += STYLE_URL.findall(tag.get_text())
    for tag in page.select("[style]"):
        found += STYLE_URL.findall(tag["style"])
    for tag in page.find_all("script"):
        found += IMPORT.findall(tag.get_text())
    return found


def is_remote(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ftp")


def still_outside(html: Path) -> list[str]:
    files = sorted([*html.rglob("*.html"), *html.rglob("*.css")])
    return [f"{path.relative_to(html)} loads {address}" for path in files for address in outside(path)]


# --- a browser without a network ----------------------------------------------------------------------------------


def browser() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def opened(program: str, path: Path) -> BeautifulSoup:
    """A page after its scripts have run, every address on the network being unreachable."""
    with tempfile.TemporaryDirectory() as profile:
        command = [program, "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command += [
            f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=30000",
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--no-sandbox")  # Chromium refuses to run as root with it
        run = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=180)
    if run.returncode or "</html>" not in run.stdout:
        raise OfflineError(f"{program} could not open {path}: {run.stderr.strip()[-500:]}")
    return BeautifulSoup(run.stdout, "html.parser")


def not_drawn(source: BeautifulSoup, drawn: BeautifulSoup) -> list[str]:
    """What of a page the browser did not bring to life."""
    faults = []
    formulas = len(source.select("article .math"))
    if len(drawn.select("article .math mjx-container")) < formulas:
        faults.append(f"shows {len(drawn.select('article .math mjx-container'))} of {formulas} formulas")
    faults += [f"has the faulty formula {tag.get_text()!r}" for tag in drawn.select("[data-mjx-error]")]
    views = len(source.select('script[type="application/vnd.jupyter.widget-view+json"]'))
    if len(drawn.select(".widget-subarea .jupyter-widgets, .jupyter-widgets.lm-Widget")) < views:
        faults.append(f"does not draw its {views} widgets")
    return faults


def seen_by(program: str, html: Path) -> list[str]:
    found = []
    for name in pages.contents():
        path = html / f"{name}.html"
        found += [f"{name} {fault}" for fault in not_drawn(pages.parse(path), opened(program, path))]
    return found


def main() -> int:
    try:
        for library in LIBRARIES:
            fetch(library, STATIC)
        build()
        program = browser()
        faults = pages.faults(html=HTML) + still_outside(HTML)
        faults += seen_by(program, HTML) if program and not faults else []
    except OfflineError as error:
        print(error, file=sys.stderr)
        return 1
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
        print(f"{len(faults)} faults in the offline book.", file=sys.stderr)
        return 1
    (HTML / pages.SEAL).write_text(pages.fingerprint(), encoding="utf-8")
    how = f"and drawn by {Path(program).name} without a network" if program else "(no Chromium here to try it in)"
    print(f"The offline book is built, holds all it needs {how}: open {(HTML / 'index.html').as_uri()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
