"""Questions put to a trained model of codes: what lies between two codes, what a unit does, how good it is.

Everything takes pure functions: ``encode``, from data to codes, and ``decode``, back; and for likelihoods
those of `jdl.tasks.LatentModel`.

Axes: B batch, Z code, R rows and S steps of a grid, K samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Posterior = Callable[[Any], tuple[Array, Array]]
"""``inputs -> means [B, Z], logarithms of standard deviations [B, Z]``."""


def interpolate(
    a_BZ: Array, b_BZ: Array, steps: int = 8, how: Literal["linear", "spherical"] = "linear"
) -> Array:
    """Codes on the way from a to b, both ends included.

    "linear" is (1 - t) a + t b. "spherical" turns from one direction to the other at a constant rate, with
    the lengths of the ends mixed in the same way: between two codes of a normal distribution in many
    dimensions the straight way passes through lengths that hardly any code has.

    Args:
        a_BZ: codes.
        b_BZ: as many others.
        steps: S, at least 2.
        how: "linear" or "spherical".

    Returns:
        [B, S, Z].

    Raises:
        ValueError: for an unknown way, fewer than 2 steps, or codes that are not [B, Z] both.

    Example:
        >>> interpolate(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 3, "spherical")[0, 1].tolist()
        [0.707..., 0.707...]

    Reference:
        Shoemake, "Animating rotation with quaternion curves", 1985; White, "Sampling generative networks",
        2016, section 2.1.
    """
    if how not in ("linear", "spherical") or steps < 2:
        raise ValueError(f'interpolate goes "linear" or "spherical" in 2 steps or more; got {how!r}, {steps}')
    if a_BZ.ndim != 2 or a_BZ.shape != b_BZ.shape:
        raise ValueError(f"interpolate takes two arrays of codes [B, Z]; got {a_BZ.shape} and {b_BZ.shape}")
    a, b = a_BZ[:, None], b_BZ[:, None]
    t = jnp.linspace(0.0, 1.0, steps).reshape(1, steps, 1)
    if how == "linear":
        return (1 - t) * a + t * b
    lengths = [jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b)]
    u, v = a / lengths[0], b / lengths[1]
    angle = jnp.arccos(jnp.clip((u * v).sum(-1, keepdims=True), -1, 1))
    sine = jnp.sin(angle)
    is_straight = sine < 1e-4  # the same direction, or the opposite one, to which no way is shortest
    sine = jnp.where(is_straight, 1, sine)
    along = jnp.where(
        is_straight, (1 - t) * u + t * v, (jnp.sin((1 - t) * angle) * u + jnp.sin(t * angle) * v) / sine
    )
    return along * ((1 - t) * lengths[0] + t * lengths[1])


def traverse(z_Z: Array, units: Sequence[int], values: Array) -> Array:
    """Copies of a code in which one unit at a time takes each of some values.

    Args:
        z_Z: a code.
        units: R of its units.
        values: [S].

    Returns:
        [R, S, Z].

    Raises:
        ValueError: for a unit that is none.

    Example:
        >>> traverse(jnp.zeros(3), [2], jnp.array([-1.0, 1.0])).tolist()
        [[[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]]]
    """
    (Z,) = z_Z.shape
    if wrong := [unit for unit in units if not 0 <= unit < Z]:
        raise ValueError(f"a code of {Z} has the units 0 to {Z - 1}; got {wrong[0]}")
    is_moved = jnp.asarray(units)[:, None, None] == jnp.arange(Z).reshape(1, 1, Z)
    return jnp.where(is_moved, jnp.asarray(values)[None, :, None], z_Z[None, None])


def plane(steps: int = 12, *, edge: float = 0.05) -> Array:
    """Codes of two units on a grid with equal probability in each cell of a standard normal prior.

    Args:
        steps: S, codes along each side.
        edge: share of the probability beyond the first and beyond the last code of a side.

    Returns:
        [S, S, 2]: along a row the second unit grows, from row to row the first.

    Raises:
        ValueError: for fewer than 2 steps, or an edge that is not between 0 and 1/2.

    Example:
        >>> plane(3)[1, 1].tolist()
        [0.0, 0.0]

    Reference:
        Kingma and Welling, "Auto-encoding variational Bayes", 2014, appendix A, figure 4.
    """
    if steps < 2 or not 0 < edge < 0.5:
        raise ValueError(f"a plane has 2 steps or more and an edge between 0 and 1/2; got {steps} and {edge}")
    along = jax.scipy.stats.norm.ppf(jnp.linspace(edge, 1 - edge, steps))
    return jnp.stack(jnp.meshgrid(along, along, indexing="ij"), -1)


def decoded(decode: Callable[[Array], Array], codes: Array) -> Array:
    """A grid of codes as a grid of data, [..., Z] to [..., *shape], in one call of ``decode``.

    Example:
        >>> decoded(lambda z: 2 * z, jnp.ones((3, 4, 2))).shape
        (3, 4, 2)
    """
    images = decode(codes.reshape(-1, codes.shape[-1]))
    return images.reshape(*codes.shape[:-1], *images.shape[1:])


def beside(*images: Any) -> np.ndarray:
    """Originals and what was made of them, in turn, for a grid with ``columns=len(images)``.

    Example:
        >>> beside(np.zeros((2, 4, 4, 1)), np.ones((2, 4, 4, 1))).shape
        (4, 4, 4, 1)
    """
    stacked = np.stack([np.asarray(x) for x in images], 1)
    return stacked.reshape(-1, *stacked.shape[2:])


def tile(images: Any, columns: int = 8, gap: int = 1, fill: float = 1.0) -> np.ndarray:
    """Images [N, h, w, C] as one, row by row, with ``gap`` pixels of ``fill`` between.

    Example:
        >>> tile(np.zeros((5, 4, 4, 1)), columns=3).shape
        (9, 14, 1)

    Raises:
        ValueError: if there are no images, or something else.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"tile takes images [N, height, width, channels]; got shape {images.shape}")
    if columns < 1 or gap < 0:
        raise ValueError(f"tile needs 1 column or more and no negative gap; got {columns} and {gap}")
    N, h, w, C = images.shape
    columns = min(columns, N)
    rows = -(-N // columns)
    sheet = np.full((rows * (h + gap), columns * (w + gap), C), fill, np.float32)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet[: sheet.shape[0] - gap or None, : sheet.shape[1] - gap or None]


class LogLikelihood(NamedTuple):
    """Estimates of log p(x), and how far they may be off.

    Attributes:
        estimate: [B], nats. On average below log p(x), the less the more samples there are.
        standard_error: [B], of the estimate by the chance of its samples, to first order; it does not
            measure the bias.
        effective_samples: [B], (sum w)^2 / sum w^2: how many samples of equal weight would do as much. Where
            there are few, the estimate is too low by more than its error says.
    """

    estimate: Array
    standard_error: Array
    effective_samples: Array

    def mean(self) -> tuple[Array, Array]:
        """The mean over the examples, and its standard error by the chance of the samples alone."""
        return self.estimate.mean(), jnp.sqrt(jnp.square(self.standard_error).sum()) / self.estimate.size


def log_likelihood(
    posterior: Posterior,
    log_joint: Callable[[Array, Any], Array],
    inputs: Any,
    key: Array,
    samples: int = 1000,
    *,
    chunk: int | None = None,
) -> LogLikelihood:
    """log p(x) by importance sampling: log 1/K sum_k p(x, z_k) / q(z_k | x), with z_k from the posterior q.

    Args:
        posterior: q, a diagonal Gaussian: `jdl.tasks.LatentModel.posterior`.
        log_joint: ``z [B, Z], inputs -> log p(x, z) [B]``: `jdl.tasks.LatentModel.log_joint`.
        inputs: what both take.
        key: PRNG key.
        samples: K.
        chunk: samples in memory at a time; it divides K, and does not change the result. When None, the
            largest divisor up to 50.

    Returns:
        Estimate, standard error and effective samples of each example. With the weights w_k the error of log
        mean(w) is deviation(w) / (sqrt(K) mean(w)); where a few weights hold most of the sum it is too small
        itself.

    Raises:
        ValueError: if ``chunk`` does not divide ``samples``, or there are fewer than two.

    Example:
        >>> normal = lambda x: (-0.5 * x**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
        >>> x = jnp.zeros((1, 1))  # z ~ N(0, 1), x = z + N(0, 1): p(x) = N(0, 2), q(z | x) = N(x/2, 1/2)
        >>> found = log_likelihood(lambda x: (x / 2, jnp.full_like(x, math.log(2) / -2)),
        ...                        lambda z, x: normal(z) + normal(x - z), x, jax.random.key(0), 100)
        >>> round(float(found.estimate[0]), 4), round(-0.5 * math.log(4 * math.pi), 4)
        (-1.2655, -1.2655)

    Reference:
        Rezende, Mohamed and Wierstra, "Stochastic backpropagation and approximate inference in deep
        generative models", 2014, appendix E; Burda, Grosse and Salakhutdinov, 2016, section 5.
    """
    if samples >= 2 and chunk is None:
        chunk = max(n for n in range(1, min(samples, 50) + 1) if samples % n == 0)
    if samples < 2 or not chunk or chunk < 1 or samples % chunk:
        raise ValueError(f"samples must be at least 2 and a multiple of chunk; got {samples} and {chunk}")
    mean, log_std = posterior(inputs)

    def one(key: Array) -> Array:
        noise = jax.random.normal(key, mean.shape)
        z = mean + jnp.exp(log_std) * noise
        log_q = (-0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
        return log_joint(z, inputs) - log_q

    def more(so_far: tuple[Array, Array], keys: Array) -> tuple[tuple[Array, Array], None]:
        log_w = jax.vmap(one)(keys)
        sums = [jax.nn.logsumexp(power * log_w, 0) for power in (1, 2)]
        return (jnp.logaddexp(so_far[0], sums[0]), jnp.logaddexp(so_far[1], sums[1])), None

    # The noise of sample k does not depend on the chunk that it is in.
    keys = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(samples)).reshape(-1, chunk)
    nothing = jnp.full(mean.shape[:1], -jnp.inf)
    (log_sum, log_squares), _ = jax.lax.scan(more, (nothing, nothing), keys)
    # Var(w) / mean(w)^2 = K sum w^2 / (sum w)^2 - 1.
    relative = jnp.maximum(samples * jnp.exp(log_squares - 2 * log_sum) - 1, 0) / (samples - 1)
    effective = jnp.exp(2 * log_sum - log_squares)
    return LogLikelihood(log_sum - math.log(samples), jnp.sqrt(relative), effective)


class Units(NamedTuple):
    """What the units of a code carry, over some data.

    Attributes:
        activity: [Z], the variance over the data of a unit's posterior mean.
        kl: [Z], the mean divergence of a unit's posterior from the standard normal prior, nats.
        active: [Z], whether the activity is above the threshold.
    """

    activity: np.ndarray
    kl: np.ndarray
    active: np.ndarray

    @property
    def collapsed(self) -> list[int]:
        """Units whose posterior is the same for all data."""
        return np.flatnonzero(~self.active).tolist()


def units(mean_NZ: Any, log_std_NZ: Any, *, threshold: float = 0.01) -> Units:
    """Which units of a code are active: Var_x(E_q[z]) above the threshold.

    Args:
        mean_NZ: posterior means of N examples.
        log_std_NZ: logarithms of their standard deviations.
        threshold: of the variance.

    Returns:
        `Units`.

    Raises:
        ValueError: if a mean or a deviation is not finite.

    Example:
        >>> found = units(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.zeros((2, 2)))
        >>> found.active.tolist(), found.collapsed
        ([True, False], [1])

    Reference:
        Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, section 5.2.
    """
    mean, log_std = np.asarray(mean_NZ, np.float64), np.asarray(log_std_NZ, np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(log_std).all()):
        raise ValueError("the posterior is not finite: nothing can be said of its units")
    activity = mean.var(0)
    kl = (0.5 * (mean**2 + np.expm1(2 * log_std)) - log_std).mean(0)
    return Units(activity, kl, activity > threshold)


class PosteriorCollapse(UserWarning):
    """Units of a code carry nothing."""


def watch_collapse(
    posterior: Callable[[Any, Any], tuple[Array, Array]],
    *,
    limit: float = 0.5,
    threshold: float = 0.01,
    batches: int = 4,
) -> Callable[[Any, Any], dict[str, float]]:
    """An evaluator for `jdl.train.fit` that counts active units, and warns of a collapsed posterior by name.

    Args:
        posterior: ``variables, inputs -> means, logarithms of standard deviations``.
        limit: warn where more than this share of the units is inactive.
        threshold: as in `units`.
        batches: how many batches of a set to look at.

    Returns:
        ``predict, batches -> {"active_units": number}``. Before training nothing is expected of a code, so
        that the first call never warns; of a posterior that is not finite every call does.

    Example:
        >>> from jdl import data
        >>> watch = watch_collapse(lambda variables, x: (0 * x, 0 * x))
        >>> predict = jax.tree_util.Partial(lambda variables, x: x, {})
        >>> watch(predict, data.in_order({"inputs": np.ones((4, 3), np.float32)}, 4))
        {'active_units': 0}
    """
    look = jax.jit(posterior)
    calls = 0

    def evaluate(predict: Any, sets: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        (variables,) = predict.args
        found = []
        for i in range(min(batches, len(sets))):
            batch = sets(i)
            counts = np.asarray(batch["weights"]) > 0 if "weights" in batch else slice(None)
            found.append([np.asarray(x)[counts] for x in look(variables, batch["inputs"])])
        mean, log_std = (np.concatenate(part) for part in zip(*found, strict=True))
        if not (np.isfinite(mean).all() and np.isfinite(log_std).all()):
            warnings.warn("the posterior is not finite", PosteriorCollapse, stacklevel=2)
            return {"active_units": 0}
        report = units(mean, log_std)
        Z, dead = len(report.active), report.collapsed
        if calls > 1 and len(dead) > limit * Z:
            listed = ", ".join(map(str, dead[:20])) + (", ..." if len(dead) > 20 else "")
            warnings.warn(
                f"the posterior has collapsed onto the prior in {len(dead)} of {Z} units of the code: "
                f"{listed}. A schedule of beta that begins at 0, or free bits, keeps them in use",
                PosteriorCollapse,
                stacklevel=2,
            )
        return {"active_units": Z - len(dead)}

    return evaluate
