"""What was measured as entries of the ledger, as tables, and as one picture."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import ledger
from experiments.ledger.entries import Goal

GROUP = "Speed"
OURS = "jdl"
"""The contender that ratios speak for; where a label begins so, the contender is no peer of it."""


def entry(
    name: str,
    title: str,
    metric: str,
    unit: str,
    samples: Mapping[str, Sequence[float]],
    command: str,
    note: str = "",
    *,
    goal: Goal = "min",
    more: Mapping[str, Mapping[str, float]] | None = None,
    base: str | None = None,
) -> ledger.Benchmark:
    """A benchmark for the ledger, with today's date, this machine and this code.

    Args:
        name: the file's name.
        title: what was measured.
        metric: what a sample is.
        unit: its unit.
        samples: by label.
        command: that measures it again.
        note: what a reader must know.
        goal: whether less is better.
        more: by label, further figures by name.
        base: the label of what the others hold and add something to.
    """
    return ledger.Benchmark(
        name=name,
        title=title,
        group=GROUP,
        metric=metric,
        goal=goal,
        unit=unit,
        subject=OURS if OURS in samples else None,
        rows=tuple(
            ledger.Row(
                label,
                tuple(round(s, 4) for s in values),
                {what: round(x, 3) for what, x in (more or {}).get(label, {}).items()},
            )
            for label, values in samples.items()
        ),
        command=command,
        device=ledger.device_description(),
        date=datetime.date.today().isoformat(),
        note=note,
        commit=ledger.commit(),
        base=base,
    )


def fastest_peer(found: ledger.Benchmark) -> tuple[str, float] | None:
    """The peer that the subject has least of an advantage over, and how many times better the subject is."""
    peer = found.best_peer
    ratio = None if peer is None else found.ratio(peer)
    return None if peer is None or ratio is None else (peer.label, ratio)


def table(found: ledger.Benchmark) -> str:
    """A benchmark as text: median, quartiles, how many times as good the subject is, and further figures."""
    more = list(dict.fromkeys(name for row in found.rows for name in row.more))
    widths = [max(len(name), 8) + 2 for name in more]
    lines = [
        f"{found.title}: {found.metric}, {found.unit}",
        f"{'':42}{'median':>10}{'quartiles':>20}{'ratio':>8}"
        + "".join(f"{name:>{width}}" for name, width in zip(more, widths, strict=True)),
    ]
    for row in found.rows:
        first, third = (ledger.figure(q) for q in row.quartiles)
        ratio = found.ratio(row)
        line = f"{row.label:42}{ledger.figure(row.median):>10}{f'{first} to {third}':>20}"
        line += " " * 8 if ratio is None else f"{ratio:8.2f}"
        for name, width in zip(more, widths, strict=True):
            line += f"{ledger.figure(row.more[name]) if name in row.more else '':>{width}}"
        lines.append(line.rstrip())
        if (added := found.added(row)) is not None:
            lines.append(f"{row.label} adds {added[0]:.1f} {found.unit} ({added[1]:.1f} %) to {found.base}")
    if (fastest := fastest_peer(found)) is not None:
        lines.append(f"{OURS} is {fastest[1]:.2f} times as good as the best of its peers, {fastest[0]}")
    return "\n".join(lines) + "\n"


def write(entries: Sequence[ledger.Benchmark], folder: Path) -> list[Path]:
    """Writes the entries, a table of the ratios to the fastest peer in JSON, and the picture of all ratios.

    What earlier runs wrote into the folder is in the table and the picture too, so that a long measurement
    may be made in parts.

    Returns:
        The files' paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [ledger.record(each, folder / "entries") for each in entries]
    known = [each for each in ledger.read(folder / "entries") if isinstance(each, ledger.Benchmark)]
    compared = [each for each in known if fastest_peer(each) is not None]
    if compared:
        ratios = {
            each.name: {
                "fastest peer": dict(zip(("label", "ratio"), fastest_peer(each) or (), strict=True)),
                "ratios": {row.label: each.ratio(row) for row in each.rows if row.label != each.subject},
            }
            for each in compared
        }
        summary = folder / "ratios.json"
        summary.write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")
        paths += [summary, picture(compared, folder / "ratios.png")]
    return paths


def picture(entries: Sequence[ledger.Benchmark], path: Path) -> Path:
    """Draws how many times as fast jdl is as each peer, workload by workload."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.45 * len(entries)), layout="constrained")
    axes = figure.subplots()
    names = [each.name.removesuffix("_step") for each in entries]
    peers = dict.fromkeys(
        row.label for each in entries for row in each.rows if not row.label.startswith(OURS)
    )
    for marker, peer in zip("osD^vPX*" * len(peers), peers, strict=False):
        points = [
            (ratio, i)
            for i, each in enumerate(entries)
            for row in each.rows
            if row.label == peer and (ratio := each.ratio(row)) is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, label=peer, markersize=7, alpha=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.set_xlabel("how many times as fast jdl is (right of 1: faster)")
    axes.set_title(f"{entries[0].device.get('processor', '')}, {entries[0].date}", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    return path
