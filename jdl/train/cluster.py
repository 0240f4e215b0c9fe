"""Which processes train as one: what a launcher's environment variables say, or a list of hosts.

JAX itself finds the processes of Open MPI, Slurm, Cloud TPU and Kubernetes. Here it is decided whether there
are several at all, variables that contradict each other become a sentence, and what JAX leaves open is
settled: a plain list of hosts, and which GPUs are whose where processes share a machine.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

HOSTS = "JDL_HOSTS"
"""Environment variable with a list of hosts, as in `expand`."""

ALONE = "alone"
"""Instead of a list of hosts: this process trains by itself, whatever the environment says."""

PORT = 8476
"""Where process 0 listens, unless the list of hosts says so."""

_BY_ITSELF = f'to train in this process by itself, give hosts="{ALONE}" (--hosts {ALONE} or {HOSTS}={ALONE})'


class Launch(NamedTuple):
    """What launched this process.

    Attributes:
        arguments: what `jax.distributed.initialize` is to be told; little where JAX finds the rest itself.
        processes: how many there are, where that is known.
        is_certain: False where only JAX can find out whether there are several.
    """

    arguments: dict[str, Any]
    processes: int | None = None
    is_certain: bool = True


def find(
    address: str | None = None,
    index: int | None = None,
    count: int | None = None,
    hosts: str | Sequence[str] | None = None,
) -> Launch | None:
    """What launched this process, from arguments as in `jdl.train.connect` and the environment.

    Returns:
        None for a process by itself.

    Raises:
        ValueError: if arguments or environment variables contradict each other, or say too little.
    """
    if hosts is None and address is None:
        hosts = os.environ.get(HOSTS)
    if hosts == ALONE:
        return None
    if hosts:
        if address is not None:
            raise ValueError(f"give hosts or an address, not both; got {hosts!r} and {address!r}")
        return _listed(expand(hosts), index, count)
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise ValueError(f'the address of process 0 must read "host:port"; got {address!r}')
    if (index is None) != (count is None):
        raise ValueError(f"index and count come together; got index {index} and count {count}")
    if index is not None and count is not None:
        if address is None:
            raise ValueError(f"process {index} of {count} needs the address of process 0, or hosts")
        _check_index(index, count, "index", "count")
        return _told(address, index, count)
    for launcher in (_open_mpi, _slurm, _cloud_tpu, _kubernetes):
        launch = launcher()
        if launch is None:
            continue
        if launch.processes == 1:
            return None
        if address is not None:
            launch.arguments["coordinator_address"] = address
        return launch
    if address is not None:
        raise ValueError(
            f"process 0 is at {address}, but neither arguments nor a launcher say which process this is, and "
            f"of how many; {_BY_ITSELF}"
        )
    return None


def _told(address: str, index: int, count: int) -> Launch:
    return Launch({"coordinator_address": address, "num_processes": count, "process_id": index}, count)


def expand(hosts: str | Sequence[str]) -> list[str]:
    """Every host of a list, in order.

    Args:
        hosts: names or addresses, in one text with commas or apart; ranges as Slurm writes them, and a port
            ":N" after the first or after each.

    Example:
        >>> expand("gpu[08-10,12].lab:1234,10.0.0.7")
        ['gpu08.lab:1234', 'gpu09.lab:1234', 'gpu10.lab:1234', 'gpu12.lab:1234', '10.0.0.7']
    """
    text = hosts if isinstance(hosts, str) else ",".join(hosts)
    found = []
    # A comma within brackets belongs to a range.
    for part in re.split(r",(?![^\[]*\])", text):
        ranges = re.search(r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]", part)
        if ranges is None:
            found.append(part.strip())
            continue
        before, after = part[: ranges.start()].strip(), part[ranges.end() :].strip()
        for each in ranges[1].split(","):
            first, _, last = each.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            found += [f"{before}{number:0{len(first)}d}{after}" for number in numbers]
    return found


def _listed(hosts: Sequence[str], index: int | None, count: int | None) -> Launch | None:
    """One process on each host of a list."""
    names: list[str] = []
    ports: set[str] = set()
    for host in hosts:
        read = re.fullmatch(r"(\[[^]]+\]|[^:\s]+)(?::(\d+))?", host)
        if read is None:
            raise ValueError(f'hosts must read like "first:{PORT},second,third"; got {host!r} among them')
        names.append(read[1])
        if read[2]:
            ports.add(read[2])
    if len(ports) > 1:
        raise ValueError(f"the port is process 0's, so there is one; got {', '.join(sorted(ports))}")
    if count is not None and count != len(names):
        raise ValueError(f"there are {len(names)} hosts, {', '.join(names)}, and count is {count}")
    if index is None:
        index = _own_place(names)
    _check_index(index, len(names), "index", "the number of hosts")
    if len(names) == 1:
        return None
    port = ports.pop() if ports else PORT
    return _told(f"{names[0]}:{port}", index, len(names))


def _own_place(names: Sequence[str]) -> int:
    """Which of the hosts this machine is: by its name, else by its addresses."""
    full = socket.getfqdn().lower()
    parts = full.split(".")
    # A name may leave out the end of the domain: the first label, the first two, ...
    known = {socket.gethostname().lower(), *(".".join(parts[: i + 1]) for i in range(len(parts)))}
    found = [i for i, name in enumerate(names) if name.lower() in known]
    found = found or [i for i, name in enumerate(names) if _is_here(name.strip("[]"))]
    if len(found) == 1:
        return found[0]
    what = (
        f"{', '.join(names[i] for i in found)} are all this machine: give the index of each process on it"
        if found
        else f"none of {', '.join(names)} is this machine, which is called {full}: give its index, or a name "
        "or an address that is its own"
    )
    raise ValueError(what + " (--process)")


def _is_here(name: str) -> bool:
    """Whether a name or an address is this machine's: only on its own addresses can a socket listen."""
    try:
        addresses = {entry[4][:2] for entry in socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    for address in addresses:
        family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False


def _open_mpi() -> Launch | None:
    size, rank = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"
    if size not in os.environ:
        return None
    count, index = _number(size), _number(rank, needed_by=size)
    _check_index(index, count, rank, size)
    found = _devices(_number("OMPI_COMM_WORLD_LOCAL_RANK", 0), _number("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    if "OMPI_MCA_orte_hnp_uri" in os.environ or count == 1:
        return Launch(found, count)
    # Version 5 no longer says where process 0 is.
    if find_spec("mpi4py") is not None:
        return Launch({**found, "cluster_detection_method": "mpi4py"}, count)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        return Launch({**found, "num_processes": count, "process_id": index}, count)
    raise ValueError(
        "this Open MPI does not say where process 0 is: install mpi4py, or set "
        f"JAX_COORDINATOR_ADDRESS=host:port (mpirun -x); {_BY_ITSELF}"
    )


def _slurm() -> Launch | None:
    size, rank, local = "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"
    if "SLURM_JOB_ID" not in os.environ:
        return None
    count = _number(size, 1)
    missing = [name for name in ("SLURM_STEP_NODELIST", rank, local) if name not in os.environ]
    if count > 1 and missing:
        raise ValueError(
            f"{size} is {count}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
            f"start the processes with srun; {_BY_ITSELF}"
        )
    if count == 1:
        return Launch({}, 1)
    _check_index(_number(rank), count, rank, size)
    here = _tasks_here()
    return Launch(_devices(_number(local), here) if here else {}, count)


def _tasks_here() -> int | None:
    """How many tasks of this Slurm step run on this node: "2(x3),1" is two on each of three, then one."""
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    each: list[int] = []
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        each += [int(tasks)] * int(nodes or 1)
    node = _number("SLURM_NODEID", 0)
    return each[node] if node < len(each) else None


def _devices(index: int, count: int) -> dict[str, Any]:
    """Which GPUs are this process's, the ``index``-th of ``count`` of its machine.

    JAX would take one, the ``index``-th: too few for one process a machine, and one that is not there where
    the launcher shows each process its own alone.
    """
    visible = _visible_gpus()
    if not visible or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return {}
    per_task = os.environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    if visible < max(count, _number("SLURM_GPUS_ON_NODE", 0)) or per_task == str(visible):
        return {"local_device_ids": list(range(visible))}
    if visible % count:
        raise ValueError(f"{count} processes of a machine cannot share its {visible} GPUs evenly")
    part = visible // count
    return {"local_device_ids": list(range(index * part, (index + 1) * part))}


def _visible_gpus() -> int:
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in os.environ:
            return len([gpu for gpu in os.environ[name].split(",") if gpu.strip() not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()])


def _cloud_tpu() -> Launch | None:
    if not _has_tpu():
        return None
    several = "MEGASCALE_NUM_SLICES"
    slices = _number(several, 1)
    if slices > 1:
        name = "MEGASCALE_SLICE_ID"
        _check_index(_number(name, needed_by=several), slices, name, several)
        if not os.environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
            raise ValueError(f"{several} is {slices}, but MEGASCALE_COORDINATOR_ADDRESS is not set")
    if "TPU_PROCESS_ADDRESSES_PATH" in os.environ:
        return Launch({})
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if name in os.environ:
            hosts = len(os.environ[name].split(","))
            if hosts * slices > 1:
                index = _number("TPU_WORKER_ID", needed_by=name)
                _check_index(index, hosts, "TPU_WORKER_ID", f"the hosts in {name}")
            return Launch({}, hosts * slices)
    # On a virtual machine of Compute Engine only its metadata server knows, and JAX asks it.
    return Launch({}, 1) if "TPU_SKIP_MDS_QUERY" in os.environ else Launch({}, is_certain=False)


def _has_tpu() -> bool:
    """Whether JAX will run on TPU chips of this machine, told without starting it."""
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] not in ("", "tpu"):
        return False
    return find_spec("libtpu") is not None and any(
        os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0")
    )


def _kubernetes() -> Launch | None:
    # A pod that is none of an indexed job, such as a notebook's, is alone.
    if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys():
        return None
    _number("JOB_COMPLETION_INDEX")
    if find_spec("kubernetes") is None:
        raise ValueError(
            f"this is a pod of an indexed job, and its variables do not say of how many: set {HOSTS} to the "
            'pods\' names, such as "NAME-[0-3].SERVICE", or install the package kubernetes for JAX to ask; '
            + _BY_ITSELF
        )
    return Launch({})


def _number(name: str, default: int | None = None, needed_by: str = "") -> int:
    text = os.environ.get(name)
    if text is None:
        if default is not None:
            return default
        raise ValueError(f"{needed_by} is set, but {name} is not; {_BY_ITSELF}")
    if not text.strip().isdecimal():
        raise ValueError(f"{name} must be a whole number; got {text!r}")
    return int(text)


def _check_index(index: int, count: int, name: str, of: str) -> None:
    if not 0 <= index < count:
        raise ValueError(f"{name} must be at least 0 and less than {of}, {count}; got {index}")
