"""What `fit` measures, when it stops, and what it says."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdl import core, data, learners, models, tasks, train
from jdl.train.program import build
from tests.train.training import Net, arrays, digest, learner, outcome, start


def test_resident_and_host_batches_several_and_single_steps_are_one() -> None:
    several = start(several_steps=True)
    single = start(several_steps=False)
    host = start(resident=False)
    assert several.history.series("train", "loss")[0] == list(range(5, 125, 5))
    for other in (single, host):
        assert [r["step"] for r in other.history] == [r["step"] for r in several.history]
        for one, two in zip(several.history, other.history, strict=True):
            for name in one.keys() - {"steps_per_second", "split"}:
                np.testing.assert_allclose(one[name], two[name], rtol=1e-4, atol=1e-5)
        for x, y in zip(jax.tree.leaves(several.variables), jax.tree.leaves(other.variables), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
    # One program of one step, whoever calls the batches, and one answer.
    assert digest(single.state) == digest(start(several_steps=False, log_every=120).state)
    assert digest(several.state) == digest(start(several_steps=True, log_every=7, evaluate_every=120).state)


@pytest.mark.parametrize(("module", "expected"), [(models.LeNet5(), True), (models.TwoConv(), False)])
def test_a_cpu_does_several_steps_at_once_unless_its_program_has_convolutions(
    module: Any, expected: bool
) -> None:
    """LeNet's convolutions are products on a CPU; those of many channels stay, and are slow in a loop."""
    side = 32 if isinstance(module, models.LeNet5) else 28
    arrays = {"inputs": np.zeros((8, side, side, 1), np.float32), "labels": np.zeros(8, np.int32)}
    batches, mesh = data.shuffled(arrays, 4), train.make_mesh("data:1")
    one = learners.gradient(tasks.classification(module), optax.sgd(0.1))
    program = build(one, jax.random.key(0), batches, batches(0), {}, mesh, "jit", None)
    assert program.steps_at_once == expected


def test_records_are_means_since_the_last() -> None:
    steps: list[dict[str, Any]] = []
    fine = start(log_every=1, steps=20, several_steps=False, loggers=[steps.append])
    coarse = start(log_every=8, steps=20, several_steps=False)
    losses = fine.history.series("train", "loss")[1]
    at, means = coarse.history.series("train", "loss")
    assert at == [8, 16, 20]
    np.testing.assert_allclose(
        means, [np.mean(losses[:8]), np.mean(losses[8:16]), np.mean(losses[16:])], rtol=1e-5
    )
    assert [r for r in steps if r["split"] in ("train", "evaluation")] == list(fine.history)


def test_evaluates_before_during_and_after_and_exactly() -> None:
    others = arrays(61, seed=1)
    for resident in (True, False):
        sets = {
            "uneven": data.in_order(others, 24, resident=resident),
            "at once": data.in_order(others, 61, resident=resident),
        }
        fitted = start(steps=25, evaluation=sets, evaluate_every=10)
        assert fitted.history.series("uneven", "loss")[0] == [0, 10, 20, 25]
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(
                fitted.history.series("uneven", name)[1], fitted.history.series("at once", name)[1], rtol=1e-5
            )
        logits = fitted.predict(others["inputs"])
        accuracy = np.mean(np.argmax(logits, -1) == others["labels"])
        np.testing.assert_allclose(fitted.history.last("uneven")["accuracy"], accuracy, rtol=1e-6)


def test_evaluators_measure_on_the_host_and_may_be_monitored() -> None:
    from sklearn.metrics import roc_auc_score

    kept = []

    def auroc(predict: Any, batches: Any) -> dict[str, float]:
        kept.append(predict)
        rows = [(predict(batches(i)["inputs"]), batches(i)) for i in range(len(batches))]
        scores = np.concatenate([jax.nn.softmax(x)[b["weights"] > 0] for x, b in rows])
        labels = np.concatenate([b["labels"][b["weights"] > 0] for _, b in rows])
        return {"auroc": roc_auc_score(labels, scores, multi_class="ovr")}

    fitted = start(steps=60, evaluate_every=20, monitor="max auroc", evaluators=[auroc, lambda *_: None])
    at, values = fitted.history.series("evaluation", "auroc")
    assert at == [0, 20, 40, 60]
    assert values[-1] > 0.9
    assert fitted.best == {"step": at[int(np.argmax(values))], "value": max(values)}
    # What an evaluator keeps stays as it was, though the steps after it reuse the state's memory.
    inputs = arrays(8)["inputs"]
    outputs = [np.asarray(predict(inputs)) for predict in kept]
    assert len({x.tobytes() for x in outputs}) == 4
    np.testing.assert_allclose(outputs[-1], fitted.predict(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("several_steps", [True, False])
@pytest.mark.parametrize("kept", ["in memory", "in a folder"])
def test_stops_early_with_the_best_variables(kept: str, several_steps: bool, tmp_path: Path) -> None:
    seen: dict[int, Any] = {}

    def value(predict: Any, batches: Any) -> dict[str, float]:
        step = 10 * len(seen)
        seen[step] = np.asarray(predict(arrays(8)["inputs"]))
        return {"value": float(abs(step - 30))}

    folder = tmp_path if kept == "in a folder" else None
    options = {"evaluate_every": 10, "monitor": "min value", "patience": 2, "several_steps": several_steps}
    fitted = start(folder, steps=200, evaluators=[value], **options)
    assert (fitted.step, fitted.best) == (50, {"step": 30, "value": 0.0})
    assert fitted.reason == "no better value in 2 evaluations since step 30"
    np.testing.assert_allclose(fitted.predict(arrays(8)["inputs"]), seen[30], rtol=1e-5, atol=1e-6)
    assert int(fitted.state.step) == 50
    if folder:
        assert outcome(start(folder, steps=200, evaluators=[value], **options)) == outcome(fitted)


@pytest.mark.parametrize("kept", ["in memory", "in a folder"])
def test_the_start_may_be_best(kept: str, tmp_path: Path) -> None:
    values = iter(range(99))
    fitted = start(
        tmp_path if kept == "in a folder" else None,
        evaluators=[lambda *_: {"value": next(values)}],
        evaluate_every=5,
        monitor="min value",
        patience=3,
    )
    assert (fitted.step, fitted.best["step"]) == (15, 0)
    untrained = learner().init(jax.random.key(0), arrays(16))
    for x, y in zip(
        jax.tree.leaves(fitted.variables["params"]), jax.tree.leaves(untrained.params), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_nan_is_never_best() -> None:
    values = iter([np.nan, 3.0, np.nan, 2.0, np.nan])
    fitted = start(
        steps=40, evaluate_every=10, monitor="min value", evaluators=[lambda *_: {"value": next(values)}]
    )
    assert fitted.best == {"step": 30, "value": 2.0}


def test_averages_ensembles_and_sweeps() -> None:
    task = tasks.classification(Net())
    base = learners.gradient(task, optax.adam(1e-2))
    examples = arrays()
    batches, test = data.shuffled(examples, 16), data.in_order(arrays(61, seed=1), 24)
    options: dict[str, Any] = {"evaluation": test, "mesh": "data:1"}

    averaged = train.fit(learners.averaged(base, 0.9), batches, 40, **options)
    assert averaged.history.last("evaluation")["accuracy"] > 0.7

    ensemble = train.fit(learners.ensemble(base, 3), batches, 40, patience=9, **options)
    values = ensemble.history.last("evaluation")["accuracy"]
    assert len(values) == 3
    best = [max(x) for x in ensemble.history.series("evaluation", "accuracy")[1]]
    assert ensemble.best["value"] == max(best)

    def make(rate: Any) -> core.Learner:
        return learners.gradient(task, optax.sgd(rate))

    sweep = train.fit(learners.sweep(make, learners.grid(rate=[0.1, 1e30])), batches, 40, **options)
    assert sweep.history.last("train")["diverged"] == 1
    assert np.asarray(sweep.state.diverged_at)[0] == -1
    assert np.asarray(sweep.state.diverged_at)[1] >= 0
    with pytest.raises(train.Fault, match="every point of the sweep diverged"):
        train.fit(learners.sweep(make, learners.grid(rate=[1e30, 2e30])), batches, 40, **options)


def test_a_state_whose_arrays_begin_as_one() -> None:
    """An optimiser may keep the parameters themselves, until a step takes their memory."""

    def update(updates: Any, anchor: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda g, p, a: 0.1 * (a - p) - 0.1 * g, updates, params, anchor), anchor

    tx = optax.GradientTransformation(lambda params: params, update)
    task = tasks.classification(Net())
    for several_steps in (True, False):
        fitted = train.fit(
            learners.gradient(task, tx),
            data.shuffled(arrays(), 16),
            6,
            mesh="data:1",
            several_steps=several_steps,
        )
        assert digest(fitted.state.params) != digest(fitted.state.opt_state)


def test_the_result_is_made_of_pure_functions_of_arrays() -> None:
    fitted = start(steps=10)
    inputs = arrays(8)["inputs"]
    outside = fitted.predict(inputs)
    np.testing.assert_allclose(
        jax.jit(lambda predict, x: predict(x))(fitted.predict, inputs), outside, rtol=1e-5
    )
    doubled = jax.tree.map(lambda x: 2 * x, fitted.predict)
    assert np.abs(doubled(inputs) - outside).max() > 0.1
    # Whoever goes on from the state by hand takes nothing from the variables.
    jax.jit(lambda state: jax.tree.map(lambda x: x, state), donate_argnums=0)(fitted.state)
    np.testing.assert_array_equal(fitted.predict(inputs), outside)


def test_leaves_nothing_behind() -> None:
    before = threading.active_count()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for resident in (True, False):
        start(steps=10, resident=resident)
    with pytest.raises(ZeroDivisionError):
        start(steps=10, resident=False, evaluators=[lambda *_: {"x": 1 / 0}])
    assert threading.active_count() == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_runs_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(start(tmp_path, steps=20)))
    thread.start()
    thread.join()
    assert results[0].step == 20


def test_an_error_in_a_batch_is_that_of_its_step() -> None:
    host = data.shuffled(arrays(), 16, resident=False)
    steps: list[int] = []

    def batches(i: int) -> Any:
        if i == 13:
            raise OSError("disk on fire")
        return host(i)

    with pytest.raises(OSError, match="disk on fire") as caught:
        train.fit(
            learner(), batches, 30, mesh="data:1", log_every=1, loggers=[lambda r: steps.append(r["step"])]
        )
    assert caught.value.__notes__ == ["while making the batch of step 14, batches(13)"]
    assert max(steps) == 12


def test_messages_reach_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(tmp_path, steps=20)
    start(tmp_path, steps=20, loggers=[lambda record: None])
    assert "going on from step 20 of 20" in capsys.readouterr().err
    start(tmp_path, steps=20, loggers=[train.print_lines])
    assert capsys.readouterr().err.count("going on from step 20 of 20") == 1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no steps": ({"steps": 0}, "steps must be at least 1; got 0"),
    "evaluate never": ({"evaluate_every": 0}, "evaluate_every must be at least 1; got 0"),
    "log never": ({"log_every": -1}, "log_every must be at least 1; got -1"),
    "no patience": ({"patience": 0}, "patience must be at least 1; got 0"),
    "patience without sets": ({"patience": 3, "evaluation": None}, "patience needs an evaluation set"),
    "monitor text": ({"monitor": "accuracy"}, 'monitor must read "min NAME" or "max NAME"'),
    "monitor name": ({"monitor": "max f1"}, "monitor names 'f1', and evaluation measures accuracy, loss"),
    "mesh text": ({"mesh": "data=8"}, 'mesh must read like "data:4"'),
    "mesh size": ({"mesh": "data:900"}, "needs 900 devices; 8 cpu devices are there"),
    "mode": ({"mode": "magic"}, 'mode must be "jit", "shard_map" or "pmap"; got \'magic\''),
    "not divisible": ({"mesh": "data:3"}, "16 examples cannot be split evenly over 3 devices"),
    "set not divisible": (
        {"mesh": "data:8", "evaluation": data.in_order(arrays(), 9)},
        "9 examples cannot be split",
    ),
    "batch too large": ({"batch": 500}, "batch_size 500 is larger than the data, 203 examples"),
    "sets are arrays": ({"evaluation": arrays()}, "must be batches by index with a length"),
    "set without length": ({"evaluation": lambda i: arrays(8)}, "must be batches by index with a length"),
    "set called train": (
        {"evaluation": {"train": data.in_order(arrays(), 8)}},
        "no evaluation set may be called 'train'",
    ),
    "several steps on the host": (
        {"several_steps": True, "resident": False},
        "several steps at once need batches that live on the device",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_one_sentence_before_compiling(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        start(**{"steps": 10**9, **options})
    assert "\n" not in str(caught.value)


def bad_batches() -> dict[str, tuple[dict[str, Any], str]]:
    good = arrays(8)
    return {
        "labels too large": ({**good, "labels": np.full(8, 99)}, "99"),
        "labels too few": (
            {**good, "labels": good["labels"][:7]},
            "the arrays of a batch must have one length",
        ),
        "empty": ({name: x[:0] for name, x in good.items()}, "a batch of 0 examples"),
        "no dictionary": (good["inputs"], "a batch must be a dictionary of arrays; training has a ndarray"),
    }


@pytest.mark.parametrize("name", bad_batches())
def test_bad_batches_are_one_sentence(name: str) -> None:
    batch, message = bad_batches()[name]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        train.fit(learner(), lambda i: batch, 10, mesh="data:1")
    assert "\n" not in str(caught.value)


def test_wrong_shapes_are_one_sentence() -> None:
    batches = data.shuffled(arrays(), 16)
    wide = {**arrays(), "inputs": np.zeros((203, 13), np.float32)}
    with pytest.raises(ValueError, match=r"batches of the evaluation set 'wide' \(inputs float32\[16, 13\]"):
        train.fit(learner(), batches, 10, evaluation={"wide": data.in_order(wide, 16)}, mesh="data:1")

    from jdl.models import LeNet5

    task = tasks.classification(LeNet5())
    images = {"inputs": np.zeros((8, 28, 28, 1), np.float32), "labels": np.zeros(8, np.int32)}
    with pytest.raises(ValueError, match=r"28") as caught:
        train.fit(learners.gradient(task, optax.sgd(0.1)), data.shuffled(images, 4), 10, mesh="data:1")
    assert "\n" not in str(caught.value)


def test_labels_out_of_range_later_are_found_at_their_step() -> None:
    host = data.shuffled(arrays(), 16, resident=False)

    def batches(i: int) -> Any:
        return {**host(i), "labels": np.full(16, 9, np.int32)} if i == 6 else host(i)

    with pytest.raises(train.Fault, match=r"^Step 7: labels outside 0..3 \(16\)\.$"):
        train.fit(learner(), batches, 10, mesh="data:1")
    bad = {**arrays(61), "labels": np.r_[np.zeros(60), 7].astype(np.int32)}
    with pytest.raises(train.Fault, match=r"^Evaluation of 'test' at step 0: labels outside 0..3\.$"):
        train.fit(learner(), host, 10, evaluation={"test": data.in_order(bad, 24)}, mesh="data:1")


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written: Not a directory"):
        train.Run(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="config of a run must be what JSON can hold"):
        train.Run(tmp_path, config={"function": print})
    with pytest.raises(ValueError, match="keep_best must be at least 1"):
        start(tmp_path, run={"keep_best": 0}, patience=3)


def poisoned(at: int) -> Any:
    """Resident batches of which one holds a NaN."""

    def batch(source: Any, i: Any) -> Any:
        batch = source(i)
        return {**batch, "inputs": jnp.where(i == at, jnp.nan, 1.0) * batch["inputs"]}

    return jax.tree_util.Partial(batch, data.shuffled(arrays(), 16))


@pytest.mark.parametrize("several_steps", [True, False])
def test_nan_in_the_data_names_step_and_trees(several_steps: bool, tmp_path: Path) -> None:
    run = train.Run(tmp_path, save_every=8)
    with pytest.raises(train.Fault) as caught:
        train.fit(
            learner(), poisoned(45), 200, mesh="data:1", run=run, log_every=100, several_steps=several_steps
        )
    message = str(caught.value)
    assert message.startswith("Step 46: gradient not finite, loss not finite, new parameters not finite. ")
    assert "Not finite in its batch: inputs. " in message
    assert "Not finite after it: params/" in message or "Not finite after it: collections/" in message
    assert f"The checkpoint of step 40 in {tmp_path} is good." in message
    state, meta = train.checkpoint.load(run.path("checkpoints"), "latest")
    assert meta["progress"]["waited"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))
    assert int(state["step"]) == 40


def test_trees_are_those_of_the_step_itself() -> None:
    """A parameter that overflows at step 3 alone spoils all others from step 4 on."""
    task = tasks.regression(Net(normalize=False, dropout=0.0))

    def loss(variables: Any, batch: Any, key: Any) -> Any:
        x = variables["params"]["a"]
        total = x * batch["inputs"].sum() * 0 + variables["params"]["b"] * x
        return total, (jnp.float32(1), {}, {})

    task = task._replace(
        init=lambda key, batch: {"params": {"a": jnp.float32(1), "b": jnp.float32(1)}}, loss=loss
    )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return {"a": jnp.where(state == 2, jnp.inf, 0.0), "b": -0.1 * updates["b"]}, state + 1

    tx = optax.GradientTransformation(lambda params: jnp.int32(0), update)
    for several_steps in (True, False):
        with pytest.raises(
            train.Fault, match=r"^Step 3: new parameters not finite\. Not finite after it: params/a\. A "
        ):
            train.fit(
                learners.gradient(task, tx),
                data.shuffled({"inputs": np.zeros((8, 1), np.float32)}, 4),
                50,
                mesh="data:1",
                several_steps=several_steps,
            )


@pytest.mark.parametrize("several_steps", [True, False])
def test_too_high_a_rate_commits_nothing_that_is_not_finite(several_steps: bool, tmp_path: Path) -> None:
    task = tasks.classification(Net(normalize=False))
    run = train.Run(tmp_path, save_every=1, keep_latest=100)
    wild = learners.gradient(task, optax.sgd(optax.exponential_decay(1.0, 1, 100.0)))
    with pytest.raises(train.Fault, match=r"^Step \d+: .*not finite") as caught:
        train.fit(wild, data.shuffled(arrays(), 16), 400, mesh="data:1", run=run, several_steps=several_steps)
    at_fault = int(str(caught.value).split()[1].rstrip(":"))
    checkpoints = train.Checkpoints(run.path("checkpoints"))
    assert checkpoints.steps() == list(range(1, at_fault))
    checkpoints.close()
    for step in checkpoints.steps()[-3:]:
        state, _ = train.checkpoint.load(run.path("checkpoints"), step)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))
    # The same step, by hand.
    batches, step = data.shuffled(arrays(), 16), jax.jit(wild.step)
    by_hand = wild.init(jax.random.key(0), batches(0))
    for i in range(at_fault):
        by_hand, metrics = step(by_hand, batches(i))
        assert (sum(int(x) for x in metrics[core.FAULTS].values()) > 0) == (i == at_fault - 1)


def test_metrics_file_is_the_history(tmp_path: Path) -> None:
    fitted = start(tmp_path, steps=30)
    assert train.read_lines(tmp_path / "metrics.jsonl") == fitted.history
    assert json.loads((tmp_path / "config.json").read_text()) == {"rate": 1e-2, "net": None}
