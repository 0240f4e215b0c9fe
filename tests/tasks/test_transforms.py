"""What is done to batches and to numbers, and to nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen

from jdl.models import MLP
from jdl.nn import BatchNorm, Dense
from jdl.tasks import augmented, classification, mixed_precision, preprocessed

KEY = jax.random.key(0)
RAW = np.random.default_rng(0).integers(0, 256, (6, 5)).astype(np.uint8)
LABELS = np.arange(6) % 3
BATCH = {"inputs": RAW, "labels": LABELS}
TASK = classification(MLP((8, 3)))


def scale(x):
    return x / 255 - 0.5


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_preprocessed_is_the_task_on_what_was_prepared():
    task, ready = (
        preprocessed(TASK, scale),
        {"inputs": jnp.asarray(scale(RAW), jnp.float32), "labels": LABELS},
    )
    variables = task.init(KEY, BATCH)
    same(variables, TASK.init(KEY, ready))
    same(task.loss(variables, BATCH, KEY), TASK.loss(variables, ready, KEY))
    same(task.evaluate(variables, BATCH, KEY), TASK.evaluate(variables, ready, KEY))
    same(task.predict(variables, RAW), TASK.predict(variables, ready["inputs"]))
    assert task.monitor == TASK.monitor


def test_preprocessed_checks_what_the_model_will_see():
    shapes = []

    def seen(batch):
        shapes.append(batch["inputs"].shape)

    preprocessed(TASK._replace(check=seen), lambda x: x[:, :2]).check(BATCH)
    assert shapes == [(6, 2)]


def test_augmented_changes_training_alone():
    def shifted(key, batch):
        return {**batch, "inputs": batch["inputs"] + jax.random.normal(key, (6, 1))}

    task = augmented(TASK, shifted)
    variables = task.init(KEY, BATCH)
    same(variables, TASK.init(KEY, BATCH))
    same(task.evaluate(variables, BATCH, KEY), TASK.evaluate(variables, BATCH, KEY))
    same(task.predict(variables, RAW), TASK.predict(variables, RAW))
    same(task.loss(variables, BATCH, KEY), task.loss(variables, BATCH, KEY))
    losses = {float(task.loss(variables, BATCH, jax.random.key(seed))[0]) for seed in range(3)}
    assert len(losses) == 3
    assert float(TASK.loss(variables, BATCH, KEY)[0]) not in losses


def test_augmentations_of_one_task_draw_different_numbers():
    drawn = []

    def noted(key, batch):
        drawn.append(tuple(np.asarray(jax.random.key_data(key))))
        return batch

    task = augmented(augmented(TASK, noted), noted)
    task.loss(task.init(KEY, BATCH), BATCH, KEY)
    assert len(set(drawn)) == 2


class Normalised(linen.Module):
    """Notes the types that it computes in."""

    @linen.compact
    def __call__(self, inputs, train=False):
        h = BatchNorm()(Dense(8)(inputs), train=train)
        self.sow("types", "seen", jnp.zeros((), h.dtype), reduce_fn=lambda _, new: new, init_fn=lambda: 0)
        return Dense(3)(h)


def test_mixed_precision_computes_low_and_keeps_the_rest_high():
    batch = {"inputs": jnp.asarray(scale(RAW), jnp.float32), "labels": LABELS}
    plain = classification(Normalised())
    task = mixed_precision(plain)
    variables = task.init(KEY, batch)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    text = str(jax.make_jaxpr(task.loss)(variables, batch, KEY))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all(":bf16[" in line for line in products)

    (total, (weight, collections, metrics)), grads = jax.value_and_grad(task.loss, has_aux=True)(
        variables, batch, KEY
    )
    outputs = task.predict(variables, batch["inputs"])
    high = (total, weight, collections["batch_stats"], metrics["accuracy"], grads["params"], outputs)
    assert {x.dtype for x in jax.tree.leaves(high)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(total, plain.loss(variables, batch, KEY)[0], rtol=2e-2)
    np.testing.assert_allclose(outputs, plain.predict(variables, batch["inputs"]), rtol=5e-2, atol=5e-2)


def test_mixed_precision_leaves_labels_weights_and_integers_alone():
    seen = {}

    def loss(variables, batch, key):
        seen.update({name: x.dtype for name, x in batch.items()})
        return jnp.zeros(()), (jnp.ones(()), {}, {})

    batch = {**BATCH, "weights": np.ones(6, np.float32), "extra": np.ones(6, np.float32)}
    mixed_precision(TASK._replace(loss=loss)).loss({"params": {}}, batch, KEY)
    assert [str(seen[name]) for name in ("inputs", "labels", "weights", "extra")] == [
        "uint8",
        "int64",
        "float32",
        "float32",
    ]


def test_raw_inputs_are_prepared_outside_of_mixed_precision():
    task = preprocessed(mixed_precision(TASK), scale)
    text = str(jax.make_jaxpr(task.predict)(task.init(KEY, BATCH), RAW))
    assert "bf16[6,3] = dot_general" in text
