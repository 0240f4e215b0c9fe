"""Which processes train as one, told by imitated environments: no cluster is there."""

from __future__ import annotations

import importlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import cli
from jdl import data, train
from jdl.train import checkpoint, cluster, hosts

LAUNCHERS = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_", "JDL_HOSTS", "JAX_")
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}
ORTE = {**OMPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
POD = {"TPU_WORKER_HOSTNAMES": "t-0,t-1", "TPU_WORKER_ID": "1"}
SLICES = {
    **POD,
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "t-0",
}
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}


class Machine:
    """What a test decides of the machine that it imitates, and what JAX was told on it."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.patch = patch
        self.packages: set[str] = set()
        self.has_tpu = False
        self.answer: Exception | None = None
        self.told: list[dict[str, Any]] = []

    def setenv(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            self.patch.setenv(name, value)

    def initialize(self, *arguments: Any, **named: Any) -> None:
        assert not arguments
        if self.answer is not None:
            raise self.answer
        times = {name: named.pop(name) for name in list(named) if name.endswith(("_seconds", "_timeout"))}
        assert set(times.values()) == {20, 60, 300}
        self.told.append(named)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    for name in [name for name in os.environ if name.startswith(LAUNCHERS) or name in DEVICES]:
        if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "JAX_PLATFORMS")):
            monkeypatch.delenv(name)
    found = Machine(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(cluster, "find_spec", lambda name: name if name in found.packages else None)
    monkeypatch.setattr(cluster, "_has_tpu", lambda: found.has_tpu)
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu08")
    monkeypatch.setattr(socket, "getfqdn", lambda name="": "gpu08.lab")
    monkeypatch.setattr(jax.distributed, "initialize", found.initialize)
    before = jax.config.jax_cpu_collectives_implementation  # type: ignore[attr-defined]
    yield found
    jax.config.update("jax_cpu_collectives_implementation", before)


def several(address: str, count: int, index: int) -> dict[str, Any]:
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, None),
        ({"JDL_HOSTS": "gpu07:1234,gpu08"}, several("gpu07:1234", 2, 1)),
        ({"JDL_HOSTS": "gpu08.lab,gpu09.lab"}, several("gpu08.lab:8476", 2, 0)),
        ({"JDL_HOSTS": "gpu[07-10]"}, several("gpu07:8476", 4, 1)),
        ({"JDL_HOSTS": "gpu08"}, None),
        ({"JDL_HOSTS": "alone", **SLURM}, None),
        # Slurm: JAX knows all but the GPUs.
        (SLURM, {}),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1"}, {"local_device_ids": [1]}),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"local_device_ids": [2, 3]}),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0"}, {"local_device_ids": [0]}),
        (
            {**SLURM, "CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "4"},
            {"local_device_ids": [0, 1]},
        ),
        (
            {**SLURM, "CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_PER_TASK": "h100:2"},
            {"local_device_ids": [0, 1]},
        ),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1", "JAX_LOCAL_DEVICE_IDS": "0"}, {}),
        # One process a node that drives all of its GPUs.
        (
            {
                **SLURM,
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            },
            {"local_device_ids": [0, 1, 2, 3, 4, 5, 6, 7]},
        ),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "1"}, None),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "gpu07:1"}, {"coordinator_address": "gpu07:1"}),
        # Open MPI 4 and 5.
        (ORTE, {}),
        ({**ORTE, "CUDA_VISIBLE_DEVICES": "0,1"}, {"local_device_ids": [0, 1]}),
        ({**ORTE, **SLURM}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        ({**OMPI, "JAX_COORDINATOR_ADDRESS": "a:1"}, several("a:1", 2, 1)),
        # A notebook in a pod, and jobs that are not indexed, are alone.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({**JOB, "JDL_HOSTS": "gpu[06-09].train:1"}, several("gpu06.train:1", 4, 2)),
    ],
)
def test_environments(environment: dict[str, str], told: dict[str, Any] | None, machine: Machine) -> None:
    machine.setenv(environment)
    if "train" in environment.get("JDL_HOSTS", ""):
        machine.patch.setattr(socket, "getfqdn", lambda name="": "gpu08.train.default.svc")
    train.connect()
    assert machine.told == ([] if told is None else [told])


def test_packages_that_jax_asks(machine: Machine) -> None:
    machine.packages = {"mpi4py", "kubernetes"}
    machine.setenv(OMPI)
    train.connect()
    for name in OMPI:
        machine.patch.delenv(name)
    machine.setenv(JOB)
    train.connect()
    assert machine.told == [{"cluster_detection_method": "mpi4py"}, {}]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (POD, {}),
        (SLICES, {}),
        ({**SLICES, "TPU_WORKER_HOSTNAMES": "t-0", "TPU_WORKER_ID": "0"}, {}),
        ({"TPU_PROCESS_ADDRESSES_PATH": "/etc/tpu"}, {}),
        ({}, {}),
        # Colab and Kaggle.
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_PROCESS_ADDRESSES": "local"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
    ],
)
def test_cloud_tpu(environment: dict[str, str], told: dict[str, Any] | None, machine: Machine) -> None:
    machine.setenv(environment)
    train.connect()
    assert machine.told == []  # Without chips the variables mean nothing.
    machine.has_tpu = True
    train.connect()
    assert machine.told == ([] if told is None else [told])


def test_a_tpu_that_no_metadata_server_knows_is_alone(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_tpu, machine.answer = True, ValueError("coordinator_address should be defined.")
    train.connect()
    assert "this one trains by itself" in capsys.readouterr().err
    machine.setenv(POD)
    with pytest.raises(ValueError, match="coordinator_address should be defined"):
        train.connect()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {name: x for name, x in SLURM.items() if name != "SLURM_PROCID"},
            "SLURM_NTASKS is 4, but SLURM_PROCID is not set: start the processes with srun",
        ),
        (
            {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
            "SLURM_STEP_NODELIST is not set",
        ),
        ({**SLURM, "SLURM_PROCID": "4"}, "SLURM_PROCID must be at least 0 and less than SLURM_NTASKS, 4"),
        ({**SLURM, "SLURM_NTASKS": "four"}, "SLURM_NTASKS must be a whole number; got 'four'"),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2"}, "2 processes of a machine cannot share its 3 GPUs"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is set, but OMPI_COMM_WORLD_RANK is not"),
        (OMPI, "does not say where process 0 is: install mpi4py"),
        (JOB, 'a pod of an indexed job.*JDL_HOSTS.*"NAME-.0-3..SERVICE"'),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "process 0 is at a:1, but neither arguments nor a launcher"),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "a"}, 'must read "host:port"'),
        ({"JDL_HOSTS": "gpu[01-04]:9"}, "none of gpu01, .* is this machine, which is called gpu08.lab"),
        ({"JDL_HOSTS": "gpu08,gpu08"}, "gpu08, gpu08 are all this machine: give the index"),
        ({"JDL_HOSTS": "gpu08:1,b:2"}, "the port is process 0's.*got 1, 2"),
        ({"JDL_HOSTS": "gpu08,,b"}, 'hosts must read like "first:8476,second,third"'),
        ({"JDL_HOSTS": "gpu08,b:x"}, "got 'b:x'"),
    ],
)
def test_contradictions(environment: dict[str, str], says: str, machine: Machine) -> None:
    machine.setenv(environment)
    with pytest.raises(ValueError, match=says):
        train.connect()
    # Whatever it is, a process can be told to be alone.
    train.connect(hosts="alone")
    assert machine.told == []


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES is set, but TPU_WORKER_ID is not"),
        ({**POD, "TPU_WORKER_ID": "2"}, "TPU_WORKER_ID must be .* less than the hosts in TPU_WORKER_HOST"),
        ({**SLICES, "MEGASCALE_SLICE_ID": "2"}, "MEGASCALE_SLICE_ID must be"),
        ({**POD, "MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_SLICE_ID is not"),
        ({**SLICES, "MEGASCALE_COORDINATOR_ADDRESS": ""}, "MEGASCALE_COORDINATOR_ADDRESS is not set"),
    ],
)
def test_contradictions_of_cloud_tpu(environment: dict[str, str], says: str, machine: Machine) -> None:
    machine.has_tpu = True
    machine.setenv(environment)
    with pytest.raises(ValueError, match=says):
        train.connect()


def test_arguments(machine: Machine) -> None:
    machine.setenv({"JDL_HOSTS": "x,y"})
    train.connect("a:1", 1, 2)
    train.connect(hosts=["a:7", "gpu08.lab", "c"])
    train.connect(hosts="gpu08,gpu08", index=1)
    train.connect(hosts="a,b", index=0, count=2)
    assert machine.told == [
        several("a:1", 2, 1),
        several("a:7", 3, 1),
        several("gpu08:8476", 2, 1),
        several("a:8476", 2, 0),
    ]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"address": "a", "index": 0, "count": 2}, "host:port"),
        ({"address": "a:1", "index": 2, "count": 2}, "index must be at least 0 and less than count, 2"),
        ({"address": "a:1", "index": 0}, "index and count come together"),
        ({"address": "a:1", "hosts": "b"}, "give hosts or an address, not both"),
        ({"hosts": "a,b", "index": 0, "count": 3}, "there are 2 hosts, a, b, and count is 3"),
        ({"hosts": "a,b", "index": 2}, "index must be"),
    ]
    for arguments, says in wrong:
        with pytest.raises(ValueError, match=says):
            train.connect(**arguments)
    machine.patch.delenv("JDL_HOSTS")
    with pytest.raises(ValueError, match="process 0 of 2 needs the address of process 0, or hosts"):
        train.connect(index=0, count=2)


def test_a_machine_knows_its_own_addresses(machine: Machine) -> None:
    """Addresses set aside for documentation (RFC 5737) are nobody's, 127.0.0.1 is everybody's."""
    train.connect(hosts="192.0.2.1:1234,127.0.0.1,no-such-name.invalid")
    assert machine.told == [several("192.0.2.1:1234", 3, 1)]
    if socket.has_ipv6 and cluster._is_here("::1"):
        train.connect(hosts="[2001:db8::1]:1234,[::1]")
        assert machine.told[1] == several("[2001:db8::1]:1234", 2, 1)


@given(
    st.lists(
        st.tuples(st.sampled_from(["n", "gpu-", ""]), st.integers(0, 99), st.integers(0, 12), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=50, deadline=None)
def test_ranges_are_written_out(parts: list[tuple[str, int, int, bool]]) -> None:
    texts, each = [], []
    for name, first, more, padded in parts:
        width = 4 if padded else 1
        texts.append(f"{name}[{first:0{width}d}-{first + more:0{width}d},7].x")
        each += [f"{name}{first + i:0{width}d}.x" for i in range(more + 1)] + [f"{name}7.x"]
    assert cluster.expand(",".join(texts)) == each == cluster.expand(texts)


def test_one_call_is_enough(machine: Machine) -> None:
    """Without arguments a second call finds the first; with arguments JAX refuses."""
    machine.setenv(SLURM)
    machine.patch.setattr(jax.distributed, "is_initialized", lambda: bool(machine.told))
    train.connect()
    train.connect()
    assert len(machine.told) == 1


def test_the_command_line_reaches_it(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """An experiment's flags, and one folder for all."""
    from experiments import lenet

    ran: list[Any] = []

    def start(*flags: str) -> None:
        machine.patch.setattr("sys.argv", ["lenet", *flags])
        cli.command(ran.append, lenet.Config, None)

    machine.patch.setenv("JDL_PLAIN", "1")
    start("--hosts", "gpu[07-08]:1234")
    start("--coordinator", "a:1", "--process", "0", "--processes", "2")
    start("--hosts", "alone")
    start()
    assert machine.told == [several("gpu07:1234", 2, 1), several("a:1", 2, 0)]
    machine.patch.setattr(jax.distributed, "is_initialized", lambda: True)
    machine.patch.setattr(jax, "process_count", lambda: 2)
    start("--run", "here")
    assert len(ran) == 5
    with pytest.raises(SystemExit):
        start()
    assert "one folder for all: give it with --run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        start("--hosts", "a,b", "--run", "here")
    assert "none of a, b is this machine" in capsys.readouterr().err


class Two:
    """A mesh of devices of this many processes."""

    def __init__(self, owners: int):
        self.devices = np.array([SimpleNamespace(process_index=i) for i in range(owners)])


def test_every_process_reads_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"inputs": np.zeros((8, 2), np.float32)}
    batches = [data.shuffled(arrays, 4, shard=shard) for shard in [(0, 1), (0, 2), (1, 2)]]
    for each in batches:
        hosts.check_part("training", each, Two(1))  # type: ignore[arg-type]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    hosts.check_part("training", batches[2], Two(2))  # type: ignore[arg-type]
    hosts.check_part("training", lambda i: arrays, Two(2))  # type: ignore[arg-type]
    for each, part in ((batches[0], "part 0 of 1"), (batches[1], "part 0 of 2")):
        with pytest.raises(ValueError, match=f"process 1 of 2 would read {part} of the batches of training"):
            hosts.check_part("training", each, Two(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 processes train, and the mesh has devices of 1"):
        hosts.check_part("training", batches[2], Two(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_that_is_not_shared_is_refused(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is process 1 of 2, and the messages of process 0 are imitated."""
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    monkeypatch.setattr(checkpoint, "SHARED_SECONDS", 0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    from_first: Iterator[Any] = iter([["abc", None], [None, None], True, [None, None]])
    monkeypatch.setattr(checkpoint, "_exchange", lambda said: [next(from_first), said])
    if shared:
        (tmp_path / "run/.shared-abc").touch()
        checkpoints._check_shared()
    else:
        with pytest.raises(train.CheckpointError, match="process 0 writes there, process 1 cannot see"):
            checkpoints._check_shared()
    assert next(from_first, None) is None
    monkeypatch.undo()
    checkpoints.close()


def _page() -> tuple[str, list[list[str]]]:
    """The page of launch lines, and the arguments of each experiment it starts."""
    text = (Path(__file__).parents[2] / "docs/hosts.md").read_text()
    found = [line.split() for line in re.findall(r"python -m (experiments\.[^\n'\"&]+)", text)]
    return text, [words for words in found if len(words) > 1]


def test_the_page_gives_flags_that_experiments_have(machine: Machine) -> None:
    text, commands = _page()
    assert len(commands) >= 6
    job = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    commands.append(container["command"][2:])
    for module, *flags in commands:
        config = importlib.import_module(module).Config
        settings = cli.parse(config, [flag.replace("$hosts", "gpu1:8476,gpu2") for flag in flags])
        assert settings.execution.run, flags
    # The pods of that job are those of its list, and each finds itself.
    hosts = container["env"][0]["value"]
    assert len(cluster.expand(hosts)) == spec["parallelism"] == spec["completions"]
    name = f"{job['metadata']['name']}-{job['spec']['replicatedJobs'][0]['name']}-0-2"
    machine.setenv({**JOB, "JDL_HOSTS": hosts})
    machine.patch.setattr(socket, "gethostname", lambda: name)
    machine.patch.setattr(socket, "getfqdn", lambda _="": f"{name}.gpt.default.svc.cluster.local")
    train.connect()
    assert machine.told == [several("gpt-train-0-0.gpt:8476", 4, 2)]
    for number in (train.hosts.LOST, train.hosts.HEARTBEAT_SECONDS, train.hosts.ARRIVAL_SECONDS):
        assert re.search(rf"\b{number}\b", text)
    assert str(cluster.PORT) in text
