"""Where the time of a convolutional network's step goes: each of its convolutions alone, beside PyTorch's.

``python -m experiments.benchmarks.convolutions CONTENDER WORKLOAD`` is a contender's process, which prints
the milliseconds of each pass of each convolution as JSON.

Axes: B batch, H height, W width, C channels, F features (channels of the output).
"""

from __future__ import annotations

import collections
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.harness import apart, cores
from experiments.benchmarks.workloads import WORKLOADS

NETWORKS = ("resnet20", "resnet18", "mobilenet_v2")
"""Workloads whose steps are little but convolutions."""
PASSES = ("forward", "gradient of its input", "gradient of its kernel")
SHOWN = 12
"""Rows of a table besides the sum: those in which most time is lost, or least gained."""
NOTE = (
    f"The sum, and the {SHOWN} passes in which jdl loses most beside PyTorch. Each alone, hot in the caches "
    "where it fits them. Tried for the gradient of a kernel with 16 to 64 channels and none faster: the "
    "images and gradients in another order of axes; one product of patches; one a row of the kernel, with "
    "1 to 8 columns in a banded matrix; shifted copies of the gradient side by side; transposing in two "
    "steps. Forward, 16 channels: a convolution that gives two columns at a stride of two is faster by a "
    "quarter, and the gradient of its input slower by four times. Tried for the gradient of a depthwise "
    "kernel and none faster: sums in two stages, images one after another in a loop, products split along "
    "the contracted axis. XLA hands no convolution to oneDNN."
)
SECONDS, RUNS = 0.2, 5
"""A pass is measured for so long, and at least so often."""


class Convolution(NamedTuple):
    """A convolution as a network calls it.

    Attributes:
        inputs: shape of the images, (B, H, W, C).
        kernel: (kh, kw, C / groups, F).
        stride: of both directions.
        padding: rows above and below, and columns to the left and to the right.
        groups: of channels.
    """

    inputs: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    padding: tuple[int, int]
    groups: int

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of what it gives, (B, H', W', F)."""
        sides = [
            (side + 2 * pad - k) // self.stride + 1
            for side, pad, k in zip(self.inputs[1:3], self.padding, self.kernel, strict=False)
        ]
        return self.inputs[0], *sides, self.kernel[3]

    @property
    def flops(self) -> float:
        """Floating-point operations of a pass, the same for all three."""
        return 2.0 * np.prod(self.outputs) * np.prod(self.kernel[:3])

    def __str__(self) -> str:
        """What tables call it."""
        kind = "depthwise " if self.groups > 1 else ""
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        (_, H, W, C), (kh, kw, _, F) = self.inputs, self.kernel
        return f"{kind}{kh}x{kw}, {C} to {F} at {H}x{W}{stride}"


def convolutions(workload: str) -> dict[Convolution, int]:
    """The convolutions of a workload's network, and how many layers have each; no computation is done.

    Raises:
        ValueError: for a layer that pads its sides unevenly, or strides them so.
    """
    import jax
    from flax import linen
    from flax.linen import linear
    from jax import lax

    of = WORKLOADS[workload]
    found: collections.Counter[Convolution] = collections.Counter()

    def see(call: Callable[..., Any], arguments: Any, options: Any, context: Any) -> Any:
        layer = context.module
        if isinstance(layer, linen.Conv) and context.method_name == "__call__":
            shape, sides = arguments[0].shape, tuple(np.broadcast_to(layer.kernel_size, 2).tolist())
            strides = np.broadcast_to(layer.strides or 1, 2).tolist()
            pads = linear.canonicalize_padding(layer.padding, 2)
            rows, columns = (
                lax.padtype_to_pads(shape[1:3], sides, strides, pads) if isinstance(pads, str) else pads
            )
            if strides[0] != strides[1] or rows[0] != rows[1] or columns[0] != columns[1]:
                raise ValueError(f"a layer of {workload} strides or pads its sides unevenly: {layer}")
            groups = layer.feature_group_count
            kernel = (*sides, shape[3] // groups, layer.features)
            found[Convolution(shape, kernel, strides[0], (rows[0], columns[0]), groups)] += 1
        return call(*arguments, **options)

    def initialise() -> Any:
        with linen.intercept_methods(see):
            return of.module().init(jax.random.key(0), np.zeros((of.batch_size, *of.shape), np.float32))

    jax.eval_shape(initialise)
    return dict(found)


def jdl(layer: Convolution, x: np.ndarray, kernel: np.ndarray, change: np.ndarray) -> list[Any]:
    """The three passes of `jdl.nn.Conv` as functions of nothing that wait for their results."""
    import jax
    import jax.numpy as jnp

    from jdl import nn

    module = nn.Conv(
        kernel.shape[-1],
        kernel.shape[:2],
        (layer.stride,) * 2,
        [(pad, pad) for pad in layer.padding],
        feature_group_count=layer.groups,
        use_bias=False,
    )

    def forward(x: Any, kernel: Any) -> Any:
        return module.apply({"params": {"kernel": kernel}}, x)

    def of_input(x: Any, kernel: Any, change: Any) -> Any:
        return jax.vjp(lambda x: forward(x, kernel), x)[1](change)[0]

    def of_kernel(x: Any, kernel: Any, change: Any) -> Any:
        return jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](change)[0]

    given = [jnp.asarray(a) for a in (x, kernel, change)]

    def run(function: Callable[..., Any], row: list[Any]) -> Callable[[], np.ndarray]:
        compiled = jax.jit(function)
        return lambda: np.asarray(compiled(*row))

    return [run(forward, given[:2]), run(of_input, given), run(of_kernel, given)]


def pytorch(layer: Convolution, x: np.ndarray, kernel: np.ndarray, change: np.ndarray) -> list[Any]:
    """The same with PyTorch, images and kernels in the layout in which it is fastest on a CPU."""
    import torch

    torch.set_num_threads(cores())
    images, changes, weights = (
        torch.tensor(a.transpose(axes)).contiguous(memory_format=torch.channels_last)
        for a, axes in ((x, (0, 3, 1, 2)), (change, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1)))
    )
    stride = (layer.stride,) * 2

    def forward() -> Any:
        with torch.inference_mode():
            y = torch.nn.functional.conv2d(images, weights, None, stride, layer.padding, 1, layer.groups)
        return y.permute(0, 2, 3, 1).numpy()

    def backward(i: int) -> Any:
        wanted = [i == 0, i == 1, False]
        return torch.ops.aten.convolution_backward(
            changes, images, weights, None, stride, layer.padding, (1, 1), False, (0, 0), layer.groups, wanted
        )[i]

    return [
        forward,
        lambda: backward(0).permute(0, 2, 3, 1).numpy(),
        lambda: backward(1).permute(2, 3, 1, 0).numpy(),
    ]


def drawn(layer: Convolution) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, a kernel and a change of the output, standard normal."""
    rng = np.random.default_rng(0)
    shapes = (layer.inputs, layer.kernel, layer.outputs)
    x, kernel, change = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return x, kernel, change


CONTENDERS = {"jdl": jdl, "torch": pytorch}


def time_of(run: Callable[[], Any]) -> float:
    """Milliseconds of a call, the median of several."""
    run()
    samples: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(samples) < RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


class Found(NamedTuple):
    """What one pass of all layers alike takes in a step.

    Attributes:
        label: which pass of which layers.
        milliseconds: of jdl, by round.
        peer: of PyTorch, by round.
        gflop: operations, in units of 1e9.
    """

    label: str
    milliseconds: list[float]
    peer: list[float]
    gflop: float

    @property
    def lost(self) -> float:
        """Milliseconds that jdl takes longer."""
        return statistics.median(self.milliseconds) - statistics.median(self.peer)


def measure(workload: str, rounds: int = 3) -> list[Found]:
    """The passes of a workload's convolutions in jdl and in PyTorch, process after process in turns.

    The gradient of the first layer's input is left out, as a step does.

    Returns:
        The sum of all first, and then each, those in which jdl loses most time first.
    """
    layers = convolutions(workload)
    times: dict[str, list[Any]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, found in times.items():
            found.append(apart("experiments.benchmarks.convolutions", name, workload))
    rows = []
    for i, (layer, count) in enumerate(layers.items()):
        for j, what in enumerate(PASSES):
            if i == 0 and j == 1:
                continue
            ours, theirs = ([count * found[i][j] for found in times[name]] for name in CONTENDERS)
            many = f"{count} layers of " if count > 1 else ""
            rows.append(Found(f"{many}{layer}: {what}", ours, theirs, count * layer.flops / 1e9))
    ours, theirs = ([sum(each) for each in zip(*(row[i] for row in rows), strict=True)] for i in (1, 2))
    total = Found("all convolutions", ours, theirs, sum(row.gflop for row in rows))
    return [total, *sorted(rows, key=lambda row: -row.lost)]


def main(contender: str, workload: str) -> None:
    """Times every pass of every convolution of a workload."""
    if contender == "jdl":
        from jdl import train

        train.prepare()
    passes = [CONTENDERS[contender](layer, *drawn(layer)) for layer in convolutions(workload)]
    print(json.dumps([[time_of(run) for run in runs] for runs in passes]))


if __name__ == "__main__":
    main(*sys.argv[1:])
