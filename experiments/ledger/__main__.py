"""Renders the ledger, or checks that it is rendered."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.catalogue import ROOT
from experiments.ledger.rendering import rendered, stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders the ledger, or checks that it is rendered; the exit status says whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ledger", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a file is out of date"
    )
    check = parser.parse_args(arguments).check
    try:
        old = stale()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path in old:
        if check:
            print(
                f"{path.relative_to(ROOT)} is out of date: run python -m experiments.ledger", file=sys.stderr
            )
        else:
            path.write_text(rendered()[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main())
