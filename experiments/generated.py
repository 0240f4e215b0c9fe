"""What experiments that generate images share: samples, and their scores in a classifier's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, evaluate, lenet
from jdl import audit, data, nn

LAYER = "Dense_1"
"""The last layer but one of LeNet-5, before its nonlinearity: 84 features."""
STEPS = 2000
"""Training steps of the classifier."""


def to_unit(inputs: Any) -> jax.Array:
    """uint8 images as float32 in -1..1, the range of a generator."""
    return jnp.asarray(inputs, jnp.float32) / 127.5 - 1


def to_bytes(images: Any) -> np.ndarray:
    """Images in -1..1 as uint8, rounded: what data are, so that rounding makes no difference."""
    return np.clip(np.rint((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


@jax.jit
def _call(predict: Callable[[Any], Any], given: Any) -> Any:
    return predict(given)


def sample(predict: Callable[[Any], Any], given: Any, at_once: int = 500) -> np.ndarray:
    """Samples as uint8 images, computed some at a time.

    Args:
        predict: from what samples are made of to images in -1..1.
        given: latents [M, Z], or a dictionary of arrays [M, ...].
        at_once: how many.
    """
    # As an argument: weights closed over would be compiled in, anew at every evaluation.
    whole = predict if isinstance(predict, jax.tree_util.Partial) else jax.tree_util.Partial(predict)
    count = jax.tree.leaves(given)[0].shape[0]
    parts = []
    for i in range(0, count, at_once):
        part = jax.tree.map(lambda x, i=i: x[i : i + at_once], given)
        missing = min(at_once, count) - jax.tree.leaves(part)[0].shape[0]
        # The last one is filled up, so that one program serves all.
        filled = jax.tree.map(lambda x, n=missing: np.concatenate([x, np.repeat(x[:1], n, 0)]), part)
        parts.append(to_bytes(_call(whole, filled))[: min(at_once, count) - missing])
    return np.concatenate(parts)


class Judge(NamedTuple):
    """A classifier's view of samples, and of the data that they are compared with.

    Attributes:
        features: uint8 images to features [B, F].
        probabilities: uint8 images to class probabilities [B, C].
        train: features of the training set.
        train_labels: its labels.
        test: features of the test set, in an order drawn at random: its beginning is like the rest of it.
        test_labels: its labels.
        moments: mean and covariance of the test set's.
        accuracy: the classifier's, on the test set.
    """

    features: Callable[[Any], Any]
    probabilities: Callable[[Any], Any]
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    moments: audit.Moments
    accuracy: float

    def of(self, samples: np.ndarray) -> np.ndarray:
        """Features of uint8 images, computed some at a time."""
        return audit.featurize(self.features, _parts(samples))

    def classes(self, samples: np.ndarray) -> np.ndarray:
        """The classes that the classifier takes uint8 images for."""
        return audit.featurize(self.probabilities, _parts(samples)).argmax(1)

    def distances(self, samples: np.ndarray) -> dict[str, float]:
        """The Frechet and the kernel distance of samples to the test set."""
        return self._distances(self.of(samples))

    def _distances(self, found: np.ndarray) -> dict[str, float]:
        """The same of features."""
        kernel = audit.kernel_distance(self.test[: len(found)], found)
        return {
            "frechet": audit.frechet_distance(self.moments, _moments(found)),
            "kernel": kernel.value,
            "kernel_error": kernel.error,
        }

    def scores(self, samples: np.ndarray, labels: np.ndarray | None = None) -> dict[str, Any]:
        """All scores of samples, and the distance that as many training as test examples have.

        With the labels that the samples were to have, "agreement" is the share that the classifier takes for
        them, and "frechet_by_class" the mean over classes of the distance between the samples and the test
        examples of a class, which sees a generator that makes one image a class.
        """
        found, count = self.of(samples), min(len(samples), len(self.test), 5000)
        support = audit.support(self.test[:count], found[:count])
        copies = audit.memorization(self.train, self.test, found[:count])
        p = audit.featurize(self.probabilities, _parts(samples))
        modes = audit.count_modes(p.argmax(1), p.shape[1], at_least=max(1, len(p) // (10 * p.shape[1])))
        as_many = slice(len(self.test))
        asked = {}
        if labels is not None:
            asked = {
                "agreement": float((p.argmax(1) == labels).mean()),
                "frechet_by_class": self._by_class(found, labels),
                "frechet_by_class_of_training_set": self._by_class(
                    self.train[as_many], self.train_labels[as_many]
                ),
            }
        return {
            **self._distances(found),
            **asked,
            "frechet_of_training_set": audit.frechet_distance(self.moments, _moments(self.train[as_many])),
            **support._asdict(),
            "classifier_score": audit.classifier_score(p),
            "classes": modes.covered,
            "copied": copies.copied,
            "copying_z": copies.z,
            "samples": len(samples),
            "classifier_accuracy": self.accuracy,
        }

    def _by_class(self, found: np.ndarray, labels: np.ndarray) -> float:
        """The mean over classes of the Frechet distance to the test examples of the class."""
        each = [
            audit.frechet_distance(_moments(self.test[self.test_labels == c]), _moments(found[labels == c]))
            for c in np.unique(labels)
        ]
        return float(np.mean(each))


def _moments(features: np.ndarray) -> audit.Moments:
    return audit.moments(lambda x: x, [features])


def judge(dataset: data.Dataset, folder: str = "", *, steps: int = STEPS, quiet: bool = False) -> Judge:
    """The judge of a data set: a LeNet-5 trained on it, taken from its folder where it is there already.

    Args:
        dataset: the data.
        folder: the classifier's; ``runs/features-NAME`` when empty.
        steps: training steps of the classifier.
        quiet: say nothing.
    """
    folder = folder or f"runs/features-{dataset.name}"
    if not quiet:
        print(f"scores are in the features of the LeNet-5 in {folder}, trained there if it is not yet")
    execution = cli.Execution(run=folder, quiet=True)
    config = lenet.Config(dataset=dataset.name, steps=steps, execution=execution)  # type: ignore[arg-type]
    accuracy = lenet.main(config).test["accuracy"]
    found = evaluate.load(folder)
    variables, model = found.loaded.variables, lenet.model(found.config)  # type: ignore[arg-type]
    preprocess = data.Preprocess.from_json(found.loaded.meta["extra"]["preprocess"])
    seen = jax.jit(lambda x: nn.features(model, variables, preprocess(x), (LAYER,))[0])
    likely = jax.jit(lambda x: jax.nn.softmax(found.loaded.predict(x)))
    of_train, of_test = (audit.featurize(seen, _parts(s["inputs"])) for s in (dataset.train, dataset.test))
    order = np.random.default_rng(0).permutation(len(of_test))
    return Judge(
        seen,
        likely,
        of_train,
        dataset.train["labels"],
        of_test[order],
        dataset.test["labels"][order],
        _moments(of_test),
        accuracy,
    )


def _parts(x: np.ndarray, size: int = 500) -> Any:
    return (np.asarray(x[i : i + size]) for i in range(0, len(x), size))


def told(scores: Mapping[str, Any]) -> str:
    """The scores in a sentence."""
    sentence = (
        f"Frechet distance {scores['frechet']:.2f} in LeNet-5's features (training set "
        f"{scores['frechet_of_training_set']:.2f}), kernel distance {scores['kernel']:.4f} ± "
        f"{scores['kernel_error']:.4f}, precision {scores['precision']:.3f}, recall {scores['recall']:.3f}, "
        f"density {scores['density']:.3f}, coverage {scores['coverage']:.3f}, {scores['classes']} classes, "
        f"{100 * scores['copied']:.1f} % of {scores['samples']} samples nearer to training images than 99 % "
        f"of test images are (z {scores['copying_z']:+.1f})"
    )
    if "agreement" in scores:
        floor = scores["frechet_by_class_of_training_set"]
        sentence += (
            f"; {100 * scores['agreement']:.1f} % of the class asked for, Frechet distance class by class "
            f"{scores['frechet_by_class']:.2f} (training set {floor:.2f})"
        )
    return sentence
