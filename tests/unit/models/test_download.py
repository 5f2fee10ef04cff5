"""Weights at an address: whole and checked, on from where a broken connection left them, or an error that helps."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from modelyard.errors import ChecksumMismatch, DiskFull, PullFailed
from modelyard.models import pull as pulling
from modelyard.models.catalog import CatalogEntry, Source
from modelyard.models.download import READ_SIZE, download
from modelyard.models.progress import Stage
from modelyard.models.pull import pull, remove

WEIGHTS = hashlib.shake_256(b"weights").digest(3_000_000)


class FileServer(ThreadingHTTPServer):
    """Serves one file, each answer cut or refused as the test says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = WEIGHTS
        self.files: dict[str, bytes] = {}
        """The content of other paths."""
        self.script: list[int] = []
        """For each answer: a status, or the number of bytes after which the connection breaks (over 1000)."""
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.knows_ranges = True

    def url(self, path: str = "/w.gguf") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked, self.headers.get("Authorization")))
        step = server.script.pop(0) if server.script else 0
        if 0 < step < 1000:
            self.send_error(step)
            return
        begin = int(re.findall(r"\d+", asked)[0]) if asked and server.knows_ranges else 0
        self.send_response(206 if begin else 200)
        content = server.files.get(self.path, server.content)
        rest = content[begin:]
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: step or None])
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    made = FileServer()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []

    def patched(*args: Any, **given: Any) -> None:
        download(*args, **given, pause=pauses.append)

    monkeypatch.setattr(pulling, "download", patched)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return pauses


def entry(**source: Any) -> CatalogEntry:
    given = {"sha256": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS), "license": "MIT", **source}
    return CatalogEntry(name="some", engine="llama.cpp", model_path="w.gguf", source=Source(**given))


def ranges(server: FileServer) -> list[str | None]:
    return [asked for _, asked, _ in server.requests]


def test_a_file_is_fetched_checked_and_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    for _ in range(2):
        assert pull(entry(url=server.url()), tmp_path).read_bytes() == WEIGHTS
    assert len(server.requests) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".w.gguf.pulled", "w.gguf"]


def test_after_a_break_only_the_rest_is_fetched(server: FileServer, tmp_path: Path, no_pause: list[float]) -> None:
    server.script = [10 * READ_SIZE, 20 * READ_SIZE + 5]
    assert pull(entry(url=server.url()), tmp_path).read_bytes() == WEIGHTS
    assert ranges(server) == [None, f"bytes={10 * READ_SIZE}-", f"bytes={30 * READ_SIZE}-"]
    assert no_pause == [], "each try has brought something"


def test_the_next_pull_goes_on_where_the_last_one_ended(server: FileServer, tmp_path: Path, no_pause) -> None:
    server.script = [10 * READ_SIZE, *[503] * 5]
    with pytest.raises(PullFailed, match=r"answers with 503 .*; what has come is kept"):
        pull(entry(url=server.url()), tmp_path)
    assert no_pause == [1, 2, 4, 8]
    assert not (tmp_path / "w.gguf").exists()
    assert pull(entry(url=server.url()), tmp_path).read_bytes() == WEIGHTS
    assert ranges(server)[-1] == f"bytes={10 * READ_SIZE}-"


def test_a_server_without_ranges_sends_it_all_again(server: FileServer, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.script = [10 * READ_SIZE]
    assert pull(entry(url=server.url()), tmp_path).read_bytes() == WEIGHTS
    assert ranges(server) == [None, f"bytes={10 * READ_SIZE}-"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_repeated_and_shows_no_secret(server: FileServer, tmp_path: Path, status: int) -> None:
    server.script = [status]
    url = server.url("/w.gguf?key=secret").replace("//", "//user:secret@")
    with pytest.raises(PullFailed, match=f"answers with {status}") as caught:
        pull(entry(url=url), tmp_path)
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1


def test_another_file_in_its_place_is_not_kept(server: FileServer, tmp_path: Path) -> None:
    server.content = b"x" * len(WEIGHTS)
    with pytest.raises(ChecksumMismatch, match=r"has SHA-256 [0-9a-f]{64}, the catalogue has"):
        pull(entry(url=server.url()), tmp_path)
    server.content = WEIGHTS + b"x"
    with pytest.raises(PullFailed, match="is longer than the 3000000 bytes"):
        pull(entry(url=server.url()), tmp_path)
    server.content = WEIGHTS
    assert pull(entry(url=server.url()), tmp_path).read_bytes() == WEIGHTS


def test_a_file_of_the_hub_comes_from_the_mirror_with_the_token(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url("/hub/"))
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    pull(entry(hub_model="owner/name", hub_file="a/w.gguf", hub_revision="v1/x"), tmp_path)
    assert server.requests == [("/hub/owner/name/resolve/v1%2Fx/a/w.gguf", None, "Bearer hf_x")]


def test_what_was_pulled_can_be_removed_and_pulled_again(server: FileServer, tmp_path: Path) -> None:
    model = entry(url=server.url())
    assert remove(model, tmp_path) == []
    path = pull(model, tmp_path)
    assert remove(model, tmp_path) == [path]
    assert list(tmp_path.iterdir()) == []
    assert pull(model, tmp_path).read_bytes() == WEIGHTS


def test_what_can_not_be_pulled_again_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "w.gguf").touch()
    with pytest.raises(PullFailed, match="has no source: remove its file by hand"):
        remove(CatalogEntry(name="own", engine="llama.cpp", model_path="w.gguf"), tmp_path)
    assert (tmp_path / "w.gguf").exists()


# Models in several files


def in_parts(server: FileServer, *contents: bytes) -> CatalogEntry:
    """Return the entry of a model in so many files, which the server has."""
    names = [f"w-{number:05}-of-{len(contents):05}.gguf" for number in range(1, len(contents) + 1)]
    server.files = {f"/{name}": content for name, content in zip(names, contents, strict=True)}
    checksums = [hashlib.sha256(content).hexdigest() for content in contents]
    source = Source(
        url=server.url(f"/{names[0]}"),
        sha256=checksums[0],
        size=len(contents[0]),
        later_parts=[f"{sha}:{len(content)}" for sha, content in zip(checksums[1:], contents[1:], strict=True)],
        license="MIT",
    )
    return CatalogEntry(name="some", engine="llama.cpp", model_path=f"big/{names[0]}", source=source)


def test_all_parts_are_fetched_checked_and_removed_together(server: FileServer, tmp_path: Path) -> None:
    model = in_parts(server, b"one", b"second", b"third")
    path = pull(model, tmp_path)
    assert [entry.read_bytes() for entry in sorted(path.parent.glob("*.gguf"))] == [b"one", b"second", b"third"]
    assert [place for place, _, _ in server.requests][-1] == "/w-00001-of-00003.gguf", "the first makes the model whole"
    pull(model, tmp_path)
    assert len(server.requests) == 3
    path.with_name("w-00002-of-00003.gguf").unlink()
    pull(model, tmp_path)
    assert [place for place, _, _ in server.requests][3:] == ["/w-00002-of-00003.gguf"]
    assert len(remove(model, tmp_path)) == 3
    assert list(path.parent.iterdir()) == []


def test_a_part_of_another_file_is_named_and_the_model_is_not_there(server: FileServer, tmp_path: Path) -> None:
    model = in_parts(server, b"one", b"second")
    server.files["/w-00002-of-00002.gguf"] = b"others"
    with pytest.raises(ChecksumMismatch, match=r"w-00002-of-00002.gguf has SHA-256 [0-9a-f]{64}, the catalogue has"):
        pull(model, tmp_path)
    assert list((tmp_path / "big").glob("*.gguf")) == []


# A disk that is full


def test_a_disk_that_fills_up_in_the_middle_of_a_download_keeps_what_has_come(
    server: FileServer, tiny_disk: Path
) -> None:
    content = WEIGHTS[:700_000]
    model = entry(url=server.url(), sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    server.content = content

    def fill(stage: Stage, done: int, total: int | None) -> None:
        if stage is Stage.DOWNLOADING and not (tiny_disk / "filler").exists():
            with contextlib.suppress(OSError), (tiny_disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass

    with pytest.raises(DiskFull, match=r"make room, or name another folder with models_dirs"):
        pull(model, tiny_disk, fill)
    assert not (tiny_disk / "w.gguf").exists()
    (tiny_disk / "filler").unlink()
    assert pull(model, tiny_disk).read_bytes() == content
    assert ranges(server)[-1] is not None, "the second pull has gone on"


def test_a_disk_too_small_for_all_parts_is_known_before_the_first_is_fetched(
    server: FileServer, tiny_disk: Path
) -> None:
    with pytest.raises(DiskFull, match="1200000 bytes are needed meanwhile, 1200000 afterwards"):
        pull(in_parts(server, bytes(600_000), bytes(600_000)), tiny_disk)
    assert server.requests == []
