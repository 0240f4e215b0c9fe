"""What competes: the same model, optimiser, weights and batches in jdl, in plain Flax and in PyTorch.

``python -m experiments.benchmarks.workloads WORKLOAD CONTENDER FOLDER`` is a contender's process; the folder
holds the weights and the data. Only what a contender is made of is imported in its process.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import torch_gpt, torch_models
from experiments.benchmarks.harness import Contender, serve

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
FIRST_STEPS = 3
"""Steps whose losses show that contenders compute the same."""
TWO = 2
"""Devices that JAX is told a CPU has, where it is to work on two halves of a batch at once."""
BATCHES = 8
"""Batches in the data; the peers go round them, jdl shuffles their examples."""


class Workload(NamedTuple):
    """A model and its batches.

    Attributes:
        title: what a step is, in words.
        batch_size: examples in a batch.
        image: shape of an input: an image [H, W, C], a sequence [T, D], or tokens [T], each of which has a
            label.
        classes: number of classes, or of different tokens.
        module: makes jdl's model.
        network: makes PyTorch's, of the functions in `experiments.torch_models`.
        names: the map between the names of their parameters: rules, a function that gives them, or what
            `jdl.interop.names` calls them.
        kernels: shapes of the layers, for the plain Flax peer; it is left out of others.
        optimizer: "adam", "adamw", or "sgd" with momentum.
        peers: what it is measured beside.
    """

    title: str
    batch_size: int
    image: tuple[int, ...]
    classes: int
    module: Callable[[], Any]
    network: Callable[[], Any]
    names: tuple[tuple[str, ...], ...] | str | Callable[[], Any]
    kernels: tuple[tuple[int, ...], ...] = ()
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    peers: tuple[str, ...] = ("torch", "torch-compile")

    @property
    def reads_tokens(self) -> bool:
        """Whether it is a language model."""
        return len(self.image) == 1

    @property
    def rules(self) -> Any:
        """The map of names."""
        from jdl.interop import names

        if isinstance(self.names, str):
            return getattr(names, self.names)
        return self.names() if callable(self.names) else self.names


def _of_layers(
    title: str, batch_size: int, image: tuple[int, ...], *kernels: tuple[int, ...], peers: tuple[str, ...]
) -> Workload:
    """An MLP, or LeNet-5 where there are convolutions."""
    widths = tuple(shape[-1] for shape in kernels)

    def module() -> Any:
        from jdl import models

        return models.LeNet5(widths[-1]) if len(kernels[0]) == 4 else models.MLP(widths)

    names = (("Conv_{i}", "conv.{i}"), ("Dense_{i}", "dense.{i}"))
    network = functools.partial(torch_models.layers, kernels)
    return Workload(title, batch_size, image, widths[-1], module, network, names, kernels, peers=peers)


def _model(constructor: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Makes a model of `jdl.models`, which is imported only then: the peers' processes do without."""

    def module() -> Any:
        from jdl import models

        return getattr(models, constructor)(*arguments, **options)

    return module


def _recurrent(cell: str) -> Workload:
    """Two layers of 256 over 64 steps, a classifier of the last output."""

    def names() -> Any:
        from jdl.interop.names import recurrent_torch

        return (*recurrent_torch("layers", "rnn"), ("head", "fc"))

    return Workload(
        f"One training step of two {cell.upper()} layers of 256 over 64 steps, batch 32, Adam, float32",
        32,
        (64, 256),
        10,
        _model("Recurrent", 10, (256, 256), cell),
        functools.partial(torch_models.recurrent, cell, 256, (256, 256), 10),
        names,
    )


WORKLOADS = {
    "mlp": _of_layers(
        "One training step of an MLP 784-512-512-10, batch 128, Adam, float32",
        128,
        (28, 28, 1),
        (784, 512),
        (512, 512),
        (512, 10),
        peers=("linen", "torch", "torch-compile"),
    ),
    "lenet": _of_layers(
        "One training step of LeNet-5, batch 128, Adam, float32",
        128,
        (32, 32, 1),
        (5, 5, 1, 6),
        (5, 5, 6, 16),
        (400, 120),
        (120, 84),
        (84, 10),
        peers=("linen", "torch", "torch-compile"),
    ),
    "resnet18": Workload(
        "One training step of ResNet-18 with a 3x3 stem on 32x32 images, batch 32, SGD, float32",
        32,
        (32, 32, 3),
        10,
        _model("resnet", 18, 10, stem="cifar"),
        lambda: torch_models.resnet((2, 2, 2, 2), (64, 128, 256, 512)),
        "RESNET_TORCHVISION",
        optimizer="sgd",
    ),
    "resnet20": Workload(
        "One training step of ResNet-20 on 32x32 images, batch 128, SGD, float32",
        128,
        (32, 32, 3),
        10,
        _model("resnet_cifar", 20),
        lambda: torch_models.resnet((3, 3, 3), (16, 32, 64), padding_shortcut=True),
        "RESNET_TORCHVISION",
        optimizer="sgd",
    ),
    "mobilenet_v2": Workload(
        "One training step of MobileNetV2 on 224x224 images, batch 8, SGD, float32",
        8,
        (224, 224, 3),
        1000,
        _model("mobilenet_v2", dropout=0.0),
        torch_models.mobilenet_v2,
        "MOBILENET_V2_TORCHVISION",
        optimizer="sgd",
    ),
    "lstm": _recurrent("lstm"),
    "gru": _recurrent("gru"),
    "gpt": Workload(
        "One training step of a GPT of 6 layers, width 192, on 128 tokens, batch 16, AdamW, float32",
        16,
        (128,),
        65,
        _model("gpt", vocab_size=65, context=128, width=192, depth=6, num_heads=6),
        functools.partial(torch_gpt.gpt, 65, 128, 192, 6, 6),
        torch_gpt.NAMES,
        optimizer="adamw",
    ),
    "overhead": _of_layers(
        "One training step of an MLP 64-32-10, batch 8, Adam: the loop of fit and its compiled step alone",
        8,
        (8, 8, 1),
        (64, 32),
        (32, 10),
        peers=(),
    ),
}


class Given(NamedTuple):
    """What every contender of a workload is given.

    Attributes:
        workload: the workload.
        weights: the initial weights, by PyTorch's names and in its layouts.
        arrays: inputs [N, H, W, C] or [N, T, D], and labels [N].
        rows: [BATCHES, B], the examples of the first batches.
    """

    workload: Workload
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    rows: np.ndarray

    @property
    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inputs and labels of the first batches."""
        return [(self.arrays["inputs"][rows], self.arrays["labels"][rows]) for rows in self.rows]


def write(workload: Workload, folder: Path, seed: int = 0) -> None:
    """Draws weights and data, and writes them for the contenders."""
    import jax

    from jdl import data, interop

    rng = np.random.default_rng(seed)
    size = BATCHES * workload.batch_size
    order = data.shuffled({"rows": np.arange(size)}, workload.batch_size, resident=False)
    if workload.reads_tokens:
        inputs = rng.integers(0, workload.classes, (size, *workload.image)).astype(np.int32)
    else:
        inputs = rng.normal(size=(size, *workload.image)).astype(np.float32)
    variables = jax.jit(workload.module().init)(jax.random.key(seed), inputs[:1])
    np.savez(
        folder / "given.npz",
        inputs=inputs,
        labels=rng.integers(0, workload.classes, inputs.shape if workload.reads_tokens else size).astype(
            np.int32
        ),
        rows=np.stack([order(i)["rows"] for i in range(BATCHES)]),
    )
    weights: Any = interop.export_weights(variables, workload.rules)
    np.savez(folder / "weights.npz", **weights)


def read(workload: Workload, folder: Path) -> Given:
    """What `write` wrote."""
    with np.load(folder / "given.npz") as file, np.load(folder / "weights.npz") as weights:
        arrays = {name: file[name] for name in ("inputs", "labels")}
        return Given(workload, dict(weights), arrays, file["rows"])


def _optax(given: Given) -> Any:
    import optax

    momentum = functools.partial(optax.sgd, momentum=0.9)
    decay = functools.partial(optax.adamw, weight_decay=WEIGHT_DECAY)
    return {"adam": optax.adam, "adamw": decay, "sgd": momentum}[given.workload.optimizer](LEARNING_RATE)


class _Jdl(NamedTuple):
    """A learner of a workload and its batches, through jdl's public names."""

    learner: Any
    batches: Any


def _jdl(given: Given) -> _Jdl:
    from jdl import train

    train.prepare()
    from jdl import data, learners, tasks

    task = (tasks.next_token if given.workload.reads_tokens else tasks.classification)(
        given.workload.module()
    )
    learner = learners.gradient(task, _optax(given))
    return _Jdl(learner, data.shuffled(given.arrays, given.workload.batch_size, resident=True))


def jdl_steps(
    given: Given, several: bool | None = None, *, bare: bool = False, devices: int = 1
) -> Contender:
    """The compiled step of `jdl.train.fit`, called as `fit` calls it.

    Args:
        given: weights and data.
        several: whether a dispatch holds several steps; None as `fit` chooses, False or True.
        bare: only send the steps, and do not look at what they came to.
        devices: how many share the batch, by `jax.shard_map` where there are several.
    """
    learner, batches = _jdl(given)
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from jdl import interop
    from jdl.core import summarize
    from jdl.train import make_mesh
    from jdl.train.feed import place
    from jdl.train.loop import DISPATCH_SECONDS
    from jdl.train.program import build

    mesh = make_mesh(f"data:{devices}")
    mode: Literal["jit", "shard_map"] = "jit" if devices == 1 else "shard_map"
    batches = jax.device_put(batches, NamedSharding(mesh, PartitionSpec()))
    first = place(jax.device_get(jax.jit(lambda batches: batches(0))(batches)), mesh)
    program = build(learner, jax.random.key(0), batches, first, {}, mesh, mode, several)
    state = program.init()
    variables = {"params": state.params, **state.collections}
    variables = interop.load_weights(variables, given.weights, given.workload.rules)
    params, collections = jax.device_put(
        (variables.pop("params"), variables), NamedSharding(mesh, PartitionSpec())
    )
    state = state._replace(params=params, collections=collections)
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
    if devices > 1:
        label = f"jdl, {devices} devices"
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
    return Contender(f"fit, {how}", sum(x.size for x in given.weights.values()), [], run)


def linen(given: Given) -> Contender:
    """Plain Flax: Linen, `TrainState` and a jitted train step, as Flax's own examples have it."""
    import jax
    import optax
    from flax import linen as nn
    from flax.training.train_state import TrainState

    from jdl import interop

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
    variables = jax.eval_shape(model.init, jax.random.key(0), batches[0][0])
    params = interop.load_weights(variables, given.weights, given.workload.rules)["params"]
    state = TrainState.create(apply_fn=model.apply, params=jax.device_put(params), tx=_optax(given))
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


def pytorch(given: Given, *, compiled: bool = False) -> Contender:
    """PyTorch at its best: fused optimiser, channels last, all cores; eager, or by `torch.compile`."""
    import torch
    from torch import nn

    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    model = given.workload.network()
    weights = {name: torch.tensor(x) for name, x in given.weights.items()}
    unlike = model.load_state_dict(weights, strict=False)
    if unlike.unexpected_keys or any("num_batches" not in name for name in unlike.missing_keys):
        raise ValueError(f"the weights are not those of the network: {unlike}")
    model = model.to(memory_format=torch.channels_last)
    optimizer: Any
    if given.workload.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    elif given.workload.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
    else:
        optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, fused=True)
    forward = torch.compile(model) if compiled else model

    def arranged(inputs: np.ndarray) -> Any:
        if inputs.ndim != 4:
            return torch.tensor(inputs).long() if given.workload.reads_tokens else torch.tensor(inputs)
        return torch.tensor(inputs.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)

    batches = [(arranged(inputs), torch.tensor(labels).long()) for inputs, labels in given.batches]

    def step(batch: Any) -> Any:
        inputs, labels = batch
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(forward(inputs).flatten(0, -2), labels.flatten())
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(batch).item() for batch in batches[:FIRST_STEPS]]

    def run(steps: int) -> float:
        start = time.perf_counter()
        for i in range(steps):
            step(batches[i % BATCHES])
        return time.perf_counter() - start

    label = "PyTorch, compiled" if compiled else "PyTorch, eager"
    return Contender(label, sum(p.numel() for p in model.parameters()), losses, run)


CONTENDERS: dict[str, Callable[[Given], Contender]] = {
    "jdl": jdl_steps,
    "jdl-one": lambda given: jdl_steps(given, False),
    "jdl-several": lambda given: jdl_steps(given, True),
    "jdl-devices": lambda given: jdl_steps(given, devices=TWO),
    "bare-one": lambda given: jdl_steps(given, False, bare=True),
    "bare-several": lambda given: jdl_steps(given, True, bare=True),
    "fit-one": lambda given: jdl_fit(given, False),
    "fit-several": lambda given: jdl_fit(given, True),
    "linen": linen,
    "torch": pytorch,
    "torch-compile": lambda given: pytorch(given, compiled=True),
}


def command(workload: str, contender: str, folder: Path) -> list[str]:
    """Arguments of ``python -m`` for a contender's process."""
    return ["experiments.benchmarks.workloads", workload, contender, str(folder)]


if __name__ == "__main__":
    name, contender, folder = sys.argv[1:]
    serve(CONTENDERS[contender](read(WORKLOADS[name], Path(folder))))
