"""Downloads against a server on this machine: resumed, verified, from the next mirror, and safe in
parallel.
"""

import gzip
import hashlib
import http.server
import multiprocessing
import re
import sys
import threading
import types
from collections import Counter

import pytest

from jdl.data import download
from jdl.data.download import Part, cache_folder, contents, fetch

CONTENT = bytes(range(256)) * 4000
PACKED = gzip.compress(CONTENT[::-1] + CONTENT, mtime=0)


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; cuts the first ``cuts`` answers in half; notes the requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.ranges, self.requests = {}, 0, True, []
        self.base = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, name = self.server, self.path[1:]
        asked = self.headers.get("Range")
        server.requests.append((name, asked))
        if name not in server.files:
            return self.send_error(404)
        data, start = server.files[name], 0
        if asked and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(data):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data)
        if server.cuts:
            server.cuts -= 1
            end = start + (end - start) // 2
        self.wfile.write(data[start:end])
        return None


@pytest.fixture
def server():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.delenv("JDL_DATA", raising=False)
    monkeypatch.setenv("JDL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def part(*bases, name="x.gz", data=PACKED):
    return {"x": Part(sha256(gzip.decompress(data)), ("x.gz", "x"), tuple(base + name for base in bases))}


def accept(path):
    if path.read_bytes() != PACKED:
        raise ValueError("wrong content")


def test_downloads_once(server, folders):
    server.files["x.gz"] = PACKED
    for _ in range(2):
        assert contents("set", part(server.base))["x"] == gzip.decompress(PACKED)
    assert server.requests == [("x.gz", None)]
    assert (folders / "cache/set/x.gz").read_bytes() == PACKED


def test_resumes_after_cuts(server, folders):
    server.files["x.gz"], server.cuts = PACKED, 4
    path = fetch(server.base + "x.gz", folders / "x.gz", accept)
    assert path.read_bytes() == PACKED
    starts = [0 if asked is None else int(asked[6:-1]) for _, asked in server.requests]
    assert len(starts) == 5
    assert starts == sorted(set(starts))


def test_resumes_what_an_earlier_process_left(server, folders):
    server.files["x.gz"] = PACKED
    (folders / "part-x.gz").write_bytes(PACKED[:1000])
    fetch(server.base + "x.gz", folders / "x.gz", accept)
    assert server.requests == [("x.gz", "bytes=1000-")]
    assert not (folders / "part-x.gz").exists()


@pytest.mark.parametrize("left", [b"another version", PACKED, PACKED + b"more"])
def test_what_was_left_may_be_anything(server, folders, left):
    server.files["x.gz"] = PACKED
    (folders / "part-x.gz").write_bytes(left)
    assert fetch(server.base + "x.gz", folders / "x.gz", accept).read_bytes() == PACKED


def test_server_without_ranges(server, folders):
    server.files["x.gz"], server.ranges = PACKED, False
    (folders / "part-x.gz").write_bytes(PACKED[:1000])
    assert fetch(server.base + "x.gz", folders / "x.gz", accept).read_bytes() == PACKED


def test_gives_up_without_progress(server, folders):
    server.files["x.gz"], server.ranges, server.cuts = PACKED, False, 10**6
    with pytest.raises(OSError, match="ended at byte"):
        fetch(server.base + "x.gz", folders / "x.gz", accept)
    assert len(server.requests) <= 5


def test_wrong_content_is_not_kept(server, folders):
    server.files["x.gz"] = gzip.compress(b"something else")
    with pytest.raises(FileNotFoundError, match="x.gz is not the published file: its content has sha256"):
        contents("set", part(server.base))
    assert [path.name for path in (folders / "cache/set").iterdir() if "lock" not in path.name] == []


def test_next_mirror(server):
    server.files |= {"bad/x.gz": gzip.compress(b"else"), "torn/x.gz": PACKED[:-9], "good/x.gz": PACKED}
    mirrors = [server.base + name for name in ("absent/", "bad/", "torn/", "good/")]
    assert contents("set", part("http://127.0.0.1:9/", *mirrors))["x"] == gzip.decompress(PACKED)
    assert Counter(name for name, _ in server.requests)["good/x.gz"] == 1


def test_all_fail_says_what_to_do(server, folders, monkeypatch):
    with pytest.raises(FileNotFoundError) as error:
        contents("set", part("http://127.0.0.1:9/", server.base))
    message = str(error.value)
    for words in (
        "set is not on this machine",
        "Put x.gz into",
        "JDL_DATA is not set",
        str(folders / "cache/set"),
    ):
        assert words in message
    assert "http://127.0.0.1:9/x.gz" in message
    assert "404" in message
    assert "\n" not in message
    monkeypatch.setenv("JDL_DATA", str(folders / "own"))
    with pytest.raises(FileNotFoundError, match=str(folders / "own/set")):
        contents("set", part(server.base))


def test_own_folder_comes_first_whatever_the_packing(folders, monkeypatch):
    monkeypatch.setenv("JDL_DATA", str(folders / "own"))
    (folders / "own/set").mkdir(parents=True)
    (folders / "own/set/x").write_bytes(CONTENT)
    parts = {"x": Part(sha256(CONTENT), ("x.gz", "x"), ())}
    assert contents("set", parts)["x"] == CONTENT
    (folders / "own/set/x.gz").write_bytes(gzip.compress(CONTENT, 1))
    assert contents("set", parts)["x"] == CONTENT
    (folders / "own/set/x.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(
        ValueError, match=f"{folders}/own/set/x.gz is not .* {sha256(b'other')}, expected {sha256(CONTENT)}"
    ):
        contents("set", parts)


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("JDL_CACHE", "~/somewhere")
    assert "~" not in str(cache_folder())
    monkeypatch.delenv("JDL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert str(cache_folder()) == "/xdg/jdl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_folder()).endswith("/.cache/jdl")


def test_two_threads_download_once(server, folders):
    server.files["x.gz"], server.cuts = PACKED, 1
    threads = [
        threading.Thread(target=fetch, args=(server.base + "x.gz", folders / "x.gz", accept))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (folders / "x.gz").read_bytes() == PACKED
    assert len(server.requests) == 2


def test_two_processes_download_once(server, folders):
    server.files["x.gz"] = PACKED
    context = multiprocessing.get_context("spawn")
    target = folders / "x.gz"
    processes = [context.Process(target=fetch, args=(server.base + "x.gz", target, accept)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(server.requests) == 1


def test_without_locks_names_are_unique(server, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    server.files["x.gz"], server.cuts = PACKED, 1
    assert fetch(server.base + "x.gz", folders / "x.gz", accept).read_bytes() == PACKED
    assert [path.name for path in folders.iterdir()] == ["x.gz"]


def test_progress_bar_where_tqdm_is_installed(server, folders, monkeypatch):
    seen = []

    class Bar:
        def __init__(self, **options):
            seen.append(options)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def update(self, count):
            seen.append(count)

    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    server.files["x.gz"] = PACKED
    fetch(server.base + "x.gz", folders / "x.gz", accept)
    assert seen[0]["desc"] == "x.gz"
    assert seen[0]["total"] == len(PACKED)
    assert sum(seen[1:]) == len(PACKED)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with download._progress("part-x", 0, None) as advance:
        advance(1)
