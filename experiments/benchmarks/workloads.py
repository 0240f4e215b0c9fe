"""What competes: the same model, optimiser, weights and batches in jdl, in plain Flax and in PyTorch.

``python -m experiments.benchmarks.workloads WORKLOAD CONTENDER FOLDER`` is a contender's process; the folder
holds the weights and the data. Only what a contender is made of is imported in its process.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.harness import Contender, serve

LEARNING_RATE = 1e-3
FIRST_STEPS = 3
"""Steps whose losses show that contenders compute the same."""
BATCHES = 8
"""Batches in the data; the peers go round them, jdl shuffles their examples."""


class Workload(NamedTuple):
    """A model, as the shapes of its kernels, and its batches. Convolutions are followed by 2x2 max-pooling.

    Attributes:
        title: what a step is, in words.
        batch_size: examples in a batch.
        image: shape of an input.
        kernels: [kh, kw, C, F] of a convolution, [D, F] of a fully connected layer.
        peers: what it is measured beside.
    """

    title: str
    batch_size: int
    image: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    peers: tuple[str, ...] = ("linen", "torch")


WORKLOADS = {
    "mlp": Workload(
        "One training step of an MLP 784-512-512-10, batch 128, Adam, float32",
        128,
        (28, 28, 1),
        ((784, 512), (512, 512), (512, 10)),
    ),
    "lenet": Workload(
        "One training step of LeNet-5, batch 128, Adam, float32",
        128,
        (32, 32, 1),
        ((5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10)),
    ),
    "overhead": Workload(
        "One training step of an MLP 64-32-10, batch 8, Adam: the loop of fit and its compiled step alone",
        8,
        (8, 8, 1),
        ((64, 32), (32, 10)),
        (),
    ),
}


class Given(NamedTuple):
    """What every contender of a workload is given.

    Attributes:
        workload: the workload.
        layers: kernel and bias of each layer.
        arrays: inputs [N, H, W, C] and labels [N].
        rows: [BATCHES, B], the examples of the first batches.
    """

    workload: Workload
    layers: list[tuple[np.ndarray, np.ndarray]]
    arrays: dict[str, np.ndarray]
    rows: np.ndarray

    @property
    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inputs and labels of the first batches."""
        return [(self.arrays["inputs"][rows], self.arrays["labels"][rows]) for rows in self.rows]


def write(workload: Workload, folder: Path, seed: int = 0) -> None:
    """Draws weights and data, and writes them for the contenders."""
    from jdl import data

    rng = np.random.default_rng(seed)
    size = BATCHES * workload.batch_size
    order = data.shuffled({"rows": np.arange(size)}, workload.batch_size, resident=False)
    kernels = [rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) for shape in workload.kernels]
    np.savez(
        folder / "given.npz",
        inputs=rng.normal(size=(size, *workload.image)).astype(np.float32),
        labels=rng.integers(0, workload.kernels[-1][-1], size).astype(np.int32),
        rows=np.stack([order(i)["rows"] for i in range(BATCHES)]),
        **{f"kernel{i}": kernel.astype(np.float32) for i, kernel in enumerate(kernels)},
    )


def read(workload: Workload, folder: Path) -> Given:
    """What `write` wrote."""
    with np.load(folder / "given.npz") as file:
        kernels = [file[f"kernel{i}"] for i in range(len(workload.kernels))]
        layers = [(kernel, np.zeros(kernel.shape[-1], np.float32)) for kernel in kernels]
        return Given(workload, layers, {name: file[name] for name in ("inputs", "labels")}, file["rows"])


def _flax_params(given: Given, params: Any) -> Any:
    """The given weights under a Flax model's names for them, which sort by kind and number."""
    return {
        name: {"kernel": kernel, "bias": bias}
        for name, (kernel, bias) in zip(sorted(params), given.layers, strict=True)
    }


def _count(given: Given) -> int:
    return sum(array.size for layer in given.layers for array in layer)


class _Jdl(NamedTuple):
    """A learner of a workload and its batches, through jdl's public names."""

    learner: Any
    batches: Any


def _jdl(given: Given) -> _Jdl:
    from jdl import train

    train.prepare()
    import optax

    from jdl import data, learners, models, tasks

    widths = tuple(shape[-1] for shape in given.workload.kernels)
    is_lenet = len(given.workload.kernels[0]) == 4
    model = models.LeNet5(widths[-1]) if is_lenet else models.MLP(widths)
    learner = learners.gradient(tasks.classification(model), optax.adam(LEARNING_RATE))
    return _Jdl(learner, data.shuffled(given.arrays, given.workload.batch_size, resident=True))


def jdl_steps(given: Given, several: bool | None = None, *, bare: bool = False) -> Contender:
    """The compiled step of `jdl.train.fit`, called as `fit` calls it.

    Args:
        given: weights and data.
        several: whether a dispatch holds several steps; None as `fit` chooses, False or True.
        bare: only send the steps, and do not look at what they came to.
    """
    learner, batches = _jdl(given)
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from jdl.core import summarize
    from jdl.train import make_mesh
    from jdl.train.feed import place
    from jdl.train.loop import DISPATCH_SECONDS
    from jdl.train.program import build

    mesh = make_mesh("data:1")
    batches = jax.device_put(batches, NamedSharding(mesh, PartitionSpec()))
    first = place(jax.device_get(jax.jit(lambda batches: batches(0))(batches)), mesh)
    program = build(learner, jax.random.key(0), batches, first, {}, mesh, "jit", several)
    state = program.init()
    params = jax.device_put(_flax_params(given, state.params), NamedSharding(mesh, PartitionSpec()))
    state = state._replace(params=params)
    losses = []
    for i in range(FIRST_STEPS):
        state, sums, _ = program.advance(state, program.zeros, batches, i, i + 1)
        losses.append(summarize(sums)["loss"])
    position, seconds_a_step = FIRST_STEPS, 1.0

    def run(steps: int) -> float:
        nonlocal state, position, seconds_a_step
        at_once = 1
        if program.steps_at_once:
            at_once = max(1, int(DISPATCH_SECONDS / seconds_a_step))
            if bare:  # fit comes up for a record every hundredth of its steps
                at_once = max(1, min(at_once, steps // 100))
        sums, before = program.zeros, None
        start, stop = time.perf_counter(), position + steps
        while position < stop:
            end = min(position + at_once, stop)
            state, sums, found = program.advance(state, sums, batches, position, end)
            if before is not None and not bare:
                int(before.step)
            before, position = found, end
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        seconds_a_step = seconds / steps
        return seconds

    how = "several steps a dispatch" if program.steps_at_once else "one step a dispatch"
    label = "jdl" if several is None else f"jdl, {how}"
    if os.environ.get(_plain()):
        label = "jdl without prepare()"
    if bare:
        label = f"its compiled step alone, {how}"
    return Contender(label, sum(x.size for x in jax.tree.leaves(state.params)), losses, run)


def _plain() -> str:
    from jdl.train.runtime import PLAIN

    return PLAIN


def jdl_fit(given: Given, several: bool | None = None) -> Contender:
    """`jdl.train.fit` itself, timed between its first and its last record, after compilation."""
    learner, batches = _jdl(given)
    from jdl import train

    def run(steps: int) -> float:
        ticks: list[tuple[int, float]] = []

        def logger(record: Any) -> None:
            if record["split"] == "train":
                ticks.append((record["step"], time.perf_counter()))

        total = max(steps, 200)
        train.fit(learner, batches, total, loggers=[logger], mesh="data:1", several_steps=several)
        (first, start), (last, end) = ticks[0], ticks[-1]
        return (end - start) / (last - first) * steps

    how = "one step a dispatch" if several is False else "several steps a dispatch"
    return Contender(f"fit, {how}", _count(given), [], run)


def linen(given: Given) -> Contender:
    """Plain Flax: Linen, `TrainState` and a jitted train step, as Flax's own examples have it."""
    import jax
    import optax
    from flax import linen as nn
    from flax.training.train_state import TrainState

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            *hidden, last = given.workload.kernels
            for shape in hidden:
                if len(shape) == 4:
                    x = nn.Conv(shape[-1], shape[:2], padding="VALID")(x)
                    x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
                else:
                    x = nn.relu(nn.Dense(shape[-1])(x.reshape(x.shape[0], -1)))
            return nn.Dense(last[-1])(x)

    @jax.jit
    def train_step(state: TrainState, inputs: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits = state.apply_fn({"params": params}, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    model = Model()
    batches = [jax.device_put(batch) for batch in given.batches]
    params = model.init(jax.random.key(0), batches[0][0])["params"]
    params = jax.device_put(_flax_params(given, params))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(LEARNING_RATE))
    losses = []
    for batch in batches[:FIRST_STEPS]:
        state, value = train_step(state, *batch)
        losses.append(float(value))

    def run(steps: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for i in range(steps):
            state, _ = train_step(state, *batches[i % BATCHES])
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return Contender("Flax, TrainState", sum(x.size for x in jax.tree.leaves(params)), losses, run)


def pytorch(given: Given) -> Contender:
    """PyTorch, eager, at its best: fused Adam, channels last, all cores."""
    import torch
    from torch import nn

    class ChannelsLast(nn.Module):
        """Flattens images in the order of the others' weights."""

        def forward(self, x: Any) -> Any:
            return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1)

    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    modules: list[nn.Module] = []
    is_flat = False
    for kernel, bias in given.layers:
        layer: Any
        if kernel.ndim == 4:
            layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[:2])
            after: list[nn.Module] = [nn.ReLU(), nn.MaxPool2d(2)]
        else:
            if not is_flat:
                modules.append(ChannelsLast())
                is_flat = True
            layer, after = nn.Linear(*kernel.shape), [nn.ReLU()]
        weight = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight.copy()))
            layer.bias.copy_(torch.tensor(bias))
        modules += [layer, *after]
    model: Any = nn.Sequential(*modules[:-1])
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    batches = [
        (
            torch.tensor(inputs.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last),
            torch.tensor(labels).long(),
        )
        for inputs, labels in given.batches
    ]

    def step(batch: Any) -> Any:
        inputs, labels = batch
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(batch).item() for batch in batches[:FIRST_STEPS]]

    def run(steps: int) -> float:
        start = time.perf_counter()
        for i in range(steps):
            step(batches[i % BATCHES])
        return time.perf_counter() - start

    return Contender("PyTorch, eager", sum(p.numel() for p in model.parameters()), losses, run)


CONTENDERS: dict[str, Callable[[Given], Contender]] = {
    "jdl": jdl_steps,
    "jdl-one": lambda given: jdl_steps(given, False),
    "jdl-several": lambda given: jdl_steps(given, True),
    "bare-one": lambda given: jdl_steps(given, False, bare=True),
    "bare-several": lambda given: jdl_steps(given, True, bare=True),
    "fit-one": lambda given: jdl_fit(given, False),
    "fit-several": lambda given: jdl_fit(given, True),
    "linen": linen,
    "torch": pytorch,
}


def command(workload: str, contender: str, folder: Path) -> list[str]:
    """Arguments of ``python -m`` for a contender's process."""
    return ["experiments.benchmarks.workloads", workload, contender, str(folder)]


if __name__ == "__main__":
    name, contender, folder = sys.argv[1:]
    serve(CONTENDERS[contender](read(WORKLOADS[name], Path(folder))))
