"""Generative adversarial networks: the tasks of two players, each of whom has the other as a collection.

A player's variables hold the other's under `OPPONENT`: its loss reads them and never changes them. So each
is a plain `Task`, and `jdl.learners.gan` lets two of them learn from each other.

Axes: B batch, Z latent variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdl.core import (
    AXIS,
    Array,
    Batch,
    Mean,
    Metrics,
    Task,
    Variables,
    all_gather,
    axis_is_bound,
    example_weights,
    psum,
    weighted,
)
from jdl.tasks.module import _require_classes, functions

OPPONENT = "opponent"
"""Collection of a player that holds the variables of the other."""


class Players(NamedTuple):
    """Two tasks against each other; what `generator` predicts is what is wanted."""

    generator: Task
    discriminator: Task


class AdversarialLoss(NamedTuple):
    """What the players lower, as functions of one logit each.

    Attributes:
        real: the discriminator's loss of a real example.
        fake: the discriminator's loss of a generated one.
        generator: the generator's loss of the same.
    """

    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    generator: Callable[[Array], Array]


ADVERSARIAL_LOSSES = {
    "minimax": AdversarialLoss(
        lambda x: jax.nn.softplus(-x), jax.nn.softplus, lambda x: -jax.nn.softplus(x)
    ),
    "non_saturating": AdversarialLoss(
        lambda x: jax.nn.softplus(-x), jax.nn.softplus, lambda x: jax.nn.softplus(-x)
    ),
    "least_squares": AdversarialLoss(
        lambda x: jnp.square(x - 1) / 2, lambda x: jnp.square(x) / 2, lambda x: jnp.square(x - 1) / 2
    ),
    "wasserstein": AdversarialLoss(lambda x: -x, lambda x: x, lambda x: -x),
    "hinge": AdversarialLoss(
        lambda x: jax.nn.relu(1 - x), lambda x: jax.nn.relu(1 + x), lambda x: -x
    ),
}  # fmt: skip


def gan(
    generator: Any,
    discriminator: Any,
    latents: int | Callable[[Array, Batch], Array],
    *,
    loss: str | AdversarialLoss = "non_saturating",
    gradient_penalty: float = 0.0,
    r1: float = 0.0,
    conditional: bool = False,
    preprocess: Callable[[Any], Array] | None = None,
    augment: Callable[[Array, Batch], Batch] | None = None,
) -> Players:
    """The tasks of a generator G and a discriminator D, with z a latent vector for each real example x.

    D's total is sum_i w_i (real(D(x_i)) + fake(D(G(z_i)))) and penalties, G's sum_i w_i generator(D(G(z_i))):

    =================  ========================  ====================  =======================
    loss               real(d)                   fake(d)               generator(d)
    =================  ========================  ====================  =======================
    "minimax"          -log sigmoid(d)           -log sigmoid(-d)      log sigmoid(-d)
    "non_saturating"   -log sigmoid(d)           -log sigmoid(-d)      -log sigmoid(d)
    "least_squares"    (d - 1)^2 / 2             d^2 / 2               (d - 1)^2 / 2
    "wasserstein"      -d                        d                     -d
    "hinge"            max(0, 1 - d)             max(0, 1 + d)         -d
    =================  ========================  ====================  =======================

    Penalties of an example, with e_i uniform on 0..1:

        gradient_penalty (|grad D(e_i x_i + (1 - e_i) G(z_i))| - 1)^2 + r1 / 2 |grad D(x_i)|^2

    Each player sees the other's current variables; running statistics, singular vectors and the like of the
    other are used as in training, and are not changed.

    Args:
        generator: a module from latents, or {"latents", "labels"}, to examples.
        discriminator: a module from examples, or {"images", "labels"}, to logits [B] or [B, 1].
        latents: number of latent variables, standard normal; or ``key, batch -> latents`` [B, ...].
        loss: one of the above, or an `AdversarialLoss`.
        gradient_penalty: 10 as published; 0 for none.
        r1: gamma above, such as 10; 0 for none.
        conditional: give both players the ``labels`` of the batch.
        preprocess: function of ``inputs`` that makes them what the generator makes: images in -1..1, say.
        augment: differentiable transform ``key, batch -> batch`` of real and generated examples alike, as the
            discriminator sees them in both players' losses (`jdl.data.differentiable`).

    Returns:
        The generator's and the discriminator's tasks. The generator's predicts examples from latents (and
        labels), and its metrics on data need no discriminator: "distance", the energy distance
        2 E|x - g| - E|x - x'| - E|g - g'| between data and samples in the space of ``inputs``, unbiased and
        zero for equal distributions only; and "spread", E|g - g'| / E|x - x'|, near 0 when all samples are
        alike. In training the discriminator measures "real_logit", "fake_logit" and "real_above_fake", the
        share of pairs that it orders rightly: 0.5 when it knows nothing, 1 when it has nothing to learn.

    Raises:
        ValueError: for an unknown loss, a negative weight, fewer than one latent variable, shapes that do not
            fit, or a gradient penalty with a discriminator that normalises over the batch, where an example's
            gradient is not its own; and, from the tasks' ``check``, for a batch without the labels asked for,
            with labels that a player has no class for, or with whole numbers that nothing makes what the
            generator makes.

    Example:
        >>> from jdl.models import MLP
        >>> players = gan(MLP((16, 2)), MLP((16, 1)), latents=3, loss="hinge")
        >>> batch = {"inputs": jnp.ones((4, 2))}
        >>> variables = players.generator.init(jax.random.key(0), batch)
        >>> players.generator.predict(variables, jnp.zeros((5, 3))).shape
        (5, 2)
        >>> sorted(players.generator.evaluate(variables, batch, jax.random.key(1)))
        ['distance', 'spread']

    Reference:
        Goodfellow et al., "Generative adversarial nets", 2014; Mao et al., "Least squares generative
        adversarial networks", 2017; Gulrajani et al., "Improved training of Wasserstein GANs", 2017, equation
        3; Mescheder, Geiger and Nowozin, "Which training methods for GANs do actually converge?", 2018,
        equation 9; Lim and Ye, "Geometric GAN", 2017; Szekely and Rizzo, "Energy statistics", 2013.
    """
    if not isinstance(loss, AdversarialLoss) and loss not in ADVERSARIAL_LOSSES:
        raise ValueError(f"loss must be one of {', '.join(ADVERSARIAL_LOSSES)}; got {loss!r}")
    if not callable(latents) and (latents != int(latents) or latents < 1):
        raise ValueError(f"a generator needs at least one latent variable; got {latents}")
    if not (gradient_penalty >= 0 and r1 >= 0):
        raise ValueError(f"weights of penalties must be at least 0; got {gradient_penalty} and {r1}")
    losses = ADVERSARIAL_LOSSES[loss] if isinstance(loss, str) else loss
    makes, judges = functions(generator), functions(discriminator)

    def draw(key: Array, batch: Batch) -> Array:
        if callable(latents):
            return latents(key, batch)
        size = jax.tree.leaves(batch["inputs"])[0].shape[0]
        return jax.random.normal(key, (size, latents), jnp.float32)

    def given(name: str, x: Array, batch: Batch) -> Any:
        return {name: x, "labels": batch["labels"]} if conditional else x

    def real(batch: Batch) -> Array:
        return preprocess(batch["inputs"]) if preprocess else batch["inputs"]

    def judge(variables: Variables, x: Array, batch: Batch, key: Array) -> tuple[Array, Variables]:
        """D's logits [B] of examples as it sees them, and the collections that this changed."""
        augment_key, noise_key = jax.random.split(key)
        if augment is not None:
            x = augment(augment_key, {"inputs": x})["inputs"]
        logits, changed, _ = judges.train(variables, given("images", x, batch), noise_key)
        if logits.shape not in ((x.shape[0],), (x.shape[0], 1)):
            raise ValueError(f"a discriminator gives one logit an example; got {logits.shape}")
        return logits.reshape(-1).astype(jnp.float32), changed

    def make(variables: Variables, batch: Batch, key: Array) -> tuple[Array, Variables]:
        latent_key, noise_key = jax.random.split(key)
        z = draw(latent_key, batch)
        examples, changed, _ = makes.train(variables, given("latents", z, batch), noise_key)
        wanted = jax.eval_shape(real, batch).shape
        if examples.shape != wanted:
            raise ValueError(f"the generator makes examples of shape {examples.shape}, the data are {wanted}")
        return examples, changed

    def generator_loss(variables: Variables, batch: Batch, key: Array) -> Any:
        make_key, judge_key = jax.random.split(key)
        own, other = _split(variables)
        examples, changed = make(own, batch, make_key)
        logits, _ = judge(other, examples, batch, judge_key)
        total, weight = weighted(losses.generator(logits), example_weights(batch))
        return total, (weight, changed, {})

    def discriminator_loss(variables: Variables, batch: Batch, key: Array) -> Any:
        # The generator's key is the same as in its own loss: what both compute is computed once.
        make_key, judge_key = jax.random.split(key)
        own, other = _split(variables)
        fake_key, real_key, blend_key, r1_key = jax.random.split(judge_key, 4)
        fakes = jax.lax.stop_gradient(make(other, batch, make_key)[0])
        reals = real(batch).astype(fakes.dtype)
        real_logits, changed = judge(own, reals, batch, real_key)
        own = {**own, **changed}
        fake_logits, changed = judge(own, fakes, batch, fake_key)
        own = {**own, **changed}
        each = losses.real(real_logits) + losses.fake(fake_logits)
        weights = example_weights(batch)
        metrics: Metrics = {
            "real_logit": weighted(real_logits, weights),
            "fake_logit": weighted(fake_logits, weights),
            "real_above_fake": weighted(real_logits > fake_logits, weights),
        }

        def squared_slope(x: Array, key: Array) -> Array:
            """|grad D|^2 of each example [B], its rows of the gradient of the sum over examples."""
            if "batch_stats" in own:
                raise ValueError(
                    "gradient_penalty and r1 need a discriminator that sees examples one by one; this one "
                    "has batch statistics: use spectral or layer normalisation, or none"
                )
            slope = jax.grad(lambda x: judge(own, x, batch, key)[0].sum())(x)
            return jnp.square(slope.astype(jnp.float32)).reshape(len(x), -1).sum(1)

        if gradient_penalty:
            shape = (len(reals), *[1] * (reals.ndim - 1))
            share_key, judge_key = jax.random.split(blend_key)
            share = jax.random.uniform(share_key, shape, reals.dtype)
            penalty = jnp.square(_root(squared_slope(share * reals + (1 - share) * fakes, judge_key)) - 1)
            each = each + gradient_penalty * penalty
            metrics["gradient_penalty"] = weighted(penalty, weights)
        if r1:
            penalty = squared_slope(reals, r1_key)
            each = each + r1 / 2 * penalty
            metrics["r1"] = weighted(penalty, weights)
        total, weight = weighted(each, weights)
        return total, (weight, {name: own[name] for name in changed}, metrics)

    def evaluate(variables: Variables, batch: Batch, key: Array) -> Metrics:
        samples = predict(variables, given("latents", draw(key, batch), batch))
        return energy(real(batch), samples, example_weights(batch))

    def predict(variables: Variables, inputs: Any) -> Array:
        return makes.predict(_split(variables)[0], inputs)

    def logits(variables: Variables, inputs: Any) -> Array:
        return judges.predict(_split(variables)[0], inputs)

    def measure(variables: Variables, batch: Batch, key: Array) -> Metrics:
        total, (weight, _, metrics) = discriminator_loss(variables, batch, key)
        return {"loss": Mean(total, weight), **metrics}

    def init(key: Array, batch: Batch) -> tuple[Variables, Variables]:
        generator_key, discriminator_key, latent_key = jax.random.split(key, 3)
        z = draw(latent_key, batch)
        made = makes.init(generator_key, {"inputs": given("latents", z, batch)})
        judged = judges.init(discriminator_key, {"inputs": given("images", real(batch), batch)})
        return made, judged

    def init_generator(key: Array, batch: Batch) -> Variables:
        made, judged = init(key, batch)
        return {**made, OPPONENT: judged}

    def init_discriminator(key: Array, batch: Batch) -> Variables:
        made, judged = init(key, batch)
        return {**judged, OPPONENT: made}

    def check(batch: Batch) -> None:
        if missing := [name for name in ("inputs", *["labels"] * conditional) if name not in batch]:
            kind = "conditional GAN" if conditional else "GAN"
            raise ValueError(f'a {kind} needs a batch with "{missing[0]}"; it has {sorted(batch)}')
        classes = [n for player in (generator, discriminator) if (n := getattr(player, "num_classes", 0))]
        if conditional and classes:
            _require_classes("labels", batch["labels"], min(classes))
        dtype = jax.tree.leaves(batch["inputs"])[0].dtype
        if preprocess is None and jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"the data are {dtype}, which no generator makes: give a preprocess that takes them to the "
                "range of the generator's, -1..1 for images"
            )

    return Players(
        Task(init_generator, generator_loss, evaluate, predict, "min distance", check),
        Task(init_discriminator, discriminator_loss, measure, logits, "min loss", check),
    )


def energy(x: Array, y: Array, weights: Array) -> Metrics:
    """Energy distance and relative spread of two samples, as `gan` defines them.

    Args:
        x: data [B, ...].
        y: samples [B, ...].
        weights: of the rows of both [B].

    Returns:
        "distance" and "spread", over the batches of all devices: the mean over batches of unbiased estimates,
        each weighing as much as its data.
    """
    x, y = (a.reshape(a.shape[0], -1).astype(jnp.float32) for a in (x, y))
    everyone: tuple[Array, ...] = all_gather((x, y, weights))
    size = x.shape[0]
    first = jax.lax.axis_index(AXIS) * size if axis_is_bound() else 0
    themselves = (first + jnp.arange(size))[:, None] == jnp.arange(everyone[2].shape[0])[None]
    pairs = weights[:, None] * everyone[2][None]

    def mean(rows: Array, columns: Array, counted: Array) -> Array:
        total, weight = psum(((_distances(rows, columns) * counted).sum(), counted.sum()))
        return total / jnp.where(weight > 0, weight, 1)

    others = jnp.where(themselves, 0, pairs)
    between, within_x, within_y = (
        mean(x, everyone[1], pairs), mean(x, everyone[0], others), mean(y, everyone[1], others)
    )  # fmt: skip
    weight = weights.sum()
    return {
        "distance": Mean(weight * (2 * between - within_x - within_y), weight),
        "spread": Mean(weight * within_y, weight * within_x),
    }


def _distances(x: Array, y: Array) -> Array:
    """|x_i - y_j| for every pair of rows."""
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.square(x).sum(1)[:, None] + jnp.square(y).sum(1)[None] - 2 * product
    return jnp.sqrt(jnp.maximum(squares, 0))


def _root(squares: Array) -> Array:
    """Square roots whose slope at zero is zero, where it would be infinite."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def _split(variables: Variables) -> tuple[Variables, Variables]:
    """A player's own variables, and the other's."""
    own = {name: tree for name, tree in variables.items() if name != OPPONENT}
    return own, variables.get(OPPONENT, {})
