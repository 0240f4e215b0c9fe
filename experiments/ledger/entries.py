"""The entries of the ledger and their files."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from experiments.catalogue import ROOT, module_file

RESULTS = ROOT / "experiments" / "results"
COMMIT = r"([0-9a-f]{7,40}(, changed)?)?"
MEMORY = "peak memory, MiB"
"""What a row's memory is called among its further figures."""

Goal = Literal["max", "min"]


@dataclasses.dataclass(frozen=True)
class Published:
    """The figure that a paper gives.

    Attributes:
        value: the figure, in the unit and the metric of the result it stands beside.
        where: where it stands in the paper ("Table 2, row 3").
        checked: "verified" against the paper's text, or a page that quotes it and that ``where`` names; or
            "recalled" from memory.
    """

    value: float
    where: str
    checked: Literal["verified", "recalled"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one configuration reached over several seeds.

    Attributes:
        name: the file's name, in lower case with underscores.
        title: what was done, in a few words ("LeNet-5 on MNIST").
        group: the heading it is listed under.
        paper: the full citation, or "" where nothing is reproduced.
        published: the paper's figure, or None where it gives none.
        metric: what was measured ("test accuracy").
        goal: "max" or "min".
        unit: the unit of every figure ("%", "nats", ...).
        seeds: the seeds, all different; empty for a result not yet measured.
        values: one figure a seed.
        dataset: the data and its split.
        fingerprint: the data's fingerprint.
        config: the configuration that all seeds share, as JSON can hold it.
        command: the command that reproduces it.
        seconds: wall-clock time of each seed, or None where it is not known of all.
        energy_wh: energy of each seed in watt hours, or None.
        energy_how: how the energy was measured or estimated, or why it was not.
        device: what `device_description` gives.
        date: the day, "YYYY-MM-DD".
        note: anything a reader must know to compare the figures.
        commit: what `commit` gives, "" where it is not known.
    """

    name: str
    title: str
    group: str
    paper: str
    published: Published | None
    metric: str
    goal: Goal
    unit: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    dataset: str
    fingerprint: str
    config: Mapping[str, Any]
    command: str
    seconds: tuple[float, ...] | None
    energy_wh: tuple[float, ...] | None
    energy_how: str
    device: Mapping[str, Any]
    date: str
    note: str = ""
    commit: str = ""

    def __post_init__(self) -> None:
        _check_common(self)
        _require(len(set(self.seeds)) == len(self.seeds), self, f"seeds repeat: {list(self.seeds)}")
        for field in ("values", "seconds", "energy_wh"):
            given = getattr(self, field)
            if given is None:
                continue
            _require(
                len(given) == len(self.seeds), self, f"{len(self.seeds)} seeds, but {len(given)} {field}"
            )
            _require(all(_finite(v) for v in given), self, f"{field} must be finite numbers: {list(given)}")
        _require(bool(self.energy_how), self, "energy_how must say how energy was measured, or why not")
        if self.published is not None:
            _require(_finite(self.published.value), self, f"published value {self.published.value!r}")
            _require(
                self.published.checked in ("verified", "recalled"),
                self,
                f'published figure must be "verified" or "recalled", not {self.published.checked!r}',
            )
            _require(bool(self.paper), self, "a published figure needs its paper")

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The sample standard deviation over seeds, NaN for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender of a benchmark: its measurements, in the order they were taken.

    Attributes:
        label: what tables call it.
        samples: the measurements.
        more: single figures beside them, by their names with their units ("peak memory, MiB").
    """

    label: str
    samples: tuple[float, ...]
    more: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median of the measurements."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile of the measurements."""
        if len(self.samples) < 2:
            return self.samples[0], self.samples[0]
        first, _, third = statistics.quantiles(self.samples, n=4, method="inclusive")
        return first, third


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Contenders of one run; only their ratios mean something on a shared machine.

    Attributes:
        name: the file's name.
        title: what was measured ("One training step of LeNet-5, batch 128").
        group: the heading it is listed under.
        metric: what a sample is ("time of a step").
        goal: "min" or "max".
        unit: the unit of the samples.
        subject: the label of the row that ratios speak for, or None for no ratios.
        rows: the contenders.
        command: the command that measures it again.
        device: what `device_description` gives.
        date: the day, "YYYY-MM-DD".
        note: anything a reader must know to compare the figures.
        commit: what `commit` gives, "" where it is not known.
        base: the label of the row that the others hold and add something to, or None.
        earlier: what was measured by this name before, on the same kind of machine, oldest first: ``date``,
            ``commit``, ``jax`` and, by label, ``medians``.
    """

    name: str
    title: str
    group: str
    metric: str
    goal: Goal
    unit: str
    subject: str | None
    rows: tuple[Row, ...]
    command: str
    device: Mapping[str, Any]
    date: str
    note: str = ""
    commit: str = ""
    base: str | None = None
    earlier: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _check_common(self)
        for each in self.earlier:
            fields = {"date", "commit", "jax", "medians"}
            _require(each.keys() == fields, self, f"an earlier measurement has {sorted(each)}")
            _require(all(map(_finite, each["medians"].values())), self, "an earlier median is not finite")
        labels = [row.label for row in self.rows]
        _require(bool(labels), self, "a benchmark needs rows")
        _require(len(set(labels)) == len(labels), self, f"rows repeat: {labels}")
        for row in self.rows:
            _require(bool(row.samples), self, f"row {row.label!r} has no samples")
            found = [*row.samples, *row.more.values()]
            _require(all(_finite(s) for s in found), self, f"row {row.label!r} has figures not finite")
        if self.subject is not None:
            _require(self.subject in labels, self, f"subject {self.subject!r} is none of the rows {labels}")
            _require(all(row.median > 0 for row in self.rows), self, "ratios need positive medians")
        if self.base is not None:
            _require(self.base in labels, self, f"base {self.base!r} is none of the rows {labels}")
            _require(self.row(self.base).median > 0, self, "the base needs a positive median")

    def row(self, label: str) -> Row:
        """The row of a label."""
        return next(row for row in self.rows if row.label == label)

    def ratio(self, row: Row) -> float | None:
        """How many times better the subject is than ``row``: above one where the subject wins."""
        if self.subject is None or row.label == self.subject:
            return None
        subject = self.row(self.subject)
        return row.median / subject.median if self.goal == "min" else subject.median / row.median

    @property
    def variants(self) -> list[Row]:
        """The subject in other ways, no peers of it: rows whose labels begin with its own."""
        if self.subject is None:
            return []
        return [r for r in self.rows if r.label != self.subject and r.label.startswith(self.subject)]

    @property
    def best_peer(self) -> Row | None:
        """The peer that the subject has least of an advantage over, or None where it has no peers."""
        peers = [r for r in self.rows if self.subject and not r.label.startswith(self.subject)]
        return min(peers, key=lambda r: self.ratio(r) or 0.0, default=None)

    @property
    def past(self) -> list[tuple[str, float]]:
        """Of earlier measurements beside peers, the date, and how many times as good the subject was."""
        found = []
        for each in self.earlier:
            medians = dict(each["medians"])
            ours = medians.get(self.subject or "")
            theirs = [x for label, x in medians.items() if not label.startswith(self.subject or label)]
            if ours and theirs:
                best = min(theirs) / ours if self.goal == "min" else ours / max(theirs)
                found.append((each["date"], best))
        return found

    def summary(self) -> dict[str, Any]:
        """What later measurements keep of this one."""
        return {
            "date": self.date,
            "commit": self.commit,
            "jax": self.device["jax"],
            "medians": {row.label: row.median for row in self.rows},
        }

    def added(self, row: Row) -> tuple[float, float] | None:
        """What a row adds to the base: in the unit, and in percent of it."""
        if self.base is None or row.label == self.base:
            return None
        base = self.row(self.base).median
        return row.median - base, 100 * (row.median / base - 1)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A table of what a compiler says of programs that were not run.

    Attributes:
        name: the file's name.
        title: what was compiled ("GPT of 124 million parameters on TPU v5e: strong scaling").
        group: the heading it is listed under.
        columns: what each figure is, with its unit.
        rows: the cases, each with one figure a column; None where there is none, such as the step time of a
            program that does not fit in memory.
        notes: by row, what must be known of it; most have none.
        assumptions: what the figures take for granted.
        command: the command that makes the table again.
        compiler: the versions of what compiled, by package.
        date: the day, "YYYY-MM-DD".
        note: anything else a reader must know.
    """

    name: str
    title: str
    group: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    notes: Mapping[str, str]
    assumptions: tuple[str, ...]
    command: str
    compiler: Mapping[str, str]
    date: str
    note: str = ""

    def __post_init__(self) -> None:
        _check_names(self, ("title", "group"))
        _require(bool(self.columns) and bool(self.rows), self, "an estimate needs columns and rows")
        _require(bool(self.assumptions), self, "an estimate must say what it assumes")
        _require(self.notes.keys() <= self.rows.keys(), self, "a note is of no row")
        for package in ("jax", "jaxlib"):
            _require(package in self.compiler, self, f"compiler does not say its version of {package}")
        for label, figures in self.rows.items():
            fits = len(figures) == len(self.columns) and all(x is None or _finite(x) for x in figures)
            _require(fits, self, f"row {label!r} needs a finite number or null for each column")


Entry = Result | Benchmark | Estimate
KINDS: dict[str, type[Entry]] = {"result": Result, "benchmark": Benchmark, "estimate": Estimate}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(condition: bool, entry: Any, message: str) -> None:
    if not condition:
        raise ValueError(f"{entry.name}: {message}")


def _check_common(entry: Any) -> None:
    _check_names(entry, ("title", "group", "metric", "unit"))
    _require(entry.goal in ("max", "min"), entry, f'goal must be "max" or "min", not {entry.goal!r}')
    _require(bool(re.fullmatch(COMMIT, entry.commit)), entry, f"commit reads {entry.commit!r}")
    for field in ("processor", "jax"):
        _require(field in entry.device, entry, f"device does not say its {field}")


def _check_names(entry: Any, fields: tuple[str, ...]) -> None:
    _require(bool(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", entry.name)), entry, "name must be lower_case")
    for field in fields:
        _require(bool(getattr(entry, field)), entry, f"{field} is empty")
    _require(module_of(entry.command) is not None, entry, f"no experiment is run by {entry.command!r}")
    try:
        datetime.date.fromisoformat(entry.date)
    except ValueError:
        _require(False, entry, f"date must read YYYY-MM-DD, not {entry.date!r}")


def module_of(command: str) -> str | None:
    """The experiment that a command runs, or None where there is no such module.

    Example:
        >>> module_of("python -m experiments.catalogue --seeds 0 1 2")
        'experiments.catalogue'
    """
    match = re.match(r"python -m (experiments(?:\.\w+)+)(?: |$)", command)
    return match[1] if match and module_file(match[1]).is_file() else None


def to_json(entry: Entry) -> str:
    """The text of an entry's file: the kind first, then the fields in their order.

    A commit, base or earlier measurement that there is not is left out.

    Raises:
        ValueError: where a value is something that JSON does not hold, such as NaN.
    """
    kind = next(kind for kind, cls in KINDS.items() if isinstance(entry, cls))
    tree = {"kind": kind, **dataclasses.asdict(entry)}
    tree = {name: x for name, x in tree.items() if x or name not in ("commit", "base", "earlier")}
    try:
        return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{entry.name}: {error}") from error


def from_json(text: str) -> Entry:
    """The entry that a file's text describes.

    Raises:
        ValueError: where a field is missing, unknown or wrong.
    """
    tree = json.loads(text)
    cls = KINDS.get(tree.pop("kind", None))
    if cls is None:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    known = {f.name for f in dataclasses.fields(cls)}
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if wrong := sorted(set(tree) - known):
        raise ValueError(f"unknown fields: {', '.join(wrong)}")
    if missing := sorted(needed - set(tree)):
        raise ValueError(f"missing fields: {', '.join(missing)}")
    for field in ("seeds", "values", "seconds", "energy_wh", "earlier"):
        if isinstance(tree.get(field), list):
            tree[field] = tuple(tree[field])
    if tree.get("published") is not None:
        tree["published"] = Published(**tree["published"])
    if cls is Estimate:
        for field in ("columns", "assumptions"):
            tree[field] = tuple(tree[field])
        tree["rows"] = {label: tuple(figures) for label, figures in tree["rows"].items()}
    elif "rows" in tree:
        tree["rows"] = tuple(Row(**{**row, "samples": tuple(row["samples"])}) for row in tree["rows"])
    return cls(**tree)


def machine(device: Mapping[str, Any]) -> str:
    """What a benchmark's figures hang on: the accelerator's name, or the processor's.

    Example:
        >>> machine({"processor": "Intel(R) Xeon(R) Processor", "backend": "cpu", "device": "cpu"})
        'Intel Xeon'
    """
    name = str(device.get("processor", "") if device.get("backend", "cpu") == "cpu" else device["device"])
    return " ".join(re.sub(r"\((R|TM)\)|\bProcessor\b|@.*", " ", name).split())


def record(entry: Entry, folder: Path = RESULTS) -> Path:
    """Writes an entry to its file, whole or not at all, over an earlier one of the same name.

    Where that is a benchmark, its medians are kept among the ``earlier`` ones; where it is of another
    `machine`, both are kept whole: the new name ends in the new machine's.

    Returns:
        The file's path.
    """
    entry = _after(entry, folder)
    text = to_json(entry)
    if from_json(text) != entry:
        raise ValueError(f"{entry.name}: config or device holds what JSON gives back as something else")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{entry.name}.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _after(entry: Entry, folder: Path) -> Entry:
    """A benchmark with those before it, by a name of its own if its name is that of another machine's."""
    path = folder / f"{entry.name}.json"
    if not isinstance(entry, Benchmark) or not path.is_file():
        return entry
    before, here = from_json(path.read_text(encoding="utf-8")), machine(entry.device)
    if not isinstance(before, Benchmark):
        return entry
    if machine(before.device) != here:
        suffix = re.sub(r"[^a-z0-9]+", "_", here.lower())
        return _after(dataclasses.replace(entry, name=f"{entry.name}_{suffix}"), folder)
    if dataclasses.replace(before, earlier=()) == dataclasses.replace(entry, earlier=()):
        return before
    return dataclasses.replace(entry, earlier=(*before.earlier, before.summary()))


def read(folder: Path = RESULTS) -> list[Entry]:
    """All entries, by group and name.

    Raises:
        ValueError: naming the file that does not hold an entry.
    """
    entries = []
    for path in sorted(folder.glob("*.json")):
        try:
            entry = from_json(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from error
        if entry.name != path.stem:
            raise ValueError(f"{path}: holds the entry {entry.name!r}")
        entries.append(entry)
    return sorted(entries, key=lambda e: (e.group, e.name))
