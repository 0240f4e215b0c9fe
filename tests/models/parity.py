"""A model against a PyTorch reference: outputs, gradients, and the map of names in both directions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jdl import tasks
from jdl.interop import export_weights, load_weights
from jdl.train import summary
from tests.compiling import jit


def shapes(module: Any, size: int, channels: int = 3) -> Any:
    """Shapes of a module's variables, for square images."""
    images = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)


def size_of(module: Any, size: int) -> tuple[int, float]:
    """Parameters, and millions of multiply-adds on one square image of three channels."""
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    found = summary(tasks.classification(module), {"inputs": images})
    return found.params, found.multiply_adds / 1e6


def randomise(torch: Any, reference: Any) -> None:
    """Values that keep signals alive through many layers, and no statistic or scale of zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in [*reference.named_parameters(), *reference.named_buffers()]:
            if not x.dtype.is_floating_point:
                continue
            normal = torch.empty(x.shape).normal_(generator=generator)
            uniform = torch.empty(x.shape).uniform_(0.5, 1.5, generator=generator)
            if name.endswith("running_var") or (x.ndim == 1 and not name.endswith(("bias", "mean"))):
                x.copy_(uniform)
            elif x.ndim > 1:
                x.copy_(normal * (1.5 / x[0].numel()) ** 0.5)
            else:
                x.copy_(0.1 * normal)


def compare(
    torch: Any,
    module: Any,
    reference: Any,
    names: Any,
    size: int,
    *,
    batch: int = 8,
    train: bool = False,
    logits: Callable[[Any], Any] = lambda output: output,
    tensors: Callable[[Any], dict[str, np.ndarray]] | None = None,
    tolerance: float = 1e-4,
    double: bool = False,
) -> None:
    """Loads the reference's random weights, and compares logits and the gradient of every parameter.

    Args:
        torch: PyTorch.
        module: ours.
        reference: theirs; noise must be off.
        names: the map of names.
        size: of the images, pixels.
        batch: number of images. Among many activations rounding takes one across a kink of ReLU6, which moves
            gradients by a hundredth: a deep network is compared on few.
        train: whether gradients are those of training mode, with the batch's statistics.
        logits: takes them from what the reference returns.
        tensors: the reference's ``state_dict`` under the names of its published files.
        tolerance: relative to the largest entry of each array.
        double: computes both in float64, where rounding moves no activation across zero.
    """
    tensors = tensors or (lambda model: {name: x.numpy() for name, x in model.state_dict().items()})
    randomise(torch, reference)
    state = {name: np.array(x) for name, x in tensors(reference).items() if "num_batches_tracked" not in name}
    variables = load_weights(shapes(module, size), state, names)
    back = export_weights(variables, names)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)

    rng = np.random.default_rng(0)
    dtype = np.float64 if double else np.float32
    x, labels = rng.normal(size=(batch, size, size, 3)).astype(dtype), rng.integers(0, 3, batch)
    reference = reference.double() if double else reference
    variables = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), variables)
    wide = jax.enable_x64(True) if double else contextlib.nullcontext()
    images = torch.tensor(x.transpose(0, 3, 1, 2))
    with torch.no_grad():
        expected = logits(reference.eval()(images)).numpy()

    def loss(params: Any) -> Any:
        outputs, _ = module.apply(
            {**variables, "params": params},
            x,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    with wide:
        actual = np.asarray(jit(lambda v: module.apply(v, x))(variables))
        gradients = jax.device_get(jit(jax.grad(loss))(variables["params"]))
    assert np.abs(expected).max() > 0.1, "the reference's signal has died"
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())

    reference.train(train).zero_grad()
    torch.nn.functional.cross_entropy(logits(reference(images)), torch.tensor(labels)).backward()
    trained = {name for name, _ in reference.named_parameters()}
    with torch.no_grad():
        for _, x_ in reference.named_parameters():
            x_.copy_(x_.grad)
    theirs = tensors(reference)
    ours = export_weights({"params": gradients}, names)
    assert len(ours) == len(trained)
    for name, gradient in ours.items():
        scale = np.abs(theirs[name]).max()
        error = np.abs(gradient - theirs[name]).max()
        # A bias before a normalisation has a gradient of rounding errors alone.
        assert error <= tolerance * max(scale, 1e-3), f"{name}: {error} of {scale}"
