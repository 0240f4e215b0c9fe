"""Tables of how large models scale over TPU pods, and of what saves memory, made by compiling ahead of time.

    nice python -m experiments.scaling_tables                        # every case that is not yet compiled
    nice python -m experiments.scaling_tables gpt_124m_v5e --record

Nothing is run and no TPU is needed, only libtpu (the ``tpu`` extra): the memory is the compiler's, the time a
roofline's. Weak scaling keeps the windows a chip, strong scaling those of the whole batch. A case takes a
minute or more; each is kept in a file under runs/scaling, so that the work may be stopped and gone on with,
for as long as the sources and the compiler are the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jdl
from experiments import cli, ledger, scaling
from jdl.compile import versions
from jdl.train.chips import GIB

PUBLISHED = "none: a compiler's estimates"

FOLDER = Path("runs/scaling")
CHIPS = {"v5e": ("4x4", "8x8", "16x16"), "v5p": ("4x4x4", "4x8x8", "8x8x16")}
"""Topologies by chip, a pod's (for v5p 1,024 chips of one) last."""

GPTS = {"124m": "124M", "1500m": "1.5B", "7b": "7B"}
SHARDS = 32
"""Chips that share one copy of the larger models. 128 would not divide the width of 1,600; and where all of
64 chips share, the compiler writes gathers and scatters as sums of whole arrays, twice the bytes. Its option
xla_tpu_prefer_async_allgather_to_allreduce brings the gathers back."""

COLUMNS = (
    "Chips",
    "Batch",
    "Memory a chip (GiB)",
    "of which temporaries (GiB)",
    "PFLOP a step",
    "Traffic a chip (GiB)",
    "Sent a chip (GiB)",
    "Step at least (ms)",
    "without overlap (ms)",
    "Utilisation at most (%)",
)


@functools.cache
def made_by() -> str:
    """A name for the sources and the compiler that a report is of: what others made is not mixed with it."""
    found = hashlib.sha256(json.dumps(versions()).encode())
    for file in [*sorted(Path(jdl.__file__).parent.rglob("*.py")), Path(scaling.__file__)]:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


class Case(NamedTuple):
    """A program to compile: what its row is called, for which topology, and its flags."""

    label: str
    topology: str
    flags: str

    @property
    def file(self) -> Path:
        """Where its report is kept."""
        words = f"{self.topology} {self.flags}".replace("--", "").replace(":", "_").replace(",", "_").split()
        return FOLDER / made_by() / f"{'-'.join(words)}.json"


class Table(NamedTuple):
    """A table of the ledger: its title, and its cases."""

    title: str
    cases: list[Case]


def chips(topology: str) -> int:
    """How many chips a topology has.

    Example:
        >>> chips("v5p:8x8x16")
        1024
    """
    count = 1
    for side in topology.partition(":")[2].split("x"):
        count *= int(side)
    return count


def mesh(size: str, n: int) -> str:
    """How a model is spread over so many chips: whole in each when it is small, else sharded over some.

    Example:
        >>> mesh("124M", 256), mesh("7B", 16), mesh("7B", 256)
        ('data:256', 'fsdp:16', 'data:8,fsdp:32')
    """
    if size == "124M":
        return f"data:{n}"
    return f"fsdp:{n}" if n <= SHARDS else f"data:{n // SHARDS},fsdp:{SHARDS}"


WINDOWS = 16
"""Windows of 1,024 tokens a chip in weak scaling, and on the smallest topology in strong scaling."""


def over_chips(size: str, chip: str) -> Table:
    """Weak and strong scaling of a GPT over the topologies of a chip."""
    topologies = [f"{chip}:{shape}" for shape in CHIPS[chip]]
    whole = WINDOWS * chips(topologies[0])
    # The largest model's activations of as many windows do not fit beside it in a v5e's 16 GiB.
    each = WINDOWS // 2 if (size, chip) == ("7B", "v5e") else WINDOWS
    batches = {f"weak, {topology}": each * chips(topology) for topology in topologies}
    batches |= {f"strong, {topology}": whole for topology in topologies}
    cases = []
    for label, batch in batches.items():
        topology = label.partition(", ")[2]
        flags = f"--size {size} --batch-size {batch} --remat full --mesh {mesh(size, chips(topology))}"
        cases.append(Case(label, topology, flags))
    kind = "the batch split" if size == "124M" else f"sharded over {SHARDS} chips at most, the batch split"
    return Table(
        f"GPT of {size} parameters on TPU {chip}, bfloat16, blocks rematerialised, {kind} over all", cases
    )


def options(size: str, what: str, batch: int) -> Table:
    """A model on one host's four chips, with and without each option that saves memory."""
    base = f"--size {size} --batch-size {batch} --mesh data:4"
    named = {
        "float32": "--dtype float32",
        "bfloat16": "",
        "bfloat16, remat dots": "--remat dots",
        "bfloat16, remat full": "--remat full",
        "bfloat16, accumulate 4": "--accumulate 4",
        "float32, accumulate 4": "--dtype float32 --accumulate 4",
        "bfloat16, remat full, accumulate 4": "--remat full --accumulate 4",
    }
    cases = [
        Case(label, "v5e:2x2", f"{base} {flags}".strip())
        for label, flags in named.items()
        if "dots" not in flags or size != "resnet50"
    ]
    return Table(
        f"{what}, batch {batch}, on four chips of TPU v5e, with and without what saves memory", cases
    )


TABLES = {
    "gpt_124m_options": options("124M", "GPT-2 of 124M parameters, 1,024 tokens", 32),
    "resnet50_options": options("resnet50", "ResNet-50, 224x224 images", 512),
    **{f"gpt_{name}_{chip}": over_chips(size, chip) for chip in CHIPS for name, size in GPTS.items()},
}


def compiled(case: Case) -> dict[str, Any]:
    """The report of a case: the one that is kept, or a new one, made in a process of its own."""
    if not case.file.is_file():
        print(f"compiling for {case.topology}: {case.flags}", flush=True)
        case.file.parent.mkdir(parents=True, exist_ok=True)
        draft = case.file.with_suffix(".tmp")
        command = ["jdl.compile", "experiments.scaling", "--topology", case.topology]
        command += ["--no-search", "--json", str(draft), *case.flags.split()]
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        if not draft.is_file():
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
        draft.rename(case.file)
    report: dict[str, Any] = json.loads(case.file.read_text())
    return report


def row(case: Case, report: dict[str, Any]) -> tuple[float | None, ...]:
    """The figures of a case."""
    batch = int(case.flags.split("--batch-size ")[1].split()[0])
    if not report["fits"]:
        return (chips(case.topology), batch, report["needed"] / GIB, *[None] * (len(COLUMNS) - 3))
    cost = report["programs"]["train"]
    memory, roofline = cost["memory"], cost["roofline"]
    return (
        chips(case.topology),
        batch,
        memory["total"] / GIB,
        memory["temporaries"] / GIB,
        sum(cost["flops"].values()) / 1e15,
        cost["traffic"] / GIB,
        cost["sent"] / GIB,
        1e3 * roofline["seconds"],
        1e3 * roofline["without_overlap"],
        100 * roofline["utilisation"],
    )


def exchanged(report: dict[str, Any]) -> str:
    """What devices send to one another, by kind; or that the case does not fit."""
    if not report["fits"]:
        return "does not fit"
    found = report["programs"]["train"]["collectives"]
    return ", ".join(f"{kind} {each['sent'] / GIB:.3g} GiB" for kind, each in found.items() if each["sent"])


def estimate(name: str, kept: bool = False) -> ledger.Estimate:
    """A table for the ledger, compiling what is not yet compiled, or of those cases alone that are kept."""
    table = TABLES[name]
    reports = {case: compiled(case) for case in table.cases if case.file.is_file() or not kept}
    missing = [case.label for case in table.cases if case not in reports]
    fitting = [r for r in reports.values() if r["fits"]]
    if not fitting:
        raise ValueError(f"{name}: no case is compiled that fits in the chips' memory")
    return ledger.Estimate(
        name=f"estimate_{name}",
        title=table.title,
        group="Scaling",
        columns=COLUMNS,
        rows={case.label: row(case, report) for case, report in reports.items()},
        notes={case.label: exchanged(report) for case, report in reports.items()},
        assumptions=tuple(fitting[0]["programs"]["train"]["roofline"]["assumptions"]),
        command=f"python -m experiments.scaling_tables {name} --record",
        compiler=fitting[0]["versions"],
        date=min(report["date"] for report in reports.values()),
        note=f"Peak rates: {fitting[0]['programs']['train']['chip']['source']}."
        + (f" Not compiled yet: {'; '.join(missing)}." if missing else ""),
    )


def lines(entry: ledger.Estimate) -> Iterator[str]:
    """A table for a terminal."""
    yield entry.title
    for label, figures in entry.rows.items():
        told = (f"{c} {ledger.figure(x)}" for c, x in zip(COLUMNS, figures, strict=True) if x is not None)
        yield f"  {label}: {', '.join(told)}"
        yield from (f"    {entry.notes[label]}" for _ in range(label in entry.notes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the tables that the arguments name."""
    parser = cli.parser("experiments.scaling_tables", __doc__)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; all when none is named")
    parser.add_argument("--record", action="store_true", help="write the tables into the ledger")
    parser.add_argument("--kept", action="store_true", help="compile nothing: only the cases that are kept")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.tables) - set(TABLES))
    if unknown:
        parser.error(f"no table is called {', '.join(unknown)}: there are {', '.join(TABLES)}")
    for name in asked.tables or TABLES:
        entry = estimate(name, asked.kept)
        print("\n".join(lines(entry)), flush=True)
        if asked.record:
            print(f"recorded in {ledger.record(entry)}; python -m experiments.ledger renders it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
