"""What the peers in PyTorch share: timed seeds, the fields of their ledger entries, and the command line."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from typing import Any

from experiments import ledger


def timed(
    measure: Callable[[int], Any],
    seeds: Sequence[int],
    *,
    busy: bool,
    note: Callable[[list[Any]], str],
    words: Callable[[Any], str],
) -> tuple[list[Any], dict[str, Any]]:
    """Measures each seed.

    Args:
        measure: what a seed comes to.
        seeds: the seeds.
        busy: whether the machine runs other work too, which the note then says.
        note: the entry's note, of what the seeds came to.
        words: how a seed's figure reads in print.

    Returns:
        What the seeds came to, and the fields of a `ledger.Result` that are the same for every peer.
    """
    found, meters = [], []
    for seed in seeds:
        with ledger.Meter() as meter:
            found.append(measure(seed))
        meters.append(meter)
        print(f"seed {seed}: {words(found[-1])} in {meter.seconds:.0f} s", flush=True)
    energies = [meter.energy_wh for meter in meters]
    return found, {
        "paper": "",
        "published": None,
        "goal": "min",
        "seeds": tuple(seeds),
        "seconds": tuple(meter.seconds for meter in meters),
        "energy_wh": None if None in energies else tuple(energy or 0.0 for energy in energies),
        "energy_how": meters[0].how,
        "device": ledger.device_description(),
        "commit": ledger.commit(),
        "date": datetime.date.today().isoformat(),
        "note": note(found) + (" The machine ran other work too: times are upper bounds." if busy else ""),
    }


def command(
    module: str,
    description: str | None,
    record: Callable[..., ledger.Result],
    seeds: Sequence[int],
    recipes: Sequence[str] = (),
) -> None:
    """The command line of a peer: measures its seeds, and enters them into the ledger where asked to.

    Of several recipes ``record`` is told one by name, ``recipe``; the first is the usual one.
    """
    parser = argparse.ArgumentParser(f"python -m experiments.{module}", description=description)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--record", action="store_true", help="enter the result into the ledger")
    parser.add_argument("--busy", action="store_true", help="note that the machine runs other work too")
    if recipes:
        parser.add_argument("--recipe", choices=recipes, default=recipes[0])
    options = parser.parse_args()
    chosen = {"recipe": options.recipe} if recipes else {}
    result = record(options.seeds, busy=options.busy, **chosen)
    if options.record:
        print(f"recorded in {ledger.record(result)}")
