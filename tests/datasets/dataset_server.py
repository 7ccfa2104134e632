"""A web server on this machine that answers well or badly, and small data sets in the official layouts."""

import gzip
import hashlib
import io
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image


class Server(ThreadingHTTPServer):
    """Serves ``files`` (by path). ``script`` says how: one item per request, then good answers.

    An item is a pair of a manner and its value: ``("status", 500)``, ``("wrong", b"...")``, ``("hang", None)``,
    ``("stall", n)`` and ``("cut", n)`` after n bytes, ``("drip", seconds)`` per byte, ``("endless", None)``,
    ``("unranged", None)`` for a whole answer whatever part was asked for, ``("mislabelled", None)`` for a file
    that is called gzip-encoded.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[tuple[str, object]] = []
        self.log: list[tuple[str, str | None]] = []  # path and Range of each request
        self.stop = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def close(self) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is what many of these tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.server.log.append((self.path, self.headers.get("Range")))
        manner, value = self.server.script.pop(0) if self.server.script else ("good", None)
        body = self.server.files.get(self.path.lstrip("/"))
        if manner == "hang":
            self.server.stop.wait(5)
        elif manner == "status" or body is None:
            self.send_error(value if manner == "status" else 404)
        elif manner == "wrong":
            self._headers(200, len(value))
            self.wfile.write(value)
        else:
            self._serve(body, manner, value)

    def _headers(self, status: int, length: int | None, **more: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _serve(self, body: bytes, manner: str, value) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and manner != "unranged":
            start = int(asked[1])
            rest = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
            self._headers(206, len(body), Content_Range=rest)
        elif manner == "endless":
            self._headers(200, None)
        elif manner == "mislabelled":
            self._headers(200, len(body), Content_Encoding="gzip")
        else:
            self._headers(200, len(body))
        if manner in ("cut", "stall"):
            self.wfile.write(body[:value])
            self.wfile.flush()
            if manner == "stall":
                self.server.stop.wait(5)
        elif manner == "drip":
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                if self.server.stop.wait(value):
                    return
        elif manner == "endless":
            while not self.server.stop.is_set():
                self.wfile.write(bytes(1 << 16))
        else:
            self.wfile.write(body)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def idx(array: np.ndarray) -> bytes:
    """The idx file of an array of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def kmnist_files(count: int, prefix: str, seed: int) -> dict[str, bytes]:
    """The two gzipped idx files of a split, by their official names."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = generator.permutation(np.arange(count, dtype=np.uint8) % 10)
    return {
        f"{prefix}-images-idx3-ubyte.gz": gzip.compress(idx(images), mtime=0),
        f"{prefix}-labels-idx1-ubyte.gz": gzip.compress(idx(labels), mtime=0),
    }


WNIDS = ("n00000007", "n00000003", "n00000005")  # not sorted, as in the official list
TRAIN, VAL, SIDE = 4, 2, 16


def colour(label: int, number: int) -> tuple[int, int, int]:
    return 40 + 60 * label, 40 + 40 * number, 90


def jpeg(rgb: tuple[int, int, int], side: int = SIDE, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), rgb).convert(mode).save(out, "JPEG", quality=95)
    return out.getvalue()


def tiny_files() -> dict[str, bytes]:
    """A data set of 3 classes with 4 training and 2 validation images each; one training image is grey."""
    root = "tiny-imagenet-200"
    files = {
        f"{root}/wnids.txt": "\n".join(WNIDS).encode(),
        f"{root}/words.txt": "".join(f"{w}\tthing {w[-1]}, stuff\n" for w in sorted(WNIDS)).encode(),
        f"{root}/test/images/test_0.JPEG": jpeg((0, 0, 0)),
    }
    lines = []
    for label, wnid in enumerate(WNIDS):
        files[f"{root}/train/{wnid}/{wnid}_boxes.txt"] = b""
        for number in range(TRAIN):
            grey = (label, number) == (1, 2)
            image = jpeg(colour(label, number), mode="L" if grey else "RGB")
            files[f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG"] = image
        for number in range(VAL):
            name = f"val_{number * len(WNIDS) + label}.JPEG"
            files[f"{root}/val/images/{name}"] = jpeg(colour(label, number))
            lines.append(f"{name}\t{wnid}\t0\t0\t9\t9\n")
    files[f"{root}/val/val_annotations.txt"] = "".join(lines).encode()
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def zip_bytes(files: dict[str, bytes], extra: tuple[tuple[zipfile.ZipInfo, bytes], ...] = ()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("tiny-imagenet-200")
        for name, content in files.items():
            archive.writestr(name, content)
        for info, content in extra:
            archive.writestr(info, content)
    return out.getvalue()


def tar_bytes(files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = (), mode: str = "w:gz", **options) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            if info.size <= 1 << 20:
                archive.addfile(info, io.BytesIO(bytes(info.size)))
            else:  # the header alone: what it announces does not follow
                header = info.tobuf(tarfile.GNU_FORMAT)
                archive.fileobj.write(header)
                archive.offset += len(header)
    return out.getvalue()
