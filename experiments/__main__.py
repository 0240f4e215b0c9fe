"""Lists all experiments: what each does, the published figure it reproduces, and ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from experiments import catalogue, ledger


def listing() -> Iterator[str]:
    """The list, line by line."""
    entries: dict[str | None, list[ledger.Entry]] = {}
    for entry in ledger.read():
        entries.setdefault(ledger.module_of(entry.command), []).append(entry)
    for experiment in catalogue.experiments():
        yield f"python -m {experiment.module}"
        yield f"    {experiment.summary}"
        yield f"    published: {experiment.published}"
        for entry in entries.get(experiment.module, []):
            if isinstance(entry, ledger.Result):
                seeds = f" ({ledger.seeds(entry)})" if entry.seeds else ""
                yield f"    ours:      {entry.title}, {entry.metric}: {ledger.ours(entry)}{seeds}"
            elif isinstance(entry, ledger.Estimate):
                yield f"    estimated: {entry.title}, by a compiler"
            else:
                for row in entry.rows:
                    ratio = entry.ratio(row)
                    said = f"{ledger.figure(row.median)} {entry.unit}"
                    said += "" if ratio is None else f", {entry.subject} is {ratio:.2f} times as good"
                    yield f"    measured:  {entry.title}, {row.label}: {said}"
        yield ""
    yield "Each takes --help. All figures: experiments/RESULTS.md"


def main() -> int:
    """Prints the list."""
    print("\n".join(listing()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
