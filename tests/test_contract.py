"""The contract: what every model, and every transformation of a Task or a Learner, must do.

A model enters by being a file in jdl.models with a ``tiny()``, and a line in `TAKEN_BY`; a transformation
by a line in `TASKS` or `LEARNERS`. One that is not entered fails here.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from jdl import learners, models, tasks
from jdl.core import Learner, Task, objective, summarize
from jdl.models import mlp
from jdl.train.checkpoint import Checkpoints
from jdl.train.mesh import batch_sharding, distributed, make_mesh, state_shardings

# Which makers of tasks take the models of a file.
TAKEN_BY = {
    "lenet": ["classification"],
    "mlp": ["classification", "regression"],
}


class Subject(NamedTuple):
    """What is tested: ``learner(noise)``, and ``task(noise)`` where the task is what is new."""

    batch: dict[str, np.ndarray]
    learner: Callable[[bool], Learner]
    task: Callable[[bool], Task] | None = None
    module: Any = None
    make: Callable[[Any], Task] = tasks.classification
    devices: int = 8


def sgd(task: Task, rate: Any = 0.1, **options: Any) -> Learner:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9))
    return learners.gradient(task, tx, **options)


def without_noise(module: Any) -> Any:
    """The module without dropout: a model's noise is in its field ``dropout``."""
    return module.clone(dropout=0.0) if hasattr(module, "dropout") else module


def model_subject(file: str, maker: str) -> Subject:
    module, batch = importlib.import_module(f"jdl.models.{file}").tiny()
    if maker == "regression":
        outputs = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], batch["inputs"])
        batch["labels"] = np.random.default_rng(1).normal(size=outputs.shape).astype(np.float32)
    make = getattr(tasks, maker)

    def task(noise: bool) -> Task:
        return make(module if noise else without_noise(module))

    return Subject(batch, lambda noise: sgd(task(noise)), task, module, make)


def tiny_task(noise: bool) -> Task:
    """What transformations are tried on."""
    module, _ = mlp.tiny()
    return tasks.classification(module if noise else without_noise(module))


def jittered(noise: bool) -> Callable[..., Any]:
    """A random transformation of a batch, or one like it that is not random."""

    def transform(key: jax.Array, batch: Any) -> Any:
        x = batch["inputs"]
        return {**batch, "inputs": x + (0.1 * jax.random.normal(key, x.shape) if noise else 0.1)}

    return transform


# Transformations of a Task, on the tiny task.
TASKS: dict[str, Callable[[Task, bool], Task]] = {
    "augmented": lambda task, noise: tasks.augmented(task, jittered(noise)),
    "mixed_precision": lambda task, noise: tasks.mixed_precision(task),
    "preprocessed": lambda task, noise: tasks.preprocessed(task, lambda inputs: inputs / 2 + 1),
}

# Transformations of a Learner, and other ways to make one, from a task.
LEARNERS: dict[str, Callable[[Task], Learner]] = {
    "gradient(accumulate=2)": lambda task: sgd(task, accumulate=2),
    "averaged": lambda task: learners.averaged(sgd(task), 0.9),
    "ensemble": lambda task: learners.ensemble(sgd(task), 2),
    "sweep": lambda task: learners.sweep(functools.partial(sgd, task), learners.grid(rate=[0.05, 0.1])),
    "ensemble of averaged": lambda task: learners.ensemble(learners.averaged(sgd(task), 0.9), 2),
}

# Public names that are neither.
OTHER_IN_TASKS = {"classification_score", "functions", "supervised"}
OTHER_IN_LEARNERS = {
    "decays",
    "gradient",
    "grid",
    "label_by_path",
    "mask_by_path",
    "mean_probabilities",
    "scale_by_path",
}


def task_subject(name: str) -> Subject:
    def task(noise: bool) -> Task:
        return TASKS[name](tiny_task(noise), noise)

    return Subject(mlp.tiny()[1], lambda noise: sgd(task(noise)), task)


def learner_subject(name: str) -> Subject:
    devices = 4 if "accumulate=2" in name else 8  # a shard of one example has no two parts
    return Subject(mlp.tiny()[1], lambda noise: LEARNERS[name](tiny_task(noise)), devices=devices)


MODEL_SUBJECTS = {
    f"{file}-{maker}": functools.partial(model_subject, file, maker)
    for file, makers in TAKEN_BY.items()
    for maker in makers
}
TASK_SUBJECTS = {name: functools.partial(task_subject, name) for name in TASKS}
LEARNER_SUBJECTS = {name: functools.partial(learner_subject, name) for name in LEARNERS}
SUBJECTS = MODEL_SUBJECTS | TASK_SUBJECTS | LEARNER_SUBJECTS


def test_every_model_is_entered():
    files = {module.name for module in pkgutil.iter_modules(models.__path__)}
    without = [file for file in files if not hasattr(importlib.import_module(f"jdl.models.{file}"), "tiny")]
    assert not without, f"no tiny() in jdl.models: {without}"
    assert files == set(TAKEN_BY), "jdl.models and TAKEN_BY differ"


def test_every_maker_and_transformation_is_entered():
    makers = {maker for makers in TAKEN_BY.values() for maker in makers}
    assert set(tasks.__all__) == makers | set(TASKS) | OTHER_IN_TASKS
    assert set(learners.__all__) == {name for name in LEARNERS if name.isidentifier()} | OTHER_IN_LEARNERS


class Case:
    """A subject's functions, each compiled once for all the tests that need it."""

    def __init__(self, subject: Subject):
        self.subject, self.batch = subject, subject.batch
        self.key = jax.random.key(0)
        self.learner, self.quiet = subject.learner(True), subject.learner(False)
        self.init = jax.jit(self.learner.init)
        self.step = jax.jit(self.learner.step)
        self.task = subject.task and subject.task(True)

    @functools.cached_property
    def state(self) -> Any:
        return self.init(self.key, self.batch)

    @functools.cached_property
    def stepped(self) -> Any:
        return self.step(self.state, self.batch)[0]

    @functools.cached_property
    def perturbed(self) -> Any:
        """Variables whose parameters are all random, so that none is zero or one by its initializer."""
        variables = self.learner.variables(self.state)
        leaves, structure = jax.tree.flatten(variables["params"])
        rng = np.random.default_rng(0)
        noise = [0.2 * rng.normal(size=x.shape).astype(x.dtype) for x in leaves]
        return {
            **variables,
            "params": structure.unflatten([x + n for x, n in zip(leaves, noise, strict=True)]),
        }

    @functools.cached_property
    def gradient(self) -> Callable[..., Any]:
        return jax.jit(gradient_of(self.task))


def gradient_of(task: Task) -> Callable[..., Any]:
    """``variables, batch, key -> mean loss, its gradient``."""

    def loss(params: Any, variables: Any, batch: Any, key: Any) -> Any:
        total, (weight, _, _) = task.loss({**variables, "params": params}, batch, key)
        return total / weight

    return lambda variables, batch, key: jax.value_and_grad(loss)(variables["params"], variables, batch, key)


@pytest.fixture(scope="module", params=SUBJECTS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(SUBJECTS[request.param]())


@pytest.fixture(autouse=True)
def _costs(request: pytest.FixtureRequest) -> None:
    """Says in the test's report whose cost its time is."""
    if "case" in request.fixturenames:
        request.node.user_properties.append(("contract", request.node.callspec.params["case"]))


for_tasks = pytest.mark.parametrize("case", [*MODEL_SUBJECTS, *TASK_SUBJECTS], indirect=True, scope="module")
for_models = pytest.mark.parametrize("case", [*MODEL_SUBJECTS], indirect=True, scope="module")


def bits(tree: Any) -> list[bytes]:
    leaves = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x).tobytes() for x in leaves]


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Equal but for ``tolerance`` relative to the largest entry of each leaf."""

    def compare(path: Any, actual: Any, expected: Any) -> None:
        assert actual.dtype == expected.dtype
        if jax.dtypes.issubdtype(actual.dtype, jax.dtypes.prng_key):
            actual, expected = jax.random.key_data(actual), jax.random.key_data(expected)
        actual, expected = np.asarray(actual), np.asarray(expected)
        scale = max(1e-3, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(compare, actual, expected)


def finite(tree: Any) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def test_a_key_decides_every_bit(case):
    again, other = case.init(case.key, case.batch), case.init(jax.random.key(1), case.batch)
    assert bits(case.state) == bits(again)
    assert bits(case.learner.variables(case.state)) != bits(case.learner.variables(other))
    assert bits(case.stepped) == bits(case.step(again, case.batch)[0])


@for_tasks
def test_noise_is_of_the_key(case):
    first = case.gradient(case.perturbed, case.batch, case.key)
    assert bits(first) == bits(case.gradient(case.perturbed, case.batch, case.key))
    noisy = without_noise(case.subject.module or mlp.tiny()[0]) != (case.subject.module or mlp.tiny()[0])
    assert (bits(first) != bits(case.gradient(case.perturbed, case.batch, jax.random.key(1)))) == noisy


@for_tasks
def test_gradients_are_finite_and_reach_every_parameter(case):
    loss, grads = case.gradient(case.perturbed, case.batch, case.key)
    assert finite((loss, grads))
    dead = [
        jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not np.any(g)
    ]
    assert not dead, f"no gradient reaches {dead}"


@for_tasks
def test_jit_equals_eager(case):
    # Low precision is rounded at other places where operations are fused.
    tolerance = 1e-5 if case.subject.module else 2e-2
    eager = gradient_of(case.task)(case.perturbed, case.batch, case.key)
    assert_close(case.gradient(case.perturbed, case.batch, case.key), eager, tolerance)


def test_the_monitored_metric_improves(case):
    way, name = objective(case.learner.monitor)
    evaluate = jax.jit(lambda variables: case.learner.evaluate(variables, case.batch, case.key))

    def measure(state: Any) -> Any:
        return np.mean(summarize(evaluate(case.learner.variables(state)))[name])

    state = case.state
    for _ in range(40):
        state, metrics = case.step(state, case.batch)
    assert not any(jax.tree.leaves(metrics["faults"]))
    change = measure(state) - measure(case.state)
    assert change > 0 if way == "max" else change < 0
    before, after = (case.learner.variables(s)["params"] for s in (case.state, state))
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


@for_models
@pytest.mark.parametrize("how", ["module", "task"])
def test_computes_in_bfloat16(case, how):
    module, make = case.subject.module, case.subject.make
    low = tasks.mixed_precision(make(module)) if how == "task" else make(module.clone(dtype=jnp.bfloat16))
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(low.init, case.key, case.batch)["params"])} == {
        jnp.dtype(jnp.float32)
    }
    function = gradient_of(low)
    assert "bf16[" in str(jax.make_jaxpr(function)(case.perturbed, case.batch, case.key))
    loss, grads = jax.jit(function)(case.perturbed, case.batch, case.key)
    exact_loss, exact = case.gradient(case.perturbed, case.batch, case.key)
    assert {x.dtype for x in jax.tree.leaves((loss, grads))} == {jnp.dtype(jnp.float32)}
    assert abs(loss - exact_loss) < 0.03 * abs(exact_loss)
    assert optax.tree.norm(optax.tree.sub(grads, exact)) < 0.06 * optax.tree.norm(exact)


def test_saves_and_goes_on_bitwise(case, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, case.stepped, {}, wait=True)
        restored = checkpoints.restore(jax.eval_shape(lambda: case.stepped)).state
    assert bits(restored) == bits(case.stepped)
    assert bits(case.step(restored, case.batch)) == bits(case.step(case.stepped, case.batch))


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_devices_by_hand_equal_one(case, mode):
    mesh = make_mesh(f"data:{case.subject.devices}")
    state = case.state if case.quiet is case.learner else jax.jit(case.quiet.init)(case.key, case.batch)
    step = jax.jit(distributed(case.quiet.step, mesh, mode, state))
    shardings = state_shardings(state, mesh)
    actual = step(jax.device_put(state, shardings), jax.device_put(case.batch, batch_sharding(mesh)))
    expected = jax.jit(case.quiet.step)(state, case.batch)
    assert_close(actual, expected, 1e-2 if case.learner.step is None else 3e-5)


def test_vmaps_over_seeds(case):
    keys = jax.random.split(case.key, 2)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def trained(key: jax.Array, batch: Any) -> Any:
        return case.learner.step(case.learner.init(key, batch), batch)

    together = trained(keys, case.batch)
    for i, key in enumerate(keys):
        alone = case.step(case.init(key, case.batch), case.batch)
        assert_close(jax.tree.map(lambda x: x[i], together), alone, 3e-5)


def test_lowers_for_accelerators(case):
    platforms = ["cpu", "cuda", "tpu"]
    export.export(jax.jit(case.learner.step), platforms=platforms)(case.state, case.batch)
    (b,) = export.symbolic_shape("b")
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype), case.batch["inputs"])
    variables = case.learner.variables(case.state)
    predict = export.export(jax.jit(case.learner.predict), platforms=platforms)(variables, inputs)
    few = jax.tree.map(lambda x: x[:3], case.batch["inputs"])
    assert_close(predict.call(variables, few), case.learner.predict(variables, few), 2e-2 if False else 1e-5)
