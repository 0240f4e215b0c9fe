"""The harness at toy length: what it measures is the same model, and what it reports is what was measured."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import psutil
import pytest

from experiments import ledger
from experiments.benchmarks import __main__ as command_line
from experiments.benchmarks import (
    contenders,
    decoding,
    equinox_peer,
    harness,
    jobs,
    keras_peer,
    levers,
    linen_peer,
    predicted,
    steps,
    torch_peer,
    workloads,
)
from experiments.benchmarks.__main__ import main
from jdl import data, learners, models, tasks

# As a user runs it: without the fake devices and the strictness of the tests.
PLAIN = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}

TINY = {
    "mlp": workloads.mlp(8, 16, 8, 4),
    "lenet": workloads.WORKLOADS["lenet"]._replace(batch_size=2),
    "resnet20": workloads.resnet_cifar(8, 4, 8),
    "lstm": workloads.recurrent("lstm", 4, 3, 4),
    "gru": workloads.recurrent("gru", 4, 3, 4),
    "gpt": workloads.gpt(8, 2, 2, 6, 4, 7),
    "vit": workloads.vit(8, 1, 2, 4, 8, 4),
    "unet": workloads.unet(2, 16, 2),
    "bert": workloads.bert(8, 1, 2, 6, 2),
    "vae": workloads.vae(8, 4, 8, 1024),
    "dcgan": workloads.dcgan(4, 8, 16, 32),
    "sweep": workloads.sweep(8, 16, 8, 4),
    "gpt2": workloads.gpt2(64, 1, 8, 2, 64),
    "resnet50": workloads.resnet50(32, 4, (1, 2), (4, 8)),
}
LARGER = {"lenet", "resnet20", "lstm", "vit", "unet", "dcgan"}
"""Those that take the compiler long."""


@pytest.fixture(autouse=True)
def _without_prepare(monkeypatch):
    """The choices for a whole process are not made for that of the tests."""
    monkeypatch.setenv("JDL_PLAIN", "1")


def commands(folder, *contenders_, workload="overhead"):
    return [(contenders.command(workload, each, folder), PLAIN) for each in contenders_]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    workloads.write(workloads.draw(workloads.OVERHEAD), folder)
    return folder


def test_contenders_take_turns_and_compute_the_same(given):
    with harness.started(commands(given, "bare-several", "linen")) as workers:
        harness.check_equal(workers)
        assert workers[0].parameters == 64 * 32 + 32 + 32 * 10 + 10
        assert len(set(workers[0].losses)) == harness.FIRST_STEPS
        blocks = harness.take_turns(workers, 0.1, tolerate=1.0, block=0.05)
        assert set(blocks) == {worker.label for worker in workers}
        found = [block for each in blocks.values() for block in each]
        assert all(0 < block.seconds < 0.5 and 0 < block.utilisation <= 1.05 for block in found)
        assert all(2**20 < worker.memory < 2**34 for worker in workers)
        assert all(0 < worker.started < 600 for worker in workers)
    assert all(worker._process.poll() is not None for worker in workers)


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGER else []) for name in TINY]
)
@pytest.mark.filterwarnings("default")  # What the peers' own code warns of is theirs.
def test_every_contender_computes_the_same_and_takes_two_steps(name, torch, monkeypatch):
    workload = TINY[name]
    for module in (workloads, contenders, torch_peer):
        monkeypatch.setattr(module, "RATES", (1e-3, 1e-2))
    for module in (contenders, linen_peer, equinox_peer, keras_peer):
        monkeypatch.setattr(module, "jax_memory", lambda: lambda: 7)
    if name == "bert":
        pytest.importorskip("transformers")
    drawn = workloads.draw(workload)
    ours = contenders.contender("jdl", drawn)
    for peer in workload.peers:
        if peer == "torch-compile" or (peer in command_line.PEERS and not command_line._is_there(peer)):
            continue
        with jax.numpy_rank_promotion("raise" if peer.startswith("jdl") else "allow"):
            theirs = contenders.contender(peer, drawn)
            assert theirs.run(2) > 0
        assert theirs.label != ours.label
        assert (theirs.memory() == 7) is not peer.startswith("torch"), "as JAX or PyTorch tells it"
        harness.check_equal([ours, theirs], workload.tolerance)
    assert ours.run(2) > 0
    assert ours.memory() == 7
    assert len(ours.losses) == harness.FIRST_STEPS * (2 if name == "dcgan" else 1)


def test_a_different_model_is_found_out():
    same = harness.Contender("one", 3, [1.0, 2.0], lambda n: 0.0, 0.0)
    harness.check_equal([same, same._replace(losses=[1.00005, 2.001])])
    with pytest.raises(ValueError, match="starts with the losses"):
        harness.check_equal([same, same._replace(losses=[1.0002, 2.0])])
    with pytest.raises(ValueError, match="7 parameters"):
        harness.check_equal([same, same._replace(parameters=7)])
    two_a_step = same._replace(losses=[1.0] * 6)
    harness.check_equal([two_a_step, two_a_step._replace(losses=[1.0] * 4 + [1.005] * 2)])
    with pytest.raises(ValueError, match="starts with the losses"):
        harness.check_equal([two_a_step, two_a_step._replace(losses=[1.0] * 5 + [1.05])])
    with pytest.raises(ValueError, match="starts with the losses"):
        harness.check_equal([two_a_step, two_a_step._replace(losses=[1.0] * 5 + [1.2])], 0.05)


@pytest.mark.parametrize("name", ["mlp", "gpt", "resnet20"])
def test_another_optimiser_is_found_out(name):
    drawn = workloads.draw(TINY[name])
    other = {"adam": "sgd", "adamw": "sgd", "sgd": "adam"}[drawn.workload.optimizer]
    changed = drawn._replace(workload=drawn.workload._replace(optimizer=other))
    both = [contenders.contender("jdl", each) for each in (drawn, changed)]
    harness.check_equal([both[0], both[0]], drawn.workload.tolerance)
    with pytest.raises(ValueError, match="starts with the losses"):
        harness.check_equal(both, drawn.workload.tolerance)


def test_contenders_that_write_other_tokens_are_found_out():
    same = harness.Contender("one", 3, [5.0] * 100, lambda n: 0.0, 0.0)
    decoding.check_same([same, same._replace(losses=[5.0] * 91 + [6.0] * 9)])
    with pytest.raises(ValueError, match=r"wrote 89\.0% of the tokens that one wrote"):
        decoding.check_same([same, same._replace(losses=[5.0] * 89 + [6.0] * 11)])
    with pytest.raises(ValueError, match="7 parameters"):
        decoding.check_same([same, same._replace(parameters=7)])


@pytest.mark.parametrize(("several", "mesh"), [(False, "data:1"), (True, "data:1"), (False, "data:2")])
@pytest.mark.parametrize("taken", [1, 5])
def test_a_step_at_fault_is_not_timed(several, mesh, taken):
    rng = np.random.default_rng(0)
    arrays = {"inputs": rng.normal(size=(16, 4)).astype(np.float32), "labels": np.arange(16) % 2}
    learner = learners.gradient(tasks.classification(models.MLP((3, 2))), optax.sgd(1e38))
    run = steps.Run(learner, data.shuffled(arrays, 4, resident=True), several, mesh)
    assert run.program.in_turn == (mesh == "data:2")
    run.first(0)
    with pytest.raises(RuntimeError, match=r"step \d was at fault.*not finite"):
        run.run(taken)
    arrays["inputs"][:] = np.nan
    run = steps.Run(learner, data.shuffled(arrays, 4, resident=True), several, mesh)
    with pytest.raises(RuntimeError, match="step 1 was at fault"):
        run.first(0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc")
def test_memory_of_a_process_is_not_that_of_the_one_that_started_it():
    script = "from experiments.benchmarks.harness import peak_memory; print(peak_memory())"
    held = bytearray(b"x") * (300 << 20)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=harness.ROOT, capture_output=True, text=True, check=True
    )
    assert 5 << 20 < int(done.stdout) < len(held) < harness.peak_memory()
    with pytest.raises(OSError, match="/proc/0/status"):
        harness.peak_memory(0)


def test_memory_is_that_of_the_device_where_it_has_its_own(monkeypatch):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"peak_bytes_in_use": 5}

    assert harness.jax_memory() is harness.peak_memory
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert harness.jax_memory()() == 5


def test_weights_of_another_network_are_refused(torch):
    drawn = workloads.draw(TINY["mlp"])
    with pytest.raises(ValueError, match="not those of the network"):
        torch_peer._loaded(TINY["mlp"].network(), {**drawn.weights, "extra": np.zeros(1)})


def test_what_is_done_in_a_second_is_told_beside_the_peak(given, monkeypatch):
    workload = TINY["gpt2"]
    drawn = workloads.draw(workload)
    ours = contenders.contender("jdl", drawn)
    assert 0 < ours.least < 1
    more = {"jdl": {}, "theirs": {}}
    command_line._add_rates(workload, {"jdl": [100.0, 200.0, 300.0], "theirs": [400.0]}, more)
    tokens = workload.batch_size * workload.shape[0]
    assert more["jdl"]["tokens/s"] == pytest.approx(tokens / 0.2)
    assert more["jdl"]["MFU, %"] == pytest.approx(2 * more["theirs"]["MFU, %"])
    assert 0 < more["jdl"]["MFU, %"] < 100
    # Six operations a parameter and token: products with it, and twice as many for the gradients.
    parameters = sum(x.size for name, x in drawn.weights.items() if name != "positions.weight")
    width, depth, context = 64, 1, workload.shape[0]
    assert workload.flops == tokens * (6 * parameters + 12 * depth * width * context)


def test_a_contender_that_fails_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="overhead linen ended with status 1"):
        harness.Worker(contenders.command("overhead", "linen", tmp_path), PLAIN).ready()


def test_other_load_is_seen():
    load = harness.OtherLoad(os.getpid())
    end = time.perf_counter() + 0.5
    script = "import time\nwhile True: time.perf_counter()"
    with subprocess.Popen([sys.executable, "-c", script]) as other:
        while time.perf_counter() < end:
            time.sleep(0.05)
        share = load.share()
        other.kill()
    assert share > 0.02


def test_time_that_the_host_gives_to_others_is_other_load(monkeypatch):
    times = psutil.cpu_times(percpu=True)
    if not hasattr(times[0], "steal"):
        pytest.skip("only Linux tells it")
    allowed, other = max(os.sched_getaffinity(0)), len(times)
    for stolen, is_seen in ((allowed, True), (other, False)):
        after = [*times, times[0]]
        after[stolen] = after[stolen]._replace(steal=after[stolen].steal + 1e6)
        reads = iter([[*times, times[0]], after])
        monkeypatch.setattr(psutil, "cpu_times", lambda percpu, reads=reads: next(reads))
        assert (harness.OtherLoad(os.getpid()).share() > 1) == is_seen


def test_a_workload_that_fails_keeps_none_of_the_others_from_being_measured(tmp_path, monkeypatch, capsys):
    def fail(name, options):
        raise RuntimeError("other programs took more than 10%")

    entry = command_line.report.entry(
        "y", "Y", "time", "ms", {"jdl": [1.0]}, "python -m experiments.benchmarks"
    )
    monkeypatch.setitem(command_line.OTHERS, "growth", fail)
    monkeypatch.setitem(command_line.OTHERS, "startup", lambda name, options: [entry])
    assert main(["growth", "startup", "--out", str(tmp_path)]) == 1
    assert (tmp_path / "entries" / "y.json").is_file()
    assert "growth is not measured: other programs" in capsys.readouterr().err
    assert main(["startup", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "nan"], "must be a number above 0"),
        (["--minutes", "0"], "must be a number above 0"),
        (["--tolerate", "-1"], "must be a number above 0"),
        (["lenet_job", "--seeds"], "expected at least one argument"),
        (["--out", "/proc/nowhere"], "--out /proc/nowhere"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_runs(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_starts_are_repeated_with_empty_caches_and_with_a_full_one(tmp_path, monkeypatch):
    class Worker:
        filled = set()

        def __init__(self, arguments, environment):
            self.cache = environment["JAX_COMPILATION_CACHE_DIR"]

        def ready(self):
            self.started = 1.0 if self.cache in self.filled else 9.0
            self.filled.add(self.cache)
            return self

        def close(self):
            pass

    monkeypatch.setattr(command_line, "Worker", Worker)
    arguments = contenders.command("mlp", "linen", tmp_path)
    environment = command_line._cached(arguments, tmp_path / "own")
    cold, warm = command_line._starts(arguments, environment)
    assert (cold, warm) == ([9.0] * 3, [1.0] * 2)
    assert environment["JAX_COMPILATION_CACHE_DIR"] in Worker.filled
    # jdl brings a cache of its own, and without prepare() has none.
    ours = command_line._cached(contenders.command("mlp", "jdl", tmp_path), tmp_path)
    assert ours["JAX_COMPILATION_CACHE_DIR"] == ""


def test_what_fit_adds_is_told_by_how_it_dispatches(monkeypatch, capsys):
    class Worker:
        def __init__(self, label):
            self.label = label

    @contextlib.contextmanager
    def started(commands):
        how = "one step a dispatch" if commands[0][0][2].endswith("one") else "several steps a dispatch"
        yield [Worker(f"its compiled step alone, {how}"), Worker(f"fit, {how}")]

    def take_turns(workers, seconds, tolerate):
        return {w.label: [harness.Block(s, 1.0)] for w, s in zip(workers, (1e-4, 1.5e-4), strict=True)}

    monkeypatch.setattr(command_line, "started", started)
    monkeypatch.setattr(command_line, "take_turns", take_turns)
    found = command_line.measure_overhead("overhead", command_line._parse(["overhead"]))
    assert len({entry.title for entry in found}) == 3
    for entry in found:
        assert entry.added(entry.rows[1]) == pytest.approx((50, 50))
        assert "adds 50.0 us (50.0 %)" in command_line.report.table(entry)
        assert "| 50.0 | 50.0 |" in ledger.render([entry])


def test_a_job_that_missed_its_target_is_not_recorded(monkeypatch):
    job = jobs.JOBS["gpt_job"]
    done = {0: 10.0, 1: 20.0, 2: 30.0}
    monkeypatch.setattr(jobs, "start", lambda name, who, seed: jobs.Done(who, job.target, done[seed]))
    options = command_line._parse(["gpt_job", "--peers", "", "--seeds", "0", "1", "2"])
    (entry,) = command_line.measure_job("gpt_job", options)
    assert entry.rows[0].samples == (10.0, 20.0, 30.0)
    assert "empty cache" in entry.note
    done[2] = None
    with pytest.raises(RuntimeError, match="not every run came to the target"):
        command_line.measure_job("gpt_job", options)


def test_blocks_under_other_load_are_not_kept(monkeypatch):
    class Idle:
        label, pid = "idle", os.getpid()

        def run(self, steps):
            return harness.Block(0.01, 0.5)

    monkeypatch.setattr(harness.OtherLoad, "share", lambda self: 0.5)
    with pytest.raises(RuntimeError, match="more than 10% of the machine"):
        harness.take_turns([Idle()], 0.1, block=0.05)
    found = harness.take_turns([Idle()], 0.1, block=0.05, tolerate=0.6)
    assert found == {"idle": [harness.Block(0.01, 0.5)] * 2}


def test_the_levers_of_a_step_are_found_by_tracing_it():
    found = {name: set(levers.used(workloads.draw(TINY[name]))) for name in ("mlp", "gru", "vae")}
    always = {"memory", "caller", "flags", "donation"}
    assert found["mlp"] == always | {"several", "flat"}
    assert found["gru"] == always | {"several", "recurrence", "transposed", "flat"}
    assert "recurrence" not in found["vae"]
    assert "residual" in levers.used(workloads.draw(TINY["gpt"]))
    assert {"convolve", "tiles"} <= set(levers.used(workloads.draw(TINY["lenet"])))
    assert {"convolve", "materialized"} <= set(levers.used(workloads.draw(TINY["resnet20"])))


SWITCHED_OFF = """
import json, os
os.environ["JDL_PLAIN"] = "1"
from tests.experiments.test_benchmarks import TINY
from experiments.benchmarks import levers, steps, workloads
from jdl import data

def lowered(given):
    batches = data.shuffled(given.arrays, given.workload.batch_size, resident=True)
    program, _ = steps.program_of(given.workload.learner(), batches)
    return program.traces["train"][0]().lower().as_text()

def losses(given):
    batches = data.shuffled(given.arrays, given.workload.batch_size, resident=True)
    run = steps.Run(given.workload.learner(), batches)
    return run.first(0) + run.first(1)

drawn = {name: workloads.draw(TINY[name]) for name in ("gru", "lenet")}
programs = {name: lowered(given) for name, given in drawn.items()}
before, changed = losses(drawn["gru"]), []
for lever, name in (
    ("recurrence", "gru"), ("flat", "gru"), ("donation", "gru"), ("tiles", "lenet"), ("convolve", "lenet")
):
    levers.LEVERS[lever].off()
    after = lowered(drawn[name])
    changed += [lever] if after != programs[name] else []
    programs[name] = after
print(json.dumps([changed, before, losses(drawn["gru"]), "stablehlo.convolution" in programs["lenet"]]))
"""


@pytest.mark.slow
def test_a_lever_switched_off_changes_the_program_and_not_the_numbers():
    """In a process of its own, as what is switched off stays so."""
    done = subprocess.run(
        [sys.executable, "-c", SWITCHED_OFF], cwd=harness.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    changed, before, after, convolves = json.loads(done.stdout.splitlines()[-1])
    assert changed == ["recurrence", "flat", "donation", "tiles", "convolve"]
    assert convolves
    np.testing.assert_allclose(before, after, rtol=1e-5)


def test_every_formulation_for_cpus_is_a_lever():
    """Wherever the library chooses a formulation for CPUs, the benchmark can switch it off."""
    import ast

    known = {place for place, _ in levers.PLATFORM.values()}
    for path in (harness.ROOT / "jdl").rglob("*.py"):
        module = ".".join(path.relative_to(harness.ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        for function in tree.body:
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or "platform_dependent" not in ast.unparse(node.func):
                    continue
                if any(keyword.arg == "cpu" for keyword in node.keywords):
                    place = f"{module}.{function.name}"
                    assert any(place.startswith(each) for each in known), f"{place} is no lever"


@pytest.mark.slow
def test_a_measurement_is_printed_written_and_drawn(tmp_path, monkeypatch, capsys):
    def hasty(workers, seconds, tolerate):
        return harness.take_turns(workers, 0.05, tolerate=1.0, block=0.05)

    # Without kernels, so that only one way to dispatch is measured.
    monkeypatch.setitem(workloads.WORKLOADS, "overhead", workloads.OVERHEAD._replace(kernels=()))
    monkeypatch.delitem(command_line.OTHERS, "overhead")
    monkeypatch.setattr(command_line, "take_turns", hasty)
    monkeypatch.setattr(command_line, "STARTS", 1)
    monkeypatch.delenv("JDL_PLAIN")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert main(["overhead", "--peers", "linen", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "peak memory, MiB" in told
    assert "the best of its peers, Flax, TrainState" in told
    (only,) = json.loads((tmp_path / "ratios.json").read_text()).values()
    assert only["fastest peer"]["label"] == "Flax, TrainState"
    assert set(only["ratios"]) == {"jdl without prepare()", "Flax, TrainState"}
    assert (tmp_path / "ratios.png").stat().st_size > 1000
    (entry,) = ledger.read(tmp_path / "entries")
    for row in entry.rows:
        assert row.more[ledger.MEMORY] > 10
        assert 0 < row.more[command_line.BUSY] <= 1.05
        assert 0 < row.more[command_line.FIRST_WARM] < 600
        assert 0 < row.more[command_line.FIRST_COLD] < 600


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(given):
    flags = {**PLAIN, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    meshes = ("data:1", "data:8", "data:2,fsdp:2,tensor:2")
    given_commands = [(contenders.command("overhead", f"mesh-{mesh}", given), flags) for mesh in meshes]
    with harness.started(given_commands) as workers:
        harness.check_equal(workers)
        assert [worker.label for worker in workers] == ["jdl", "jdl, data:8", "jdl, data:2,fsdp:2,tensor:2"]


@pytest.mark.slow
def test_a_step_is_predicted_and_measured():
    milliseconds, figures = predicted.measure("mlp", repeats=1, steps=4)
    assert len(milliseconds) == 1
    # 64-300-100-10 on 64 rows: forward, gradients of all weights, gradients of all inputs but the first.
    weights, hidden = 64 * 300 + 300 * 100 + 100 * 10, 300 * 100 + 100 * 10
    assert figures["GFLOP"] == pytest.approx(2e-9 * 64 * (2 * weights + hidden), rel=1e-2)
    assert 0 < figures["at least, ms"] <= figures["without overlap, ms"]
    assert 0 < figures["share of the peak reached, %"] < 150
    with pytest.raises(RuntimeError, match="no experiment is called"):
        predicted.measure("nothing", repeats=1)


@pytest.mark.parametrize("arguments", [["lent"], ["mlp", "--peers", "caffe"]])
def test_unknown_names_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "there are" in capsys.readouterr().err


def test_peers_that_are_not_there_are_left_out_in_words(monkeypatch, capsys):
    there = ("psutil", "matplotlib")
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: name in there or None)
    options = command_line._parse(["mlp", "--peers", "keras,torch"])
    assert options.peers == []
    assert "keras is left out" in capsys.readouterr().out
