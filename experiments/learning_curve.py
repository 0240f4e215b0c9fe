"""Test error against the number of training images: a multilayer perceptron beside a convolutional network.

Trains both on 100 to 60,000 images of MNIST, three seeds each, and fits error = a n^-b + c to the means: b
says how fast data pay, c what no amount of data would remove. All sizes take the same number of steps (3,000
of 100 images: 5 passes over all of MNIST, by when the error on the training images is printed beside that on
the test images), without augmentation, so that nothing but the data differs. A seed draws the images, the
initial weights and the order; the images of a smaller size are among those of a larger one.

Hestness et al., "Deep learning scaling is predictable, empirically", 2017, section 2 and equation 1, for the
law; LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998, for
the two networks (LeNet-300-100 and LeNet-5) and figure 6, test error against the size of the training set.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import cli, images, ledger, study
from jdl import data, models, train

PUBLISHED = "none for these sizes: LeCun et al. 1998, figure 6, draws the curve from 15,000 images on"

NETWORKS = {
    "MLP": (models.MLP((300, 100, 10)), None),
    "LeNet-5": (models.LeNet5(), (32, 32)),
}
"""Each network, and the image size it takes."""

COLORS = {"MLP": "C0", "LeNet-5": "C1"}


@dataclass(frozen=True)
class Config(images.Config):
    """Settings of the learning curves."""

    dataset: images.DatasetName = "mnist"
    """Images to learn."""
    sizes: tuple[int, ...] = (100, 300, 1_000, 3_000, 10_000, 30_000, 60_000)
    """Numbers of training images."""
    repeats: int = 3
    """Seeds, counted from --seed."""
    steps: int = 3000
    """Training steps of each network, the same for all sizes."""
    batch_size: int = 100
    """Images in a batch; no more than there are."""
    learning_rate: float = 1e-3
    """Peak of the learning rate."""
    shift: int = 0
    """Largest random shift of a training image, pixels each way; 0 for the images as they are."""
    resamples: int = 1000
    """Resamples of the seeds behind the intervals."""


class PowerLaw(NamedTuple):
    """error = a n^-b + c.

    Attributes:
        a: factor.
        b: exponent.
        c: error that remains with any number of examples; at least 0.
    """

    a: Any
    b: Any
    c: Any

    def __call__(self, n: Any) -> Any:
        """The error at ``n`` examples."""
        return self.a * n**-self.b + self.c


def power_law(sizes: Any, errors: Any, smallest: float = 1e-6) -> PowerLaw:
    """The law that is nearest to errors in squares of relative differences.

    For a given exponent the other two follow from linear equations; exponents from 0.01 to 2 are tried in
    steps of 0.005, so that no start has to be guessed.

    Args:
        sizes: numbers of examples [S], all different, at least three.
        errors: [..., S], in any unit; each leading index is fitted alone.
        smallest: errors below it weigh as much as it does.

    Returns:
        The law, each of its numbers [...].

    Raises:
        ValueError: for fewer than three sizes, or errors of another shape.

    Example:
        >>> sizes = np.array([100, 1000, 10000, 60000])
        >>> law = power_law(sizes, 3 * sizes**-0.5 + 0.01)
        >>> f"{law.a:.3f} n^-{law.b:.3f} + {law.c:.4f}"
        '3.000 n^-0.500 + 0.0100'
    """
    n_S, e = np.asarray(sizes, float), np.asarray(errors, float)
    if len(set(n_S.tolist())) < 3 or e.shape[-1:] != n_S.shape:
        raise ValueError("a power law with three numbers needs the errors of at least three different sizes; "
                         f"got sizes {n_S.tolist()} and errors of shape {e.shape}")  # fmt: skip
    unit = np.exp(np.log(n_S).mean())
    b_E = 0.01 + 0.005 * np.arange(399)
    weight = 1 / np.maximum(e, smallest)[..., None, :]
    u, v, target = (n_S / unit) ** -b_E[:, None] * weight, weight, e[..., None, :] * weight
    uu, uv, vv = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    ut, vt = (u * target).sum(-1), (v * target).sum(-1)
    c = np.maximum(0, (uu * vt - uv * ut) / (uu * vv - uv * uv))
    a = (ut - c * uv) / uu
    misfit = np.square(a[..., None] * u + c[..., None] * v - target).sum(-1)
    best = misfit.argmin(-1)[..., None]
    a, c = (np.take_along_axis(x, best, -1)[..., 0] for x in (a, c))
    b = b_E[best[..., 0]]
    return PowerLaw(a * unit**b, b, c)


def resampled(sizes: Any, errors_SR: Any, resamples: int, smallest: float = 1e-6) -> PowerLaw:
    """Laws fitted to means over seeds drawn anew with replacement, each size by itself.

    It is the spread between seeds and nothing else: with three of them the intervals come out somewhat too
    short (a mean of three resampled values varies by two thirds of what it should, in variance).

    Args:
        sizes: [S].
        errors_SR: one a size and seed [S, R].
        resamples: how many laws.
        smallest: as in `power_law`.

    Returns:
        The laws, each of their numbers [resamples].
    """
    e_SR = np.asarray(errors_SR, float)
    S, R = e_SR.shape
    drawn = np.random.default_rng(0).integers(0, R, (resamples, S, R))
    means = np.take_along_axis(np.broadcast_to(e_SR, drawn.shape), drawn, -1).mean(-1)
    return power_law(sizes, means, smallest)


def measure(config: Config, dataset: data.Dataset, network: str, size: int, seed: int) -> dict[str, Any]:
    """Trains one network on so many images, and says how many it gets wrong, per cent."""
    module, shape = NETWORKS[network]
    rows = np.random.default_rng(seed).permutation(len(dataset.train["labels"]))[:size]
    part = {name: x[rows] for name, x in dataset.train.items()}
    seen = {name: x[:10_000] for name, x in part.items()}
    how = "resize" if config.dataset == "digits" else "pad"
    preprocess = data.fit_preprocess(part["inputs"], size=shape, how=how)
    start = time.perf_counter()
    fitted = train.fit(
        images.recipe(module, preprocess, config, len(dataset.class_names)),
        data.shuffled(part, min(config.batch_size, size), seed=seed),
        config.steps,
        key=seed,
        evaluation={
            name: data.in_order(each, min(1000, len(each["labels"])))
            for name, each in (("test", dataset.test), ("seen", seen))
        },
        evaluate_every=config.steps,
        mesh=config.execution.mesh or "data:1",
        mode=config.execution.mode,
    )
    return {
        "network": network,
        "size": size,
        "seed": seed,
        "test_error": 100 * (1 - fitted.history.last("test")["accuracy"]),
        "training_error": 100 * (1 - fitted.history.last("seen")["accuracy"]),
        "seconds": time.perf_counter() - start,
    }


def main(config: Config) -> dict[str, Any]:
    """Trains every network on every size, and fits the laws.

    One device does it unless ``--mesh`` says more: batches of the smallest sets do not go round among many.

    Returns:
        By network: ``errors`` [sizes][seeds] and ``training_errors`` in per cent, the ``law`` with a, b and
        c, and 95 % ``intervals`` of each; also in ``curves.json`` of the study's folder.

    Raises:
        ValueError: for fewer than three sizes, or one that the data do not have.
    """
    dataset = data.load(config.dataset)
    available = len(dataset.train["labels"])
    sizes = sorted(set(config.sizes))
    if len(sizes) < 3 or sizes[0] < 1 or sizes[-1] > available:
        raise ValueError(f"sizes must be at least three different numbers of images, 1 to the {available:,} "
                         f"of {config.dataset}; got {' '.join(map(str, config.sizes))}")  # fmt: skip
    seeds = study.seeds(config)
    study.figure(1, 1)  # what is missing for it is missed now, not after the training
    folder = study.begin("learning_curve", config)
    found: dict[str, Any] = {}
    for network in NETWORKS:
        points = []
        for size in sizes:
            for seed in seeds:
                point = study.once(
                    folder / "points" / f"{network}-{size}-{seed}.json",
                    lambda a=(network, size, seed): measure(config, dataset, *a),  # type: ignore[misc]
                )
                points.append(point)
                if not config.execution.quiet:
                    print(f"{network}, {size:,} images, seed {seed}: {point['test_error']:.2f} % test error "
                          f"in {point['seconds']:.0f} s", flush=True)  # fmt: skip
        found[network] = summarized(config, sizes, points, 100 / len(dataset.test["labels"]))
    (folder / "curves.json").unlink(missing_ok=True)
    study.once(folder / "curves.json", lambda: {"sizes": sizes, **found})
    picture = folder / "curves.png"
    plot(sizes, found, f"Test error on {config.dataset}").savefig(picture, dpi=120)
    _offer(folder, config, sizes, found)
    if not config.execution.quiet:
        print(f"\n{report(sizes, found)}\n\n  curves   {picture}\n  numbers  {folder / 'curves.json'}")
    return found


def summarized(
    config: Config, sizes: Sequence[int], points: Sequence[Any], smallest: float
) -> dict[str, Any]:
    """What the points of one network, sorted by size and seed, come to."""
    errors, training = (
        np.reshape([point[which] for point in points], (len(sizes), config.repeats))
        for which in ("test_error", "training_error")
    )
    laws = resampled(sizes, errors, config.resamples, smallest)
    return {
        "errors": errors.tolist(),
        "training_errors": training.tolist(),
        "law": {k: float(x) for k, x in power_law(sizes, errors.mean(-1), smallest)._asdict().items()},
        "intervals": {k: np.percentile(x, [2.5, 97.5]).tolist() for k, x in laws._asdict().items()},
        "seconds": sum(point["seconds"] for point in points),
    }


def _law(one: dict[str, Any]) -> str:
    """A law in words, with its intervals."""
    law, (low, high), (least, most) = one["law"], one["intervals"]["b"], one["intervals"]["c"]
    return (f"{law['a']:.3g} n^-{law['b']:.2f} + {law['c']:.2f} % "
            f"(95 %: exponent {low:.2f} to {high:.2f}, rest {least:.2f} to {most:.2f} %)")  # fmt: skip


def report(sizes: Sequence[int], found: dict[str, Any]) -> str:
    """The table of errors, and the laws."""

    def cell(errors: Sequence[float]) -> str:
        spread = f" ± {np.std(errors, ddof=1):.2f}" if len(errors) > 1 else ""
        return f"{np.mean(errors):.2f}{spread}"

    header = ["images", *(f"{network}{of}" for network in found for of in (" test %", " training %"))]
    rows = [
        [f"{size:,}"]
        + [cell(each[which][i]) for each in found.values() for which in ("errors", "training_errors")]
        for i, size in enumerate(sizes)
    ]
    laws = [f"{network}: test error = {_law(each)}" for network, each in found.items()]
    return "\n".join([study.table(header, rows), "", *laws])


def plot(sizes: Sequence[int], found: dict[str, Any], title: str = "") -> Any:
    """Errors and laws on logarithmic axes, a `matplotlib.figure.Figure`.

    Raises:
        ImportError: naming the extra to install, if matplotlib is missing.
    """
    figure = study.figure(6.4, 4.2)
    axes = figure.subplots()
    n = np.geomspace(sizes[0], sizes[-1], 200)
    for network, each in found.items():
        errors, law = np.asarray(each["errors"]), PowerLaw(**each["law"])
        spread = errors.std(-1, ddof=1) if errors.shape[-1] > 1 else 0
        color = COLORS[network]
        axes.errorbar(sizes, errors.mean(-1), spread, fmt="o", ms=4, color=color, capsize=2)
        label = f"{network}: {law.a:.3g} n$^{{-{law.b:.2f}}}$ + {law.c:.2f} %"
        axes.plot(n, law(n), color=color, lw=1.4, label=label)
    axes.set(xscale="log", yscale="log", xlabel="training images", ylabel="test error, %", title=title)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _offer(folder: Path, config: Config, sizes: Sequence[int], found: dict[str, Any]) -> None:
    laws = " ".join(f"{network}: {_law(each)}." for network, each in found.items())
    study.offer(
        folder,
        "learning_curve",
        config,
        name=f"learning_curve_{config.dataset}",
        title=f"Test error against training images on {config.dataset}, MLP and LeNet-5",
        group="Images",
        metric="test error",
        goal="min",
        unit="%",
        subject=None,
        rows=tuple(
            ledger.Row(f"{network}, {size:,} images", tuple(errors))
            for network, each in found.items()
            for size, errors in zip(sizes, each["errors"], strict=True)
        ),
        note=f"A sample is a seed: images, weights and order. {laws}",
    )


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
