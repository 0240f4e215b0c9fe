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
from jdl.core import FAULTS, Learner, Task, objective, summarize
from jdl.models import MLP, gan, mlp
from jdl.train import batch_sharding, distributed, make_mesh, state_shardings
from jdl.train.checkpoint import Checkpoints
from tests.compiling import jit

# Which makers of tasks take the models of a file. A file whose core another has whole has none.
TAKEN_BY = {
    "airbench": ["classification"],
    "alexnet": ["classification"],
    "autoencoder": ["reconstruction"],
    "bert": ["masked"],
    "convlstm": ["regression"],
    "convnext": ["classification"],
    "densenet": ["classification"],
    "efficientnet": ["classification"],
    "encoder_decoder": [],  # t5
    "gan": ["gan"],
    "googlenet": ["classification"],
    "gpt": ["next_token"],
    "lenet": ["classification"],
    "llama": ["next_token"],
    "mae": ["masked_reconstruction"],
    "mixer": ["classification"],
    "mlp": ["classification", "regression"],
    "mobilenet": ["classification"],
    "nin": ["classification"],
    "pixelcnn": ["classification"],
    "recurrent": ["classification"],
    "recurrent_lm": ["next_token"],
    "resnet": ["classification"],
    "seq2seq": ["seq2seq"],
    "shufflenet": ["classification"],
    "small_cnn": ["classification"],
    "squeezenet": ["classification"],
    "t5": ["seq2seq"],
    "textcnn": ["classification"],
    "transformer": ["classification"],
    "unet": ["segmentation"],
    "vae": ["elbo"],
    "vgg": ["classification"],
    "vit": ["classification"],
    "vqvae": ["vector_quantized"],
}


class Subject(NamedTuple):
    """What is tested: ``learner(noise)``, and ``task(noise)`` where the task is what is new."""

    batch: dict[str, np.ndarray]
    learner: Callable[[bool], Learner]
    task: Callable[[bool], Task] | None = None
    noisy: bool = True
    tolerance: float = 3e-5
    devices: int = 8
    low_precision: Callable[[], dict[str, Task]] | None = None
    inputs: Any = None  # what is predicted from, where that is not the batch's


def sgd(task: Task, rate: Any = 0.1, **options: Any) -> Learner:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9))
    return learners.gradient(task, tx, **options)


def without_noise(module: Any) -> Any:
    """The module without its noise, which is in the fields ``dropout`` and ``stochastic_depth``."""
    noise = {name: 0.0 for name in ("dropout", "stochastic_depth") if getattr(module, name, 0.0)}
    return module.clone(**noise) if noise else module


def model_subject(file: str, maker: str) -> Subject:
    module, batch = importlib.import_module(f"jdl.models.{file}").tiny()
    if maker == "regression":
        outputs = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], batch["inputs"])
        batch["labels"] = np.random.default_rng(1).normal(size=outputs.shape).astype(np.float32)
    make = MAKERS.get(maker, lambda module, batch, noise: getattr(tasks, maker)(module))

    def task(noise: bool) -> Task:
        return make(module if noise else without_noise(module), batch, noise)

    def low_precision() -> dict[str, Task]:
        low = module.clone(dtype=jnp.bfloat16)
        return {"mixed_precision": tasks.mixed_precision(task(True)), "dtype": make(low, batch, True)}

    return Subject(
        batch,
        lambda noise: sgd(task(noise)),
        task,
        noisy=maker in MAKERS or without_noise(module) is not module,
        low_precision=low_precision,
    )


def hiding(module: Any, batch: Any, noise: bool) -> Task:
    """Half of the tokens hidden behind the last of the vocabulary: without noise, always the same half."""
    logits = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], batch["inputs"])
    V = logits.shape[-1]
    return tasks.masked(module, V, V - 1, rate=0.5, dynamic=noise)


def coding(module: Any, batch: Any, noise: bool) -> Task:
    """A bound on the likelihood: without noise, the code that is the posterior's mean."""
    del batch
    return tasks.elbo(module, samples=int(noise))


def ordering(module: Any, batch: Any, noise: bool) -> Task:
    """Patches in a random order: without noise, in the order that they have."""
    task = tasks.masked_reconstruction(module)
    if noise:
        return task
    T = (batch["inputs"].shape[1] // module.patch) ** 2

    def with_order(inputs: Any) -> Any:
        order = jnp.broadcast_to(jnp.arange(T), (len(inputs), T))
        return {"data": inputs, "order": order}

    return tasks.preprocessed(task, with_order)


# Makers of tasks that need more than a module, and draw noise of their own.
MAKERS: dict[str, Callable[[Any, Any, bool], Task]] = {
    "masked": hiding,
    "elbo": coding,
    "masked_reconstruction": ordering,
}


def tiny_task(noise: bool) -> Task:
    """What transformations are tried on."""
    return tasks.classification(MLP((8, 4), activation=jnp.tanh, dropout=0.1 if noise else 0.0))


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
}

# Public names that are neither.
OTHER_IN_TASKS = {
    "LatentModel",
    "classification_score",
    "contraction",
    "functions",
    "gaussian_noise",
    "importance_weighted",
    "kl_sparsity",
    "l1_sparsity",
    "latent_model",
    "masking_noise",
    "salt_and_pepper",
    "segmentation_score",
    "span_corruption",
    "supervised",
    "token_classification",
}
OTHER_IN_LEARNERS = {
    "decays",
    "gradient",
    "grid",
    "label_by_path",
    "mask_by_path",
    "max_norm",
    "mean_probabilities",
    "scale_by_path",
}


def task_subject(name: str) -> Subject:
    def task(noise: bool) -> Task:
        return TASKS[name](tiny_task(noise), noise)

    # Low precision is rounded at other places where operations are fused.
    tolerance = 3e-2 if name == "mixed_precision" else 3e-5
    return Subject(mlp.tiny()[1], lambda noise: sgd(task(noise)), task, tolerance=tolerance)


def learner_subject(name: str) -> Subject:
    devices = 4 if "accumulate=2" in name else 8  # a shard of one example has no two parts
    return Subject(mlp.tiny()[1], lambda noise: LEARNERS[name](tiny_task(noise)), devices=devices)


def gan_subject(discriminator_steps: int = 1, r1: float = 0.0) -> Subject:
    (generator, discriminator), batch = gan.tiny()

    def learner(noise: bool) -> Learner:
        judge = discriminator if noise else without_noise(discriminator)
        latents = 4 if noise else lambda key, batch: batch["latents"]
        players = tasks.gan(generator, judge, latents, loss="hinge", r1=r1, conditional=True)
        adam = optax.adam(3e-3, 0.5)
        return learners.gan(players, adam, adam, discriminator_steps=discriminator_steps)

    inputs = {name: batch[name] for name in ("latents", "labels")}
    return Subject(batch, learner, inputs=inputs, devices=8 // discriminator_steps)


# Learners of more than one task.
PAIRED: dict[str, Callable[[], Subject]] = {
    "gan": gan_subject,
    "gan(discriminator_steps=2, r1=1)": functools.partial(gan_subject, 2, 1.0),
}

MODEL_SUBJECTS = {
    f"{file}-{maker}": functools.partial(model_subject, file, maker)
    for file, makers in TAKEN_BY.items()
    for maker in makers
    if maker not in PAIRED
}
TASK_SUBJECTS = {name: functools.partial(task_subject, name) for name in TASKS}
LEARNER_SUBJECTS = {name: functools.partial(learner_subject, name) for name in LEARNERS} | PAIRED
SUBJECTS = MODEL_SUBJECTS | TASK_SUBJECTS | LEARNER_SUBJECTS


def test_every_model_is_entered():
    files = {module.name for module in pkgutil.iter_modules(models.__path__)}
    without = [file for file in files if not hasattr(importlib.import_module(f"jdl.models.{file}"), "tiny")]
    assert not without, f"no tiny() in jdl.models: {without}"
    assert files == set(TAKEN_BY), "jdl.models and TAKEN_BY differ"


def test_every_maker_and_transformation_is_entered():
    makers = {maker for makers in TAKEN_BY.values() for maker in makers}
    assert set(tasks.__all__) == makers | set(TASKS) | OTHER_IN_TASKS
    names = {name for name in LEARNER_SUBJECTS if name.isidentifier()}
    assert set(learners.__all__) == names | OTHER_IN_LEARNERS


class Case:
    """A subject's functions, each compiled once for all the tests that need it."""

    def __init__(self, subject: Subject):
        self.subject, self.batch, self.key = subject, subject.batch, jax.random.key(0)
        self.learner = subject.learner(True)
        self.init, self.step = jit(self.learner.init), jit(self.learner.step)
        self.gradient = subject.task and jit(gradient_of(subject.task(True)))
        self.quiet = subject.learner(False)

    @functools.cached_property
    def state(self) -> Any:
        return self.init(self.key, self.batch)

    @functools.cached_property
    def stepped(self) -> Any:
        """State and metrics after one step."""
        return self.step(self.state, self.batch)

    @functools.cached_property
    def quietly_stepped(self) -> Any:
        return jit(self.quiet.step)(self.state, self.batch) if self.subject.noisy else self.stepped

    @functools.cached_property
    def perturbed(self) -> Any:
        """Variables whose parameters are all random, so that none is zero or one by its initializer."""
        variables = self.learner.variables(self.state)
        leaves, structure = jax.tree.flatten(variables["params"])
        rng = np.random.default_rng(0)
        leaves = [x + 0.2 * rng.normal(size=x.shape).astype(x.dtype) for x in leaves]
        return {**variables, "params": structure.unflatten(leaves)}


def loss_of(task: Task) -> Callable[..., Any]:
    """``params, variables, batch, key -> mean loss, (changed collections, metrics)``."""

    def loss(params: Any, variables: Any, batch: Any, key: Any) -> Any:
        total, (weight, collections, metrics) = task.loss({**variables, "params": params}, batch, key)
        return total / weight, (collections, metrics)

    return loss


def gradient_of(task: Task) -> Callable[..., Any]:
    """``variables, batch, key -> (mean loss, (changed collections, metrics)), its gradient``."""

    def gradient(variables: Any, batch: Any, key: Any) -> Any:
        return jax.value_and_grad(loss_of(task), has_aux=True)(variables["params"], variables, batch, key)

    return gradient


@pytest.fixture(scope="module", params=SUBJECTS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(SUBJECTS[request.param]())


@pytest.fixture(autouse=True)
def _costs(request: pytest.FixtureRequest) -> None:
    """Says in the test's report whose cost its time is."""
    if "case" in request.fixturenames:
        request.node.user_properties.append(("contract", request.node.callspec.params["case"]))


def of(*subjects: Any) -> pytest.MarkDecorator:
    """Runs a test for these subjects alone."""
    names = [name for some in subjects for name in some]
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


def is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)


def bits(tree: Any) -> list[bytes]:
    return [plain(x).tobytes() for x in jax.tree.leaves(tree)]


def dtypes(tree: Any) -> set[str]:
    return {str(x.dtype) for x in jax.tree.leaves(tree)}


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Equal but for ``tolerance`` relative to the largest entry of each leaf."""

    def compare(path: Any, actual: Any, expected: Any) -> None:
        assert actual.dtype == expected.dtype
        actual, expected = plain(actual), plain(expected)
        scale = max(1e-2, np.abs(expected).max(initial=0))
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)

    jax.tree_util.tree_map_with_path(compare, actual, expected)


def test_a_key_decides_every_bit(case):
    again, other = case.init(case.key, case.batch), case.init(jax.random.key(1), case.batch)
    assert bits(case.state) == bits(again)
    assert bits(case.learner.variables(case.state)) != bits(case.learner.variables(other))
    assert bits(case.stepped) == bits(case.step(again, case.batch))


@of(MODEL_SUBJECTS, TASK_SUBJECTS)
def test_noise_comes_from_the_key_alone(case):
    first = bits(case.gradient(case.perturbed, case.batch, case.key))
    assert first == bits(case.gradient(case.perturbed, case.batch, case.key))
    other = bits(case.gradient(case.perturbed, case.batch, jax.random.key(1)))
    assert (first != other) == case.subject.noisy


@of(MODEL_SUBJECTS, TASK_SUBJECTS)
def test_gradients_are_finite_and_reach_every_parameter(case):
    (loss, _), grads = case.gradient(case.perturbed, case.batch, case.key)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, grads)))
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    dead = [jax.tree_util.keystr(path) for path, gradient in leaves if not np.any(gradient)]
    assert not dead, f"no gradient reaches {dead}"


# Eager compiles every operation by itself: one model of each kind.
@of(
    ["mlp-classification", "resnet-classification", "recurrent-classification", "gpt-next_token"],
    TASK_SUBJECTS,
)
def test_jit_equals_eager(case):
    compiled, _ = case.gradient(case.perturbed, case.batch, case.key)
    loss = loss_of(case.subject.task(True))
    eager = loss(case.perturbed["params"], case.perturbed, case.batch, case.key)
    assert_close(compiled, eager, max(1e-5, case.subject.tolerance))


def test_the_monitored_metric_improves(case):
    way, name = objective(case.learner.monitor)
    evaluate = jit(lambda variables: case.learner.evaluate(variables, case.batch, case.key))
    state = case.state
    for _ in range(40):
        state, metrics = case.step(state, case.batch)
    assert not any(jax.tree.leaves(metrics[FAULTS]))
    before, after = case.learner.variables(case.state), case.learner.variables(state)
    change = np.mean(summarize(evaluate(after))[name]) - np.mean(summarize(evaluate(before))[name])
    assert change > 0 if way == "max" else change < 0
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before["params"], after["params"])
    assert all(jax.tree.leaves(moved)), moved


@of(MODEL_SUBJECTS)
def test_computes_in_bfloat16(case):
    """Both ways keep float32 outside; the numbers are those of one, as the other is the same products."""
    low = case.subject.low_precision()
    arguments = case.perturbed, case.batch, case.key
    for task in low.values():
        jaxpr, ((loss, _), grads) = jax.make_jaxpr(gradient_of(task), return_shape=True)(*arguments)
        params = jax.eval_shape(task.init, case.key, case.batch)["params"]
        assert "bf16[" in str(jaxpr)
        assert dtypes((params, loss, grads)) == {"float32"}
    (loss, _), grads = jit(gradient_of(low["dtype"]))(*arguments)
    (exact_loss, _), exact = case.gradient(*arguments)
    assert abs(loss - exact_loss) < 0.03 * abs(exact_loss)
    # Where a ReLU is near zero, rounding decides: networks of many layers differ by a tenth.
    assert optax.tree.norm(optax.tree.sub(grads, exact)) < 0.2 * optax.tree.norm(exact)


def test_saves_and_goes_on_bitwise(case, tmp_path):
    state, _ = case.stepped
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, wait=True)
        restored = checkpoints.restore(state).state
    assert bits(restored) == bits(state)
    assert bits(case.step(restored, case.batch)) == bits(case.step(state, case.batch))


def test_many_devices_equal_one(case):
    many_devices_equal_one(case, "shard_map")


# The same step under another name of the same primitive: one model with each kind of state.
@of(["mlp-classification", "resnet-classification", "recurrent_lm-next_token"], LEARNER_SUBJECTS)
def test_pmap_equals_one_device(case):
    many_devices_equal_one(case, "pmap")


def many_devices_equal_one(case: Case, mode: Any) -> None:
    mesh = make_mesh(f"data:{case.subject.devices}")
    step = jit(distributed(case.quiet.step, mesh, mode, case.state))
    state = jax.device_put(case.state, state_shardings(case.state, mesh))
    actual = step(state, jax.device_put(case.batch, batch_sharding(mesh)))
    assert_close(actual, case.quietly_stepped, case.subject.tolerance)


def test_vmaps_over_seeds(case):
    states = [case.init(key, case.batch) for key in jax.random.split(case.key, 2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together = jit(jax.vmap(case.learner.step, in_axes=(0, None)))(stacked, case.batch)
    for i, state in enumerate(states):
        actual = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(actual, case.step(state, case.batch), case.subject.tolerance)


def test_lowers_for_accelerators(case):
    platforms = ["cpu", "cuda", "tpu"]
    export.export(jax.jit(case.learner.step), platforms=platforms)(case.state, case.batch)
    variables = case.learner.variables(case.state)
    inputs = case.batch["inputs"] if case.subject.inputs is None else case.subject.inputs
    (b,) = export.symbolic_shape("b")
    of_any_size = jax.tree.map(lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype), inputs)
    exported = export.export(jax.jit(case.learner.predict), platforms=platforms)(variables, of_any_size)
    few = jax.tree.map(lambda x: x[:3], inputs)
    predicted = jit(case.learner.predict)(variables, few)
    assert_close(exported.call(variables, few), predicted, case.subject.tolerance)
