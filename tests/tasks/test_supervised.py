"""Losses and metrics equal PyTorch's, count exactly what is weighed, and refuse what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from hypothesis import given, settings
from hypothesis import strategies as st

from jdl.core import FAULTS, summarize
from jdl.models import MLP
from jdl.tasks import (
    classification,
    classification_score,
    regression,
    segmentation,
    segmentation_score,
)

C = 5


def logits_and_labels(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, C)).astype(np.float32), rng.integers(0, C, shape)


def score(logits, labels, weights=None, **options):
    """The score as the library calls it: the inputs of the batch say only how many examples it has."""
    batch = {"inputs": np.zeros(len(logits)), "labels": labels}
    if weights is not None:
        batch["weights"] = weights
    return classification_score(jnp.asarray(logits), batch, **options)


class Identity(linen.Module):
    """A model whose outputs are its inputs, and a parameter that it needs to be one."""

    @linen.compact
    def __call__(self, inputs, train=False):
        return inputs + self.param("zero", linen.initializers.zeros, (1,) * inputs.ndim)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("shape", [(8,), (4, 3)])
def test_cross_entropy_equals_torch(torch, label_smoothing, soft, shape):
    logits, labels = logits_and_labels(*shape)
    if soft:
        labels = np.random.default_rng(1).dirichlet(np.ones(C), shape).astype(np.float32)
    actual = score(logits, labels, label_smoothing=label_smoothing)["loss"]
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, C),
        torch.tensor(labels).reshape(-1, C) if soft else torch.tensor(labels).flatten(),
        label_smoothing=label_smoothing,
    )
    assert float(actual.value()) == pytest.approx(float(expected), rel=1e-5)
    assert float(actual.weight) == np.prod(shape)


def test_weighted_cross_entropy_equals_torch(torch):
    logits, labels = logits_and_labels(8)
    weights = np.random.default_rng(1).uniform(0, 2, 8).astype(np.float32)
    losses = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none")
    metrics = score(logits, labels, weights)
    for name, values in {"loss": losses.numpy(), "accuracy": logits.argmax(-1) == labels}.items():
        mean = np.average(values, weights=weights)
        assert float(metrics[name].value()) == pytest.approx(mean, rel=1e-5)


def test_ignored_positions_equal_torch_ignore_index(torch):
    logits, labels = logits_and_labels(4, 6)
    weights = np.random.default_rng(1).integers(0, 2, (4, 6)).astype(np.float32)
    ignored = np.where(weights > 0, labels, -100)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, C), torch.tensor(ignored).flatten()
    )
    metrics = score(logits, ignored, weights)
    assert float(metrics["loss"].value()) == pytest.approx(float(expected), rel=1e-5)
    assert metrics[FAULTS] == {"labels outside 0..4": 0}


def test_an_example_weight_counts_each_position():
    logits, labels = logits_and_labels(3, 4)
    by_example = score(logits, labels, np.array([1.0, 0.0, 2.0]))
    by_position = score(logits, labels, np.repeat([[1.0], [0.0], [2.0]], 4, 1))
    assert jax.tree.map(float, by_example) == jax.tree.map(float, by_position)


def test_soft_labels_of_one_class_equal_integers():
    logits, labels = logits_and_labels(8)
    assert summarize(score(logits, np.eye(C, dtype=np.float32)[labels])) == pytest.approx(
        summarize(score(logits, labels)), rel=1e-6
    )


def test_smoothing_is_of_training_alone():
    logits, labels = logits_and_labels(8)
    batch, key = {"inputs": logits, "labels": labels}, jax.random.key(0)
    plain, smooth = classification(Identity()), classification(Identity(), label_smoothing=0.3)
    variables = plain.init(key, batch)
    assert plain.evaluate(variables, batch, key)["loss"] == smooth.evaluate(variables, batch, key)["loss"]
    assert plain.loss(variables, batch, key)[0] != smooth.loss(variables, batch, key)[0]


def test_logits_in_bfloat16_are_scored_in_float32():
    logits, labels = logits_and_labels(8)
    low = jnp.asarray(logits, jnp.bfloat16)
    loss = score(low, labels)["loss"]
    assert loss.total.dtype == jnp.float32
    assert loss == score(low.astype(jnp.float32), labels)["loss"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_labels_may_be_of_any_integer_type(dtype):
    logits = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    labels = np.array([0, 3, 100, 120])
    assert score(logits, labels.astype(dtype))["loss"] == score(logits, labels)["loss"]


def test_labels_out_of_range_are_counted_where_they_weigh():
    logits, _ = logits_and_labels(4)
    metrics = score(logits, np.array([-1, 2, 5, 7]), np.array([1.0, 1.0, 1.0, 0.0]))
    assert metrics[FAULTS] == {"labels outside 0..4": 2}
    assert np.isfinite(float(metrics["loss"].total))


MODEL = MLP((8, C))
INPUTS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def padded(batch, rows, filler):
    """The batch with rows that weigh nothing, full of nonsense."""
    weights = batch.get("weights", np.ones(len(batch["labels"]), np.float32))
    more = {
        "inputs": np.full((rows, *batch["inputs"].shape[1:]), filler, np.float32),
        "labels": np.full((rows, *batch["labels"].shape[1:]), filler).astype(batch["labels"].dtype),
        "weights": np.zeros(rows, np.float32),
    }
    return {name: np.concatenate([x, more[name]]) for name, x in {**batch, "weights": weights}.items()}


@functools.cache
def outcome_of(kind):
    """``variables, batch -> `` everything that a batch decides."""
    task = {"classification": classification, "regression": regression}[kind](MODEL)
    gradient = jax.value_and_grad(task.loss, has_aux=True)
    key = jax.random.key(0)
    return jax.jit(
        lambda variables, batch: (gradient(variables, batch, key), task.evaluate(variables, batch, key))
    )


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 4]), st.sampled_from([0, 77]), st.integers(0, 9))
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_padding_changes_neither_loss_nor_gradient_nor_metric(kind, rows, filler, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, 6) if kind == "classification" else rng.normal(size=(6, C))
    weights = rng.uniform(0.5, 2, 6).astype(np.float32)
    batch = {"inputs": INPUTS, "labels": labels, "weights": weights}
    variables = MODEL.init(jax.random.key(seed), INPUTS)
    actual, expected = (outcome_of(kind)(variables, b) for b in (padded(batch, rows, filler), batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


@pytest.mark.parametrize(
    ("loss", "name"), [("squared", "mse_loss"), ("absolute", "l1_loss"), ("huber", "huber_loss")]
)
@pytest.mark.parametrize("shape", [(8,), (8, 3), (4, 2, 3)])
def test_regression_equals_torch_in_value_and_gradient(torch, loss, name, shape):
    rng = np.random.default_rng(0)
    outputs, labels = (rng.normal(scale=2, size=shape).astype(np.float32) for _ in range(2))
    task, key = regression(Identity(), loss=loss), jax.random.key(0)
    batch = {"inputs": outputs, "labels": labels}
    variables = task.init(key, batch)

    def mean(inputs):
        total, (weight, _, metrics) = task.loss(variables, {**batch, "inputs": inputs}, key)
        return total / weight, metrics

    (value, metrics), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(outputs))
    x = torch.tensor(outputs, requires_grad=True)
    expected = getattr(torch.nn.functional, name)(x, torch.tensor(labels))
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, x.grad, rtol=1e-5, atol=1e-6)
    assert summarize(metrics) == pytest.approx(
        {"mse": np.square(outputs - labels).mean(), "mae": np.abs(outputs - labels).mean()}, rel=1e-5
    )


def test_regression_counts_weights():
    outputs, labels = np.array([[1.0], [5.0]], np.float32), np.array([[0.0], [0.0]], np.float32)
    batch = {"inputs": outputs, "labels": labels, "weights": np.array([3.0, 1.0])}
    task = regression(Identity())
    metrics = task.evaluate(task.init(jax.random.key(0), batch), batch, jax.random.key(0))
    assert summarize(metrics) == {"loss": 7.0, "mse": 7.0, "mae": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": np.array([0, 1, 5, 2, -1, 0])},
            r"2 labels lie outside 0..4, .* 5 outputs: for example 5",
        ),
        ({"labels": np.zeros(5, int)}, r"labels of shape \(5,\) do not fit logits of shape \(6, 5\)"),
        ({"labels": np.zeros((6, 1), int)}, r"labels of shape \(6, 1\) do not fit logits of shape \(6, 5\)"),
        (
            {"labels": np.zeros(6)},
            r"labels are float64 .* integers of shape \(6,\), or probabilities of shape \(6, 5\)",
        ),
        ({"labels": np.array(["a"] * 6)}, "labels must be integers or probabilities; got <U1"),
        ({"labels": None}, r"a batch with \"inputs\" and \"labels\"; it has \['inputs'\]"),
    ],
)
def test_check_says_what_is_wrong_with_a_batch(changes, message):
    batch = {"inputs": INPUTS, "labels": np.zeros(6, int), **changes}
    with pytest.raises(ValueError, match=message):
        classification(MODEL).check({name: x for name, x in batch.items() if x is not None})


@pytest.mark.parametrize(
    "batch",
    [
        {"labels": np.array([0, 4, 1, 2, 3, 0], np.uint8)},
        {"labels": np.full((6, C), 1 / C, np.float32)},
        {"labels": np.array([0, 99, 1, 2, 3, 0]), "weights": np.array([1, 0, 1, 1, 1, 1])},
    ],
)
def test_check_lets_good_batches_pass(batch):
    classification(MODEL).check({"inputs": INPUTS, **batch})


def test_shapes_that_do_not_fit_are_refused_in_words():
    logits, labels = logits_and_labels(4)
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) do not fit logits of shape \(4, 5\)"):
        score(logits, labels[:3])
    with pytest.raises(ValueError, match=r"weights of shape \(4, 2\) do not fit positions of shape \(4,\)"):
        score(logits, labels, np.ones((4, 2)))
    task, key = regression(Identity()), jax.random.key(0)
    for batch, message in (
        ({"labels": np.zeros(4)}, r"outputs of shape \(4, 1\) and labels of shape \(4,\) must agree"),
        ({"labels": np.zeros((4, 1)), "weights": np.ones((4, 1))}, r"weights of shape \(4, 1\) do not fit"),
    ):
        batch = {"inputs": np.zeros((4, 1), np.float32), **batch}
        with pytest.raises(ValueError, match=message):
            task.evaluate(task.init(key, batch), batch, key)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"label_smoothing .* got {smoothing}"):
        classification(MODEL, label_smoothing=smoothing)


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="one of squared, absolute, huber; got 'cubic'"):
        regression(MODEL, loss="cubic")


def segments(B=3, H=4, W=5, seed=0):
    logits, labels = logits_and_labels(B, H, W, seed=seed)
    weights = np.random.default_rng(seed + 1).uniform(0, 2, (B, H, W)).astype(np.float32)
    return {"inputs": logits, "labels": labels, "weights": weights}


@pytest.mark.parametrize("weighted", [False, True])
def test_overlap_equals_sklearn(weighted):
    metrics = pytest.importorskip("sklearn.metrics")
    batch = segments()
    weights = batch["weights"].ravel() if weighted else None
    found = segmentation_score(jnp.asarray(batch["inputs"]), batch if weighted else without_weights(batch))
    flat = batch["labels"].ravel(), batch["inputs"].argmax(-1).ravel()
    options = {"average": None, "sample_weight": weights}
    np.testing.assert_allclose(found["iou"].value(), metrics.jaccard_score(*flat, **options), rtol=1e-5)
    np.testing.assert_allclose(found["dice"].value(), metrics.f1_score(*flat, **options), rtol=1e-5)


def without_weights(batch):
    return {name: x for name, x in batch.items() if name != "weights"}


def test_segmentation_counts_pixels_by_their_weights():
    batch = segments()
    task = segmentation(Identity())
    variables = task.init(jax.random.key(0), batch)
    total, (weight, _, metrics) = task.loss(variables, batch, jax.random.key(1))
    logits, labels = batch["inputs"], batch["labels"]
    losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), labels[..., None], -1)[..., 0]
    assert float(weight) == pytest.approx(batch["weights"].sum(), rel=1e-6)
    assert float(total) == pytest.approx((losses * batch["weights"]).sum(), rel=1e-5)
    right = (logits.argmax(-1) == labels) * batch["weights"]
    assert float(metrics["accuracy"].total) == pytest.approx(right.sum(), rel=1e-5)


def test_segmentation_of_a_batch_is_that_of_its_parts_added():
    batch = segments(B=4)
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    scores = [segmentation_score(jnp.asarray(part["inputs"]), part) for part in parts]
    added = jax.tree.map(lambda a, b: a + b, *scores)
    whole = segmentation_score(jnp.asarray(batch["inputs"]), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added, whole)


def test_overlap_of_a_class_that_is_nowhere_is_not_a_number():
    logits = np.zeros((1, 2, 2, C), np.float32)
    logits[..., 1] = 1
    batch = {"inputs": logits, "labels": np.ones((1, 2, 2), np.int32)}
    overlap = summarize(segmentation_score(jnp.asarray(logits), batch))["iou"]
    np.testing.assert_array_equal(overlap, [np.nan, 1, np.nan, np.nan, np.nan])


def test_segmentation_refuses_labels_of_another_size():
    batch = segments()
    with pytest.raises(ValueError, match=r"labels of shape \(3, 4, 4\) do not fit logits of shape"):
        segmentation(Identity()).check({**without_weights(batch), "labels": batch["labels"][:, :, :4]})


class TwoHeads(linen.Module):
    """Logits, and in training those of an auxiliary classifier too."""

    @linen.compact
    def __call__(self, inputs, train=False):
        first, second = linen.Dense(C)(inputs), linen.Dense(C)(inputs)
        return (first, second) if train else first


def test_auxiliary_classifiers_add_their_weighted_loss_in_training():
    batch, key = {"inputs": np.eye(4, dtype=np.float32), "labels": np.array([0, 1, 2, 3])}, jax.random.key(0)
    task = classification(TwoHeads(), auxiliary=0.25)
    variables = task.init(key, batch)
    (first, second), _ = TwoHeads().apply(variables, batch["inputs"], train=True, mutable=[])
    losses = [score(logits, batch["labels"])["loss"].total for logits in (first, second)]
    total, (weight, _, metrics) = task.loss(variables, batch, key)
    assert float(total) == pytest.approx(float(losses[0] + 0.25 * losses[1]), rel=1e-6)
    assert float(weight) == 4
    assert float(metrics["accuracy"].total) == (first.argmax(-1) == batch["labels"]).sum()
    assert float(task.evaluate(variables, batch, key)["loss"].total) == pytest.approx(float(losses[0]))
