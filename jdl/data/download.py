"""Published files: found where the user keeps data, else downloaded once into a cache, and always verified.

Every checksum is of *content*, that is of what a file holds once unpacked: a set is accepted however it was
compressed, and nothing that differs in one bit from what was published is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jdl.data.formats import unpack

_TIMEOUT_S = 30.0
_ATTEMPTS = 3
_CHUNK = 2**18


class Part(NamedTuple):
    """One piece of a data set, by its content.

    Attributes:
        sha256: of the content, unpacked.
        places: where it may lie in the set's folder, best first: ``"file.gz"``, ``"folder/file"``, or
            ``"archive.tar.gz!member"``.
        urls: where it comes from, best first; the last component of each is one of the files in ``places``.
    """

    sha256: str
    places: tuple[str, ...]
    urls: tuple[str, ...]


def cache_folder() -> Path:
    """``$JDL_CACHE``, or ``$XDG_CACHE_HOME/jdl``, or ``~/.cache/jdl``."""
    if os.environ.get("JDL_CACHE"):
        return Path(os.environ["JDL_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "jdl"


def contents(dataset: str, parts: Mapping[str, Part]) -> dict[str, bytes]:
    """The verified content of every part: from ``$JDL_DATA/dataset``, else the cache, else downloaded there.

    Args:
        dataset: name of the set and of its folder.
        parts: what it is made of.

    Returns:
        The bytes of each part.

    Raises:
        ValueError: if a file that is found is damaged or not what was published.
        FileNotFoundError: if a part is found nowhere and cannot be downloaded; the message says which file to
            put where.
    """
    cache = cache_folder() / dataset
    own = os.environ.get("JDL_DATA")
    folders = [*([Path(own).expanduser() / dataset] if own else []), cache]
    found: dict[str, bytes] = {}
    for folder in folders:
        found |= _read(folder, {name: part for name, part in parts.items() if name not in found})
    for name, part in parts.items():
        if name not in found:
            missing = {name: part for name, part in parts.items() if name not in found}
            found |= _download(dataset, name, missing, cache)
    return {name: found[name] for name in parts}


def _read(folder: Path, parts: Mapping[str, Part]) -> dict[str, bytes]:
    """Those ``parts`` that lie in ``folder``, verified; every file is opened once."""
    wanted: dict[str, dict[str, str]] = {}
    for name, part in parts.items():
        for place in part.places:
            file, _, member = place.partition("!")
            if (folder / file).is_file():
                wanted.setdefault(file, {})[member] = name
                break
    found = {}
    for file, names in wanted.items():
        for member, data in unpack(folder / file, names).items():
            _verify(data, parts[names[member]].sha256, f"{folder / file}{member and '!'}{member}")
            found[names[member]] = data
    return found


def _verify(data: bytes, expected: str, place: str) -> None:
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != expected:
        raise ValueError(
            f"{place} is not the published file: its content has sha256 {sha256}, expected {expected}"
        )


def _download(dataset: str, name: str, parts: Mapping[str, Part], cache: Path) -> dict[str, bytes]:
    """``name``, and whatever other ``parts`` come in the same file, from the first mirror that has it."""
    if not parts[name].urls:
        own = os.environ.get("JDL_DATA")
        folder = Path(own).expanduser() / dataset if own else f"$JDL_DATA/{dataset} (JDL_DATA is not set)"
        raise FileNotFoundError(
            f"{dataset} is not on this machine and is not downloaded by itself. Put its {len(parts)} files, "
            f"such as {name}, into {folder} or into {cache}"
        )
    problems = []
    for url in parts[name].urls:
        file = url.rpartition("/")[2]
        read: dict[str, bytes] = {}

        def check(path: Path, file: str = file, read: dict[str, bytes] = read) -> None:
            inside = {name: _in_file(part, file, path.name) for name, part in parts.items()}
            read |= _read(path.parent, inside)

        try:
            fetch(url, cache / file, check)
            return read
        except (OSError, ValueError, http.client.HTTPException) as error:
            problems.append(f"{url}: {error}")
    own = os.environ.get("JDL_DATA")
    folder = Path(own).expanduser() / dataset if own else f"$JDL_DATA/{dataset} (JDL_DATA is not set)"
    sources = sorted({part.urls[0] for part in parts.values()})
    files = ", ".join(source.rpartition("/")[2] for source in sources)
    raise FileNotFoundError(
        f"{dataset} is not on this machine and could not be downloaded. Put {files} into {folder} or into "
        f"{cache}; the source is {', '.join(sources)}. What was tried: {'; '.join(problems)}"
    )


def _in_file(part: Part, file: str, renamed: str) -> Part:
    """``part`` with only its places in ``file``, which has another name until it is verified."""
    places = (place.partition("!") for place in part.places)
    return part._replace(places=tuple(renamed + mark + member for at, mark, member in places if at == file))


def fetch(url: str, path: Path, check: Callable[[Path], Any]) -> Path:
    """Downloads ``url`` to ``path``: resumed where it was cut off, verified, then moved into place.

    The bytes collect in a file beside ``path`` that survives an interruption and is continued by the next
    call. A lock lets one process download while the others wait and find the file; what stands at ``path`` is
    whole.

    Args:
        url: http, https or file address.
        path: where the file should be; its folder is made.
        check: given a file with the suffixes of ``path``, raises ValueError unless it is the right one.

    Returns:
        ``path``.

    Raises:
        OSError: if the server cannot be reached, refuses, or hangs up too often.
        ValueError: from ``check``; the bad bytes are deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as part:
        if path.exists():
            check(path)
            return path
        resumed = part.exists() and part.stat().st_size > 0
        _transfer(url, part)
        try:
            check(part)
        except ValueError:
            part.unlink()
            if not resumed:
                raise
            # What was there before may have been the start of another version.
            _transfer(url, part)
            try:
                check(part)
            except ValueError:
                part.unlink()
                raise
        os.replace(part, path)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """The unfinished file, ours alone: by a lock that dies with its process, or by a unique name."""
    try:
        import fcntl
    except ImportError:  # Windows: give up resuming, not safety
        handle, unique = tempfile.mkstemp(prefix="part-", suffix="-" + path.name, dir=path.parent)
        os.close(handle)
        try:
            yield Path(unique)
        finally:
            Path(unique).unlink(missing_ok=True)
        return
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path.parent / f"part-{path.name}"


def _transfer(url: str, part: Path) -> None:
    """Brings ``part`` up to the whole of ``url``, asking again after a cut while that brings progress."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, before):
                return
            problem: Exception = ConnectionError(f"the connection ended at byte {part.stat().st_size}")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # nothing lies beyond what we have
                return
            raise
        except urllib.error.URLError:  # nobody there: the next mirror is a better bet than asking again
            raise
        except (OSError, http.client.HTTPException) as error:
            problem = error
        progressed = part.exists() and part.stat().st_size > before
        failures = 0 if progressed else failures + 1
        if failures >= _ATTEMPTS:
            raise problem


def _receive(url: str, part: Path, start: int) -> bool:
    """Appends what is missing to ``part``; whether that reached the end."""
    headers = {"User-Agent": "jdl", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S) as response:
        if start and getattr(response, "status", 200) != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with open(part, "ab" if start else "wb") as file, _progress(part.name, start, total) as advance:
            while block := response.read(_CHUNK):
                file.write(block)
                advance(len(block))
        return total is None or part.stat().st_size >= total


@contextlib.contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], Any]]:
    """A progress bar where tqdm is installed and someone watches."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        yield lambda count: None
        return
    label = name.removeprefix("part-")
    with tqdm(desc=label, initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update
