"""The ledger's tables, in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.catalogue import ROOT
from experiments.ledger.entries import (
    MEMORY,
    RESULTS,
    Benchmark,
    Entry,
    Estimate,
    Result,
    Row,
    machine,
    read,
)

REPORT = ROOT / "experiments" / "RESULTS.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- ledger:begin -->", "<!-- ledger:end -->"


def figure(value: float) -> str:
    """A number with at most three digits after the point, and four that count.

    Example:
        >>> figure(0.95), figure(98.333333), figure(1234.5), figure(0.000123456)
        ('0.95', '98.33', '1,234', '0.0001235')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = 3 - math.floor(math.log10(abs(value)))
    if decimals <= 0:
        return f"{value:,.0f}"
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".")


def ours(result: Result) -> str:
    """Our figure in words: mean, spread, unit, or "not yet measured"."""
    if not result.values:
        return "not yet measured"
    if len(result.values) == 1:
        return f"{figure(result.mean)} {result.unit}"
    # The mean is shown to the digit that its spread reaches, so that no digit is noise alone.
    decimals = 2 if result.spread == 0 else min(6, max(0, 1 - math.floor(math.log10(result.spread))))
    return f"{result.mean:.{decimals}f} ± {result.spread:.{decimals}f} {result.unit}"


def seeds(result: Result) -> str:
    """How many seeds it was measured on, in words."""
    count = len(result.seeds)
    return f"{count} seed" if count == 1 else f"{count} seeds"


def theirs(result: Result) -> str:
    """The published figure in words; a figure quoted from memory says so."""
    if result.published is None:
        return "none"
    recalled = "" if result.published.checked == "verified" else " (recalled)"
    return f"{figure(result.published.value)} {result.unit}{recalled}"


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(7.25), duration(95), duration(7300)
        ('7.2 s', '1 min 35 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _cost(result: Result) -> tuple[str, str]:
    if not result.values:
        return "", ""
    energy = "not known" if result.energy_wh is None else f"{figure(statistics.fmean(result.energy_wh))} Wh"
    time = "not known" if result.seconds is None else duration(statistics.fmean(result.seconds))
    return time, energy


def _device(device: Mapping[str, Any], commit: str = "") -> str:
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in device.items())
    return f"{told}, commit {commit}" if commit else told


def _result_details(result: Result) -> list[str]:
    lines = [f"- **{result.title}** (`{result.name}`). "]
    if result.paper:
        lines[0] += f"{result.paper} "
    if result.published:
        lines[0] += f"Figure: {result.published.where}, {result.published.checked}. "
    else:
        lines[0] += "No published figure. "
    lines[0] += f"Data: {result.dataset} (fingerprint `{result.fingerprint}`)."
    if result.values:
        values = ", ".join(
            f"{figure(v)} (seed {s})" for s, v in zip(result.seeds, result.values, strict=True)
        )
        lines.append(f"  Each seed: {values}. Energy: {result.energy_how}.")
        lines.append(f"  Measured on {result.date}: {_device(result.device, result.commit)}.")
    if result.note:
        lines.append(f"  {result.note}")
    return lines


def render(entries: Sequence[Entry]) -> str:
    """RESULTS.md: every result beside the published figure, then benchmarks, then estimates."""
    lines = [
        "# Results",
        "",
        "Rendered from `experiments/results/` by `python -m experiments.ledger`: edit nothing here by hand.",
        "Ours is the mean over seeds ± the sample standard deviation. A published figure is marked where it",
        "was quoted from memory and not yet checked against the paper.",
    ]
    results = [e for e in entries if isinstance(e, Result)]
    header = ["Result", "Metric", "Published", "Ours", "Seeds", "Time a seed", "Energy a seed", "Command"]
    for group in dict.fromkeys(r.group for r in results):
        members = [r for r in results if r.group == group]
        rows = [
            [
                r.title,
                f"{r.metric} ({r.goal})",
                theirs(r),
                ours(r),
                str(len(r.seeds)),
                *_cost(r),
                f"`{r.command}`",
            ]
            for r in members
        ]
        lines += ["", f"## {group}", "", *_table(header, rows), ""]
        for r in members:
            lines += _result_details(r)
    benchmarks = [e for e in entries if isinstance(e, Benchmark)]
    if benchmarks:
        lines += [
            "",
            "## Benchmarks",
            "",
            "A ratio above one says how many times better the row in bold is than the row it stands in.",
            "Where it is said that blocks are kept, a sample is a block of steps, and contenders took turns.",
        ]
    for b in benchmarks:
        compares = ["Ratio"] if b.base is None else [f"Added, {b.unit}", "Added, %"]
        more = list(dict.fromkeys(name for row in b.rows for name in row.more))
        rows = [
            [
                f"**{row.label}**" if row.label == b.subject else row.label,
                f"{figure(row.median)} {b.unit}",
                f"{figure(row.quartiles[0])} to {figure(row.quartiles[1])}",
                str(len(row.samples)),
                *_compared(b, row),
                *[figure(row.more[name]) if name in row.more else "" for name in more],
            ]
            for row in b.rows
        ]
        where = f", {machine(b.device)}" if [e.title for e in benchmarks].count(b.title) > 1 else ""
        lines += ["", f"### {b.title}{where}", ""]
        lines += _table([b.metric, "Median", "Quartiles", "Samples", *compares, *more], rows)
        lines += ["", f"`{b.command}`, {b.date}: {_device(b.device, b.commit)}."]
        if b.note:
            lines += [b.note]
        if b.past:
            past = ", ".join(f"{ratio:.2f} ({date})" for date, ratio in b.past)
            lines += [f"Beside the best peer, measured earlier: {past}."]
    return "\n".join(lines + _estimates([e for e in entries if isinstance(e, Estimate)])) + "\n"


def _compared(b: Benchmark, row: Row) -> list[str]:
    """The ratio of a row, or what it adds to the base."""
    if b.base is None:
        ratio = b.ratio(row)
        return ["" if ratio is None else f"{ratio:.2f}"]
    added = b.added(row)
    return ["", ""] if added is None else [f"{added[0]:.1f}", f"{added[1]:.1f}"]


def _estimates(entries: Sequence[Estimate]) -> list[str]:
    """The tables of what was compiled and not run."""
    if not entries:
        return []
    lines = [
        "",
        "## Estimates",
        "",
        "**Nothing here was run.** Programs were compiled for machines that were not there: the memory is",
        "the compiler's, the time a roofline's (the least that a step can take at the chips' peak rates).",
    ]
    for e in entries:
        rows = [[label, *("" if x is None else figure(x) for x in row)] for label, row in e.rows.items()]
        lines += ["", f"### {e.title}", "", *_table(["Compiler's estimate", *e.columns], rows), ""]
        lines += [f"- {label}: {note}" for label, note in e.notes.items()]
        lines += [f"Assumed: {'; '.join(e.assumptions)}.", ""]
        lines += [f"`{e.command}`, {e.date}: {_device(e.compiler)}. {e.note}".rstrip()]
    return lines


def render_summary(entries: Sequence[Entry]) -> str:
    """The README's tables: every result, and every benchmark that compares, beside the best of the peers."""
    rows = [
        [
            r.title,
            r.metric,
            theirs(r),
            f"{ours(r)}, {seeds(r)}" if r.values else ours(r),
            f"`{r.command}`",
        ]
        for r in entries
        if isinstance(r, Result)
    ]
    lines = _table(["Result", "Metric", "Published", "Ours", "Command"], rows) if rows else []
    ratios = [_beside(b) for b in entries if isinstance(b, Benchmark) and b.subject is not None]
    if ratios:
        header = [
            "Benchmark",
            "Machine",
            "Metric",
            "Contender",
            "Times as good as its best peer",
            "Peak memory, MiB, beside that peer's",
            "Times as good as its own variants",
        ]
        lines += ["", *_table(header, ratios)] if lines else _table(header, ratios)
    return "\n".join(lines) + "\n" if lines else "Nothing has been measured yet.\n"


def _beside(b: Benchmark) -> list[str]:
    """A benchmark's row in the README."""
    peer, memory = b.best_peer, ""
    subject = b.row(b.subject or "")
    if peer is not None and MEMORY in subject.more and MEMORY in peer.more:
        memory = f"{figure(subject.more[MEMORY])} beside {figure(peer.more[MEMORY])}"
    return [
        b.title,
        machine(b.device),
        b.metric,
        subject.label,
        "no peer" if peer is None else f"{b.ratio(peer):.2f} ({peer.label})",
        memory,
        ", ".join(f"{b.ratio(row):.2f} ({row.label.removeprefix(f'{b.subject}, ')})" for row in b.variants),
    ]


def with_summary(readme: str, entries: Sequence[Entry]) -> str:
    """The README's text with its table rendered anew.

    Raises:
        ValueError: where the two marks are not there, once each and in order.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README.md must hold {BEGIN} and then {END}, once each")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render_summary(entries)}{END}{after}"


def rendered(root: Path = ROOT) -> dict[Path, str]:
    """The files rendered from the ledger, as they should be."""
    entries = read(root / RESULTS.relative_to(ROOT))
    files = {root / REPORT.relative_to(ROOT): render(entries)}
    readme = root / README.relative_to(ROOT)
    if readme.is_file():
        files[readme] = with_summary(readme.read_text(encoding="utf-8"), entries)
    return files


def stale(root: Path = ROOT) -> list[Path]:
    """The rendered files that are not up to date."""
    return [
        path
        for path, text in rendered(root).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
