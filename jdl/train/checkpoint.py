"""Checkpoints that can be trusted: asynchronous, atomic, and verified byte by byte before use.

A checkpoint is a directory named after its step::

    run/checkpoints/300/
      state/          the arrays, written by Orbax, each under its position in "leaves"
      meta.json       step, score, the caller's meta, and "leaves": path, shape and dtype of every leaf
      manifest.json   size and BLAKE2b digest of every other file, written last

It is written as ``300.partial`` and renamed once its manifest is on disk, so that a directory named by a
bare number is complete. Nothing is deleted before something newer is complete. What is wrong is never
deleted: it is renamed to ``300.damaged`` (its bytes changed) or ``300.stale`` (an earlier step was saved
after it), and reported.

Only data formats are used (JSON, and arrays in OCDBT and Zarr through TensorStore): reading a checkpoint
runs no code that came with it. The digests find accidents, not forgers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jdl.core import PyTree, objective

META, MANIFEST, STATE = "meta.json", "manifest.json", "state"
HOLLOW = "nothing"
PRNG_KEY = jax.dtypes.prng_key
MESSAGE_BYTES = 4096
SHARED_SECONDS = 10


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message is one sentence for the user."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint is sound, but holds the state of another model."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` gives.

    Attributes:
        step: the step it was saved at.
        state: the state, shaped and sharded as it was asked for.
        meta: what the caller saved beside it.
    """

    step: int
    state: PyTree
    meta: dict[str, Any]


class Checkpoints:
    """Asynchronous, atomic, verified checkpoints of one run's state.

    With several processes, all call every method alike, on a file system that they share; process 0
    writes manifests, verifies, and decides which step is restored.

    Args:
        directory: where they are, created if missing; one run at a time writes to it.
        monitor: ``"min NAME"`` or ``"max NAME"``, which says what way scores are better.
        keep_latest: how many of the newest to keep, at least one.
        keep_best: how many of the best-scored to keep beside them. Of equal scores the earliest is best.
        report: called with a sentence when something was wrong and has been dealt with, sometimes from
            another thread.

    Raises:
        CheckpointError: if the directory cannot be made.
        ValueError: if an argument makes no sense.

    Example:
        >>> import tempfile
        >>> template = {"weights": jax.ShapeDtypeStruct((3,), jnp.float32)}
        >>> with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
        ...     for step in range(4):
        ...         state = {"weights": jnp.full(3, step, jnp.float32)}
        ...         checkpoints.save(step, state, {"epoch": step}, score=abs(step - 1.0))
        ...     checkpoints.wait()
        ...     print(checkpoints.steps(), checkpoints.best())
        ...     print(checkpoints.restore(template))
        [1, 2, 3] 1
        Restored(step=3, state={'weights': Array([3., 3., 3.], dtype=float32)}, meta={'epoch': 3})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        monitor: str = "min loss",
        keep_latest: int = 2,
        keep_best: int = 1,
        report: Callable[[str], None] = print,
    ):
        self._way, _ = objective(monitor)
        if keep_latest < 1 or keep_best < 0:
            raise ValueError(
                f"keep_latest must be 1 or more and keep_best 0 or more; got {keep_latest}, {keep_best}"
            )
        self.directory = _absolute(directory)
        self._keep_latest, self._keep_best, self._report = keep_latest, keep_best, report
        # Compression saves little on trained weights and costs most of the time.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._worker = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        _OPEN.add(self)
        with _explained(f"cannot keep checkpoints in {self.directory}"):
            _on_first(self._recover)
        self._check_shared()

    def save(
        self,
        step: int,
        state: PyTree,
        meta: Mapping[str, Any],
        *,
        score: float | None = None,
        wait: bool = False,
    ) -> None:
        """Saves ``state``, and returns as soon as it may be changed or donated.

        A step that is there already is replaced once the new one is complete. Steps above ``step`` belong
        to a future that this run has gone back on, and are set aside as ``STEP.stale``.

        Args:
            step: 0 or more.
            state: any tree of arrays, typed keys, Python scalars and None.
            meta: what to keep beside it, as JSON; NaN and infinities are fine.
            score: how good it is under ``monitor``; None and NaN are never best.
            wait: whether to return only when it is complete on disk.

        Raises:
            CheckpointError: if this save, or the one before it, failed. Earlier checkpoints are intact.
            TypeError: if ``state`` or ``meta`` holds something that cannot be saved.
            ValueError: if ``step`` is negative.
        """
        if step < 0:
            raise ValueError(f"a step is 0 or more; got {step}")
        self.wait()
        arrays, leaves = _encode(state)
        about = {"step": int(step), "way": self._way, "score": score, "meta": dict(meta), "leaves": leaves}
        text = json.dumps(about, default=_plain)
        draft = self._path(step, ".partial")

        def begin() -> None:
            _remove(draft)
            draft.mkdir()
            _write(draft / META, text)

        logging.getLogger("absl").addFilter(_not_orbax)
        try:
            with _explained(f"step {step} was not saved in {self.directory}"):
                _on_first(begin)
                if arrays:
                    self._orbax.save(draft / STATE, args=ocp.args.PyTreeSave(arrays))
        except BaseException:
            logging.getLogger("absl").removeFilter(_not_orbax)
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._pending = self._worker.submit(self._commit, step)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when everything saved is complete on disk.

        Raises:
            CheckpointError: if the last save failed.
        """
        fault = None if self._pending is None else self._pending.exception()
        self._pending = None
        for said in _exchange(fault and str(fault)[:500]):
            if said is not None:
                raise CheckpointError(said) from fault

    def steps(self) -> list[int]:
        """The steps that are complete, in order."""
        return _steps(self.directory)

    def latest(self) -> int | None:
        """The newest complete step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The complete step with the best score, and None where none has one."""
        return next(iter(_ranked(self.directory, self._way)), None)

    def restore(self, like: PyTree | None = None, step: int | None = None) -> Restored | None:
        """The state of the newest good checkpoint, or of ``step``, verified first.

        A checkpoint whose bytes are not those that were written is reported, set aside as
        ``STEP.damaged``, and the one before it is tried.

        Args:
            like: a tree of `jax.ShapeDtypeStruct` or arrays. The state comes back in its structure, with its
                shardings, whatever mesh it was saved on; numpy where it has numpy. None gives nested
                dictionaries of numpy arrays, with typed keys as typed keys.
            step: one of `steps`; None for the newest good one.

        Returns:
            None where nothing was ever saved.

        Raises:
            CheckpointError: if there were checkpoints and none is good, or if ``step`` is not good.
            CheckpointMismatch: if ``like`` is the state of another model.
        """
        self.wait()
        with _explained(f"no checkpoint could be read in {self.directory}"):
            chosen = _on_first(partial(self._choose, step))
        if chosen is None:
            return None
        return Restored(chosen, *_read(self._path(chosen), like))

    def close(self) -> None:
        """Waits for what was saved, and ends the threads.

        Raises:
            CheckpointError: if the last save failed.
        """
        try:
            self.wait()
        finally:
            _OPEN.discard(self)
            self._worker.shutdown()
            self._orbax.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif jax.process_count() > 1:
            # The others may be gone, and waiting for them would hide the error that is on its way.
            self._worker.shutdown(wait=False)
        else:
            try:
                self.close()
            except CheckpointError as second:
                self._report(str(second))

    def _last_words(self) -> None:
        """Completes what is in flight when the program ends without having called `close`."""
        if self._pending is not None and (fault := self._pending.exception()) is not None:
            self._report(str(fault))

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.directory / f"{step}{suffix}"

    def _recover(self) -> None:
        """Completes what a process was killed in the middle of."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for draft in self.directory.glob("*.partial"):
            if (draft / MANIFEST).exists() and not draft.with_suffix("").exists():
                os.rename(draft, draft.with_suffix(""))

    def _check_shared(self) -> None:
        """Checks that all processes see one directory: of checkpoints in several, none could be restored."""
        if jax.process_count() == 1:
            return
        token = self.directory / f".shared-{_on_first(lambda: secrets.token_hex(8))}"
        with _explained(f"cannot keep checkpoints in {self.directory}"):
            _on_first(token.touch)
        # A file of another machine may take a network file system a while to show.
        deadline = time.monotonic() + SHARED_SECONDS
        while not (found := token.exists()) and time.monotonic() < deadline:
            time.sleep(0.1)
        blind = [str(i) for i, sees in enumerate(_exchange(found)) if not sees]
        _on_first(token.unlink)
        if blind:
            raise CheckpointError(
                f"{self.directory} is not one directory for all processes: what process 0 writes there, "
                f"process {', '.join(blind)} cannot see. Keep the run on a file system that they share."
            )

    def _commit(self, step: int) -> None:
        draft, final = self._path(step, ".partial"), self._path(step)
        try:
            with _explained(f"step {step} was not saved in {self.directory}"):
                self._orbax.wait_until_finished()
                if jax.process_index() == 0:
                    _write(draft / MANIFEST, json.dumps(_digests(draft), indent=1))
                    _remove(final)
                    os.rename(draft, final)
                    _flush(self.directory)
            with _explained(f"step {step} was saved, but others could not be removed in {self.directory}"):
                if jax.process_index() == 0:
                    self._tidy(step)
        except CheckpointError:
            # A half-written step is of no use, and on a full disk its space is.
            shutil.rmtree(draft, ignore_errors=True)
            raise
        finally:
            logging.getLogger("absl").removeFilter(_not_orbax)

    def _tidy(self, step: int) -> None:
        """Keeps the latest and the best, now that ``step`` is complete."""
        for later in self.steps():
            if later > step:
                aside = self._set_aside(later, "stale")
                self._report(
                    f"Step {later} was set aside as {aside}, because step {step} was saved after it."
                )
        keep = {*self.steps()[-self._keep_latest :], *_ranked(self.directory, self._way)[: self._keep_best]}
        for old in set(self.steps()) - keep:
            _remove(self._path(old))
        for left in [*self.directory.glob("*.partial"), *self.directory.glob("*.trash")]:
            shutil.rmtree(left)

    def _choose(self, step: int | None) -> int | None:
        present = sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())
        if step is not None and step not in present:
            raise CheckpointError(f"There is no step {step} in {self.directory}, only {present}.")
        for candidate in reversed(present) if step is None else [step]:
            fault = _fault(self._path(candidate))
            if fault is None:
                return candidate
            try:
                outcome = f"was set aside as {self._set_aside(candidate, 'damaged')}"
            except OSError as error:
                outcome = f"cannot be set aside ({_sentence(error)})"
            self._report(f"Checkpoint of step {candidate} is damaged and {outcome}: {fault}.")
        if step is not None:
            raise CheckpointError(f"The checkpoint of step {step} in {self.directory} is damaged.")
        # Starting from nothing in silence, now or on the next try, would hide the loss of a run.
        if present or any(self.directory.glob("*.damaged*")):
            raise CheckpointError(
                f"No checkpoint in {self.directory} is good, all are damaged; "
                "to start anew, move them away or choose another directory."
            )
        return None

    def _set_aside(self, step: int, why: str) -> str:
        name, again = f"{step}.{why}", 1
        while (self.directory / name).exists():
            again += 1
            name = f"{step}.{why}.{again}"
        os.rename(self._path(step), self.directory / name)
        return name


_OPEN: weakref.WeakSet[Checkpoints] = weakref.WeakSet()


def _finish() -> None:
    for checkpoints in list(_OPEN):
        checkpoints._last_words()


# Executors refuse work once the main thread has ended, which would cut off a save in flight, and `atexit` is
# later still. Without the private hook a program that forgets `close` loses its last save, and no more.
getattr(threading, "_register_atexit", lambda function: None)(_finish)


def read_meta(directory: str | os.PathLike[str], step: int | str = "latest") -> dict[str, Any]:
    """What the caller saved beside the state of ``step`` (as in `load`), without reading arrays.

    Raises:
        CheckpointError: if it is not there, or damaged.
    """
    return _about(_find(_absolute(directory), step))["meta"]


def load(
    directory: str | os.PathLike[str], step: int | str = "best", like: PyTree | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """A checkpoint's state and meta, for use long after the run. Changes nothing on disk.

    Args:
        directory: where the checkpoints are.
        step: a step, ``"latest"``, or ``"best"``, which is the latest where no score was saved.
        like: as in `Checkpoints.restore`; no template is needed.

    Returns:
        The state, without a template as nested dictionaries of numpy arrays (tuples have keys "0", "1",
        ...), and the meta.

    Raises:
        CheckpointError: if it is not there, or damaged.
        CheckpointMismatch: if ``like`` is the state of another model.
    """
    path = _find(_absolute(directory), step)
    with _explained(f"step {path.name} in {path.parent} could not be read"):
        fault = _fault(path)
    if fault is not None:
        raise CheckpointError(f"The checkpoint of step {path.name} in {path.parent} is damaged: {fault}.")
    return _read(path, like)


def _find(directory: Path, step: int | str) -> Path:
    steps = _steps(directory)
    if not steps:
        raise CheckpointError(f"There is no checkpoint in {directory}.")
    chosen = steps[-1] if step in ("best", "latest") else step
    if step == "best":
        chosen = next(iter(_ranked(directory, _about(directory / str(chosen))["way"])), chosen)
    if chosen not in steps:
        raise CheckpointError(f"There is no step {chosen} in {directory}, only {steps}.")
    return directory / str(chosen)


def _steps(directory: Path) -> list[int]:
    names = [path.parent.name for path in directory.glob(f"*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdecimal())


def _ranked(directory: Path, way: str) -> list[int]:
    """The steps with a score, best first, earlier ones first among equals."""
    scores = {}
    for step in _steps(directory):
        try:
            score = _about(directory / str(step))["score"]
        except CheckpointError:
            continue
        if score is not None and not math.isnan(score):
            scores[step] = -score if way == "max" else score
    return sorted(scores, key=lambda step: (scores[step], step))


def _about(path: Path) -> dict[str, Any]:
    """The contents of meta.json, checked against the manifest."""
    with _explained(f"step {path.name} in {path.parent} could not be read"):
        fault = _fault(path, only=META)
        if fault is None:
            return json.loads((path / META).read_text())
    raise CheckpointError(f"The checkpoint of step {path.name} in {path.parent} is damaged: {fault}.")


def _digests(path: Path) -> dict[str, list[Any]]:
    """Size and digest of every file but the manifest, all of which are on disk after it."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / MANIFEST)
    return {file.relative_to(path).as_posix(): _digest(file, flush=True) for file in files}


def _digest(file: Path, flush: bool = False) -> list[Any]:
    with file.open("rb") as opened:
        if flush:
            os.fsync(opened.fileno())
        digest = hashlib.file_digest(opened, partial(hashlib.blake2b, digest_size=20))
        return [opened.tell(), digest.hexdigest()]


def _fault(path: Path, only: str | None = None) -> str | None:
    """What is wrong with the files of a checkpoint, in words, or None. With ``only``, of that file."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        wanted = {str(name): list(entry) for name, entry in manifest.items()}
        wanted[META]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (ValueError, TypeError, AttributeError, KeyError):
        return f"its {MANIFEST} cannot be read"
    for name in wanted if only is None else [only]:
        try:
            found = _digest(path / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return f"its file {name} is missing"
        if name not in wanted or found != wanted[name]:
            return f"the content of its file {name} is not what was written"
    return None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(temporary, path)
    _flush(path.parent)


def _flush(directory: Path) -> None:
    """Puts the names in a directory on disk."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(path: Path) -> None:
    """Deletes a directory, under another name, so that one half deleted never looks like a damaged one."""
    if path.exists():
        trash = path.with_suffix(".trash")
        shutil.rmtree(trash, ignore_errors=True)
        os.rename(path, trash)
        shutil.rmtree(trash)


def _absolute(directory: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(directory):
        raise ValueError(f"checkpoints need a directory of this machine or a mounted one; got {directory}")
    return Path(directory).expanduser().absolute()


def _flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[tuple[str, ...], Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): x for path, x in paths}


def _encode(state: PyTree) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The arrays of a state by position, for Orbax, and what every leaf is, for meta.json."""
    arrays, leaves = {}, []
    for i, (path, x) in enumerate(_flatten(state, _is_hollow).items()):
        leaf = _describe(path, x)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, PRNG_KEY):
            leaf["impl"], x = str(jax.random.key_impl(x)), jax.random.key_data(x)
        if 0 not in leaf.get("shape", [0]):  # Orbax refuses arrays of no size.
            # It takes what lives in one process of several only as numpy.
            local = not isinstance(x, jax.Array) or (jax.process_count() > 1 and x.is_fully_addressable)
            arrays[str(i)] = np.asarray(x) if local else x
        leaves.append({"path": path, **leaf})
    return arrays, leaves


def _is_hollow(x: Any) -> bool:
    """Whether ``x`` is None or an empty container, which JAX does not count as leaves."""
    return x is None or (isinstance(x, Mapping | tuple | list) and not x)


def _describe(path: tuple[str, ...], x: Any) -> dict[str, Any]:
    """What a leaf is, in JSON: its dtype with a shape (arrays) or a value (Python scalars)."""
    if _is_hollow(x):
        return {"dtype": HOLLOW, "value": None if x is None else {}}
    if isinstance(x, bool | int | float | str) and not isinstance(x, np.generic):
        return {"dtype": f"Python {type(x).__name__}", "value": x}
    dtype = getattr(x, "dtype", None)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_, PRNG_KEY)):
        raise TypeError(f"a state is made of arrays, keys and Python scalars; {'/'.join(path)} is {x!r:.80}")
    return {"dtype": str(dtype), "shape": list(x.shape)}


def _read(path: Path, like: PyTree | None) -> tuple[PyTree, dict[str, Any]]:
    """The state and the meta of a checkpoint whose files are known to be good."""
    about = _about(path)
    meta, leaves = about["meta"], {tuple(leaf["path"]): leaf for leaf in about["leaves"]}
    templates = dict.fromkeys(leaves, np.empty(0)) if like is None else _flatten(like)
    if like is not None:
        _match(f"Step {path.name} in {path.parent}", leaves, templates)
    asked = [(str(i), leaf, templates.get(name)) for i, (name, leaf) in enumerate(leaves.items())]
    how = {i: _how(leaf, x) for i, leaf, x in asked if 0 not in leaf.get("shape", [0])}
    arrays = {}
    with _explained(f"step {path.name} in {path.parent} is intact but could not be read"):
        if how:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
                arrays = orbax.restore(path / STATE, args=ocp.args.PyTreeRestore(restore_args=how))
        found = [_decode(leaf, arrays.get(i), x) for i, leaf, x in asked]
    values = dict(zip(leaves, found, strict=True))
    if like is not None:
        return jax.tree.unflatten(jax.tree.structure(like), [values[name] for name in templates]), meta
    root: dict[str, Any] = {}
    for name, value in values.items():
        node = root
        *parents, last = ("", *name)
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return root.get("", {}), meta


def _match(what: str, leaves: Mapping[tuple[str, ...], Any], like: Mapping[tuple[str, ...], Any]) -> None:
    """Raises CheckpointMismatch unless both have the same leaves, in any order."""
    have = {path: _words(leaf) for path, leaf in leaves.items() if leaf["dtype"] != HOLLOW}
    want = {path: _words(_describe(path, x)) for path, x in like.items()}
    wrong = [path for path in {**want, **have} if have.get(path) != want.get(path)]
    if wrong:
        each = [
            f"{'/'.join(path)}: {have.get(path, HOLLOW)} stored, {want.get(path, HOLLOW)} asked"
            for path in wrong[:5]
        ]
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointMismatch(f"{what} is the state of another model ({'; '.join(each)}{more}).")


def _words(leaf: dict[str, Any]) -> str:
    return f"{leaf['dtype']}{leaf.get('shape', '')}"


def _sharding(like: Any) -> jax.sharding.Sharding | None:
    # An array that was never placed stays free to go where the computation is.
    return getattr(like, "sharding", None) if getattr(like, "committed", True) else None


def _how(leaf: dict[str, Any], like: Any) -> ocp.RestoreArgs:
    """How Orbax is to restore a leaf: straight to its shards, or as numpy."""
    sharding = None if "impl" in leaf else _sharding(like)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=tuple(leaf["shape"]))


def _decode(leaf: dict[str, Any], array: Any, like: Any) -> Any:
    """The leaf itself, of the same kind as ``like``."""
    if "shape" not in leaf:
        return leaf["value"]
    if "impl" in leaf:
        if array is None:
            one = np.asarray(jax.random.key_data(jax.random.key(0, impl=leaf["impl"])))
            array = np.broadcast_to(one, (*leaf["shape"], *one.shape))
        # Under jit, numpy goes to any sharding, of one process or many.
        wrap = partial(jax.random.wrap_key_data, impl=leaf["impl"])
        return jax.jit(wrap, out_shardings=_sharding(like))(array)
    if array is None:
        array = np.zeros(leaf["shape"], jnp.dtype(leaf["dtype"]))
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray) or isinstance(array, jax.Array):
        return array
    return jax.device_put(array, _sharding(like))


def _exchange(said: Any) -> list[Any]:
    """What every process says, in order, for all of them to hear."""
    if jax.process_count() == 1:
        return [said]
    message = np.frombuffer(json.dumps(said).encode().ljust(MESSAGE_BYTES), np.uint8)
    return [json.loads(row.tobytes()) for row in np.asarray(multihost_utils.process_allgather(message))]


def _on_first(work: Callable[[], Any]) -> Any:
    """What ``work`` gives or raises on process 0, on every process."""
    result, cause = None, None
    if jax.process_index() == 0:
        try:
            result = work()
        except (OSError, CheckpointError) as error:
            cause = error
    result, fault = _exchange([result, cause and str(cause)[:500]])[0]
    if fault is not None:
        raise cause or CheckpointError(fault)
    return result


@contextmanager
def _explained(failure: str) -> Iterator[None]:
    """Turns whatever file systems and libraries raise into one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{failure[0].upper()}{failure[1:]}: {_sentence(error)}.") from error


def _sentence(error: BaseException) -> str:
    text = str(error)
    if "No space left" in text:
        return "the disk is full"
    return (text.splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def _plain(x: Any) -> Any:
    """Array scalars as JSON."""
    if isinstance(x, np.generic | np.ndarray | jax.Array):
        return x.tolist()
    raise TypeError(f"meta is made of JSON; got {x!r:.80}")


def _not_orbax(record: logging.LogRecord) -> bool:
    """Orbax logs what it raises, with tracebacks; here that becomes one sentence in an exception."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname
