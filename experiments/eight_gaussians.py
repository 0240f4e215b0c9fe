"""Eight Gaussians on a circle: which losses reach all modes, and which collapse.

    python -m experiments.eight_gaussians

The same two small networks (three hidden layers of 64) learn eight normal distributions of deviation 0.1 on
a circle of radius 2, by each loss, over several seeds. What is counted: modes with at least a quarter of
their share of 2,000 samples within 3 deviations, and the share of samples that lie so near to a mode.

As the first GAN was (minimax, no penalty) modes are lost, and to the non-saturating loss alone too. With a
penalty on the discriminator's slope every loss reaches all of them, the minimax one included: the penalty
decides, not the loss.

The mixture is that of Metz, Poole, Pfau and Sohl-Dickstein, "Unrolled generative adversarial networks", 2017,
and Srivastava et al., "VEEGAN", 2017.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, ledger, study
from jdl import audit, learners, models, tasks, train
from jdl.core import Learner

PUBLISHED = "none: papers show pictures of these eight modes, and settings differ"

DEVIATION, RADIUS, K = 0.1, 2.0, 8
CENTRES = RADIUS * np.stack([[np.cos(a), np.sin(a)] for a in 2 * np.pi * np.arange(K) / K])

GAMES: dict[str, dict[str, Any]] = {
    "minimax": {"loss": "minimax"},
    "minimax_r1": {"loss": "minimax", "r1": 0.1},
    "non_saturating": {"loss": "non_saturating"},
    "non_saturating_r1": {"loss": "non_saturating", "r1": 0.1},
    "least_squares_r1": {"loss": "least_squares", "r1": 0.5},
    "wasserstein_gp": {"loss": "wasserstein", "gradient_penalty": 0.1, "discriminator_steps": 5},
    "hinge_r1": {"loss": "hinge", "r1": 0.1},
}
"""The games by name: options of `jdl.tasks.gan`, and updates of the discriminator."""


@dataclass(frozen=True)
class Config:
    """Settings of the study."""

    games: tuple[str, ...] = tuple(GAMES)
    """Which of them, in order."""
    steps: int = 3000
    """Updates of the generator."""
    batch_size: int = 128
    """Points in an update of either player."""
    learning_rate: float = 1e-3
    """Of both players, by Adam with a momentum of 0.5; falls along a cosine."""
    width: int = 64
    """Units of each of the three hidden layers."""
    latents: int = 16
    """Latent variables."""
    averaging: float = 0.99
    """Decay of the moving average of the generator that is evaluated."""
    samples: int = 2000
    """Samples that are counted."""
    repeats: int = 5
    """Seeds."""
    seed: int = 0
    """The first of them."""
    execution: cli.Execution = field(default_factory=cli.Execution)
    """How the study is run."""


def learner(config: Config, name: str) -> tuple[Learner, int]:
    """The learner of a game, and its discriminator's updates for one of the generator.

    Raises:
        ValueError: for a game that is not there.
    """
    if name not in GAMES:
        raise ValueError(f"there is no game {name}; there are {', '.join(GAMES)}")
    options = dict(GAMES[name])
    judges = options.pop("discriminator_steps", 1)
    hidden = (config.width,) * 3
    generator = models.MLP((*hidden, 2))
    critic = models.MLP((*hidden, 1), activation=lambda x: jax.nn.leaky_relu(x, 0.2))
    players = tasks.gan(generator, critic, config.latents, **options)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    tx = (optax.adam(rate, 0.5, 0.9), optax.adam(optax.cosine_decay_schedule(
        config.learning_rate, config.steps * judges), 0.5, 0.9))  # fmt: skip
    both = learners.gan(players, *tx, discriminator_steps=judges)
    return learners.averaged(both, config.averaging), judges


def points(size: int, seed: Any, step: Any) -> dict[str, jax.Array]:
    """A batch of points of the mixture: a function of the seed and the step."""
    mode_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    modes = jax.random.randint(mode_key, (size,), 0, K)
    noise = DEVIATION * jax.random.normal(noise_key, (size, 2))
    return {"inputs": jnp.asarray(CENTRES, jnp.float32)[modes] + noise}


def measure(config: Config, name: str, seed: int, picture: Path) -> dict[str, Any]:
    """Trains one game from one seed, and counts the modes of its samples."""
    made, judges = learner(config, name)
    fitted = train.fit(
        made,
        jax.tree_util.Partial(functools.partial(points, config.batch_size * judges), seed),
        config.steps,
        key=seed,
        mesh=config.execution.mesh or "data:1",
        mode=config.execution.mode,
    )
    z = jax.random.normal(jax.random.key(1000 + seed), (config.samples, config.latents))
    samples = np.asarray(jax.jit(fitted.predict)(z))
    modes = audit.nearest_mode(samples, CENTRES, 3 * DEVIATION)
    found = audit.count_modes(modes, K, at_least=max(1, config.samples // (4 * K)))
    _draw(samples, picture, f"{name}, seed {seed}: {found.covered} of {K} modes")
    last = fitted.history.last("train")
    return {
        "modes": found.covered,
        "near": found.assigned,
        "counts": found.counts,
        "real_above_fake": last["real_above_fake"],
    }


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Trains every game from every seed.

    Returns:
        By game, ``modes`` covered and the share of samples ``near`` to a mode, one a seed; also in
        ``modes.json`` of the study's folder.
    """
    for name in config.games:
        learner(config, name)
    folder = study.begin("eight_gaussians", config)
    found: dict[str, dict[str, list[float]]] = {}
    for name in config.games:
        each = []
        for seed in study.seeds(config):
            path = folder / f"{name}-{seed}.json"
            take = functools.partial(measure, config, name, seed, path.with_suffix(".png"))
            each.append(study.once(path, take))
            if not config.execution.quiet:
                print(f"{name}, seed {seed}: {each[-1]['modes']} of {K} modes, "
                      f"{100 * each[-1]['near']:.0f} % of the samples near one", flush=True)  # fmt: skip
        found[name] = {what: [one[what] for one in each] for what in ("modes", "near")}
    (folder / "modes.json").unlink(missing_ok=True)
    study.once(folder / "modes.json", lambda: found)
    study.offer(
        folder, "eight_gaussians", config,
        name="eight_gaussians", title="Modes of eight Gaussians that a GAN's samples reach", group="GANs",
        metric="modes covered", goal="max", unit="of 8",
        rows=tuple(
            ledger.Row(
                name.replace("_", " "), tuple(each["modes"]),
                {"samples near a mode, %": round(100 * float(np.mean(each["near"])), 1)},
            )
            for name, each in found.items()
        ),
        subject=None, note="A sample is a seed.",
    )  # fmt: skip
    if not config.execution.quiet:
        print(f"\n{report(found)}\n\npictures and figures: {folder}")
    return found


def report(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """The table."""
    rows = [
        [
            name,
            f"{np.mean(each['modes']):.1f}",
            " ".join(map(str, each["modes"])),
            f"{100 * np.mean(each['near']):.0f} %",
        ]
        for name, each in found.items()
    ]
    return study.table(["game", "modes of 8", "by seed", "samples near a mode"], rows)


def _draw(samples: np.ndarray, path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3), layout="constrained")
    axes = figure.subplots()
    axes.scatter(samples[:, 0], samples[:, 1], s=2, alpha=0.3)
    axes.scatter(CENTRES[:, 0], CENTRES[:, 1], s=60, facecolors="none", edgecolors="tab:red")
    axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    axes.set_title(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    cli.command(main, Config, __doc__)
