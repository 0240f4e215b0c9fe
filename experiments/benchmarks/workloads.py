"""What is measured: models, their batches and how they are trained, and the weights and data that all get.

Models are made only where they are asked for, so that a contender's process imports what it is made of.

Axes: N examples, H height, W width, C channels, T time, D features.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments import torch_gpt, torch_models
from experiments.benchmarks import torch_networks

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
BATCHES = 8
"""Batches in the data, if a workload does not say; the peers go round them, jdl shuffles their examples."""
RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 1e-2, 16))
"""Learning rates of a sweep's points."""

Kind = Literal["classification", "segmentation", "next_token", "elbo", "gan", "sweep", "inference"]
Names = tuple[tuple[str, ...], ...]


class Workload(NamedTuple):
    """A model and its batches.

    Attributes:
        title: what a step is, in words.
        batch_size: examples in a batch.
        shape: of an input: an image [H, W, C], a sequence [T, D], or tokens [T].
        classes: number of classes, or of different tokens.
        module: makes jdl's model; of a GAN, the settings of `experiments.gan`.
        network: makes PyTorch's; of a GAN, a dictionary of its two.
        names: the map between the names of their parameters: rules, a function that gives them, or what
            `jdl.interop.names` calls them.
        kind: what is learned. "sweep" is classification at the rates in `RATES`; in "inference" nothing is.
        kernels: shapes of the layers of an MLP or LeNet.
        optimizer: "adam", "adamw", or "sgd" with momentum.
        peers: what it is measured beside.
        tolerance: of the first loss, relative: rounding, or what noise that is drawn anew moves it by.
        dtype: what the model computes in; parameters are float32.
        batches: how many are in the data.
        flops: of a step, as published figures of utilisation count them; 0 where nobody does.
    """

    title: str
    batch_size: int
    shape: tuple[int, ...]
    classes: int
    module: Callable[[], Any]
    network: Callable[[], Any]
    names: Any
    kind: Kind = "classification"
    kernels: tuple[tuple[int, ...], ...] = ()
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    peers: tuple[str, ...] = ("torch", "torch-compile")
    tolerance: float = 1e-4
    dtype: Literal["float32", "bfloat16"] = "float32"
    batches: int = BATCHES
    flops: float = 0.0

    @property
    def reads_tokens(self) -> bool:
        """Whether its inputs are tokens."""
        return len(self.shape) == 1

    @property
    def rules(self) -> Any:
        """The map of names."""
        from jdl.interop import names

        if isinstance(self.names, str):
            return getattr(names, self.names)
        return self.names() if callable(self.names) else self.names

    def tx(self, learning_rate: Any = LEARNING_RATE) -> Any:
        """The optimiser, from Optax."""
        import optax

        momentum = functools.partial(optax.sgd, momentum=0.9)
        decay = functools.partial(optax.adamw, weight_decay=WEIGHT_DECAY)
        return {"adam": optax.adam, "adamw": decay, "sgd": momentum}[self.optimizer](learning_rate)

    def learner(self) -> Any:
        """The learner, made of jdl's public names."""
        from jdl import learners, tasks

        if self.kind == "gan":
            from experiments import gan

            return gan.learner(self.module(), self.shape)
        kinds: dict[str, Any] = {
            "segmentation": tasks.segmentation,
            "next_token": tasks.next_token,
            "elbo": tasks.elbo,
        }
        task = kinds.get(self.kind, tasks.classification)(self.module())
        if self.dtype == "bfloat16":
            task = tasks.mixed_precision(task)
        if self.kind == "sweep":
            points = learners.grid(rate=list(RATES))
            return learners.sweep(lambda rate: learners.gradient(task, self.tx(rate)), points)
        return learners.gradient(task, self.tx())

    def tensors(self, state: Any) -> dict[str, np.ndarray]:
        """The weights in a learner's state, or in variables, by PyTorch's names and in its layouts."""
        import jax

        from jdl import interop

        if self.kind == "gan":
            return {
                f"{player}.{name}": x
                for player in ("generator", "discriminator")
                for name, x in interop.export_weights(
                    _variables(getattr(state, player)), self.names[player]
                ).items()
            }
        if self.kind == "sweep":
            state = jax.tree.map(lambda x: x[0], state.learners)
        return dict(interop.export_weights(_variables(state), self.rules))


def _variables(state: Any) -> Any:
    return {"params": state.params, **state.collections} if hasattr(state, "params") else state


def _model(constructor: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Makes a model of `jdl.models`, which is imported only then: the peers' processes do without."""

    def module() -> Any:
        from jdl import models

        return getattr(models, constructor)(*arguments, **options)

    return module


def of_layers(title: str, batch_size: int, shape: tuple[int, ...], *kernels: tuple[int, ...]) -> Workload:
    """An MLP, or LeNet-5 where there are convolutions."""
    widths = tuple(kernel[-1] for kernel in kernels)
    module = _model("LeNet5", widths[-1]) if len(kernels[0]) == 4 else _model("MLP", widths)
    names = (("Conv_{i}", "conv.{i}"), ("Dense_{i}", "dense.{i}"))
    peers = ("torch", "torch-compile", "linen", "keras", "equinox")
    network = functools.partial(torch_models.layers, kernels)
    return Workload(
        title, batch_size, shape, widths[-1], module, network, names, kernels=kernels, peers=peers
    )


def recurrent(cell: str, features: int = 256, steps: int = 64, batch_size: int = 32) -> Workload:
    """Two recurrent layers, a classifier of the last output."""

    def names() -> Any:
        from jdl.interop.names import recurrent_torch

        return (*recurrent_torch("layers", "rnn"), ("head", "fc"))

    return Workload(
        f"One training step of two {cell.upper()} layers of {features} over {steps} steps, batch "
        f"{batch_size}, Adam, float32",
        batch_size,
        (steps, features),
        10,
        _model("Recurrent", 10, (features, features), cell),
        functools.partial(torch_models.recurrent, cell, features, (features, features), 10),
        names,
    )


def resnet_cifar(depth: int = 20, batch_size: int = 128, size: int = 32) -> Workload:
    """The residual network of CIFAR."""
    blocks = (depth - 2) // 6
    return Workload(
        f"One training step of ResNet-{depth} on {size}x{size} images, batch {batch_size}, SGD, float32",
        batch_size,
        (size, size, 3),
        10,
        _model("resnet_cifar", depth),
        lambda: torch_models.resnet((blocks,) * 3, (16, 32, 64), padding_shortcut=True),
        "RESNET_TORCHVISION",
        optimizer="sgd",
        peers=("torch", "torch-compile", "linen"),
    )


def gpt(
    width: int = 192,
    depth: int = 6,
    num_heads: int = 6,
    context: int = 128,
    batch_size: int = 16,
    vocab_size: int = 65,
) -> Workload:
    """A GPT of characters."""
    return Workload(
        f"One training step of a GPT of {depth} layers, width {width}, on {context} tokens, batch "
        f"{batch_size}, AdamW, float32",
        batch_size,
        (context,),
        vocab_size,
        _model("gpt", vocab_size=vocab_size, context=context, width=width, depth=depth, num_heads=num_heads),
        functools.partial(torch_gpt.gpt, vocab_size, context, width, depth, num_heads),
        torch_gpt.NAMES,
        kind="next_token",
        optimizer="adamw",
        peers=("torch", "torch-compile", "linen", "equinox"),
    )


def gpt2(
    width: int = 768, depth: int = 12, context: int = 1024, batch_size: int = 16, vocabulary: int = 50304
) -> Workload:
    """GPT-2 small as nanoGPT trains it: no biases, a vocabulary filled up to a multiple of 64."""
    heads = width // 64
    parameters = vocabulary * width + depth * (12 * width**2 + 2 * width) + width
    return Workload(
        f"One training step of GPT-2 of {parameters / 1e6:.0f} million parameters on {context} tokens, batch "
        f"{batch_size}, AdamW, bfloat16",
        batch_size,
        (context,),
        vocabulary,
        _model(
            "gpt",
            vocab_size=vocabulary,
            context=context,
            width=width,
            depth=depth,
            num_heads=heads,
            use_bias=False,
        ),
        functools.partial(torch_gpt.gpt, vocabulary, context, width, depth, heads, bias=False),
        torch_gpt.NAMES,
        kind="next_token",
        optimizer="adamw",
        tolerance=1e-2,
        dtype="bfloat16",
        # Of products with parameters and of attention, whose masked half counts, as nanoGPT counts.
        flops=batch_size * context * (6 * parameters + 12 * depth * width * context),
    )


def resnet50(
    size: int = 224,
    batch_size: int = 128,
    depths: tuple[int, ...] = (3, 4, 6, 3),
    inner: tuple[int, ...] = (64, 128, 256, 512),
) -> Workload:
    """ResNet-50 on photographs, by the blocks of its stages and the channels of their 3x3 convolutions."""
    widths = tuple(4 * n for n in inner)
    is_published = (size, sum(depths), inner[-1]) == (224, 16, 512)
    return Workload(
        f"One training step of ResNet-50 on {size}x{size} images, batch {batch_size}, SGD, bfloat16",
        batch_size,
        (size, size, 3),
        1000,
        _model("ResNet", depths, widths, inner),
        lambda: torch_models.resnet(depths, inner, 1000, photographs=True, stem_width=64),
        "RESNET_TORCHVISION",
        optimizer="sgd",
        tolerance=2e-2,
        dtype="bfloat16",
        batches=3,
        # 4.09 G multiply-adds an image of the published network, and twice as many for the gradients.
        flops=6 * 4.09e9 * batch_size if is_published else 0.0,
    )


def vit(
    width: int = 192,
    depth: int = 12,
    num_heads: int = 3,
    patch: int = 16,
    size: int = 224,
    batch_size: int = 8,
) -> Workload:
    """ViT-Ti."""
    return Workload(
        f"One training step of a ViT of {depth} layers, width {width}, patches of {patch}, on {size}x{size} "
        f"images, batch {batch_size}, AdamW, float32",
        batch_size,
        (size, size, 3),
        1000,
        _model("ViT", patch, width, depth, num_heads, num_classes=1000),
        functools.partial(torch_networks.vit, size, patch, width, depth, num_heads, 1000),
        "VIT_TIMM",
        optimizer="adamw",
    )


def bert(
    width: int = 384, depth: int = 6, num_heads: int = 12, context: int = 128, batch_size: int = 8
) -> Workload:
    """A BERT of the size of MiniLM, which says what tokens stand in a text."""
    vocabulary = 30522
    return Workload(
        f"Inference with a BERT of {depth} layers, width {width}, logits of all of {context} tokens, batch "
        f"{batch_size}, float32",
        batch_size,
        (context,),
        vocabulary,
        _model("bert", width=width, depth=depth, num_heads=num_heads, context=context),
        functools.partial(torch_networks.bert, vocabulary, context, width, depth, num_heads),
        "BERT_HUGGING_FACE",
        kind="inference",
    )


def vae(hidden: int = 500, latent: int = 20, side: int = 28, batch_size: int = 128) -> Workload:
    """A VAE of binary images."""
    return Workload(
        f"One training step of a VAE {side * side}-{hidden}-{latent}, batch {batch_size}, Adam, float32",
        batch_size,
        (side, side, 1),
        2,
        _model("VAE", (side, side, 1), latent, (hidden,)),
        functools.partial(torch_networks.vae, side * side, hidden, latent),
        (("encoder/Dense_{i}", "encoder.{i}"), ("decoder/Dense_{i}", "decoder.{i}")),
        kind="elbo",
        tolerance=0.01,
    )


def dcgan(width: int = 64, latents: int = 100, side: int = 32, batch_size: int = 64) -> Workload:
    """DCGAN: one update of the discriminator, one of the generator."""

    def settings() -> Any:
        from experiments import gan

        return gan.Config(
            dataset="cifar10", recipe="dcgan", width=width, latents=latents, batch_size=batch_size
        )

    def networks() -> Any:
        from experiments import torch_gan

        return {
            "generator": torch_gan.generator((side, side), 3, width, latents),
            "discriminator": torch_gan.discriminator((side, side), 3, width, "batch"),
        }

    n = (side // 4).bit_length() - 1
    makes = [
        ("Dense_0", "0"),
        *((f"BatchNorm_{i}", f"{3 + 3 * i}") for i in range(n)),
        *((f"Double_{i}", f"{5 + 3 * i}", "transposed") for i in range(n)),
    ]
    judges = [
        ("Halve_0", "0"),
        *((f"Halve_{i}", f"{3 * i - 1}") for i in range(1, n)),
        *((f"BatchNorm_{i}", f"{3 + 3 * i}") for i in range(n - 1)),
        ("head", f"{3 * n + 1}"),
    ]
    return Workload(
        f"One turn of DCGAN on {side}x{side} images, width {width}, batch {batch_size}, Adam, float32",
        batch_size,
        (side, side, 3),
        10,
        settings,
        networks,
        {"generator": makes, "discriminator": judges},
        kind="gan",
        peers=("torch",),
        tolerance=0.05,
    )


def unet(width: int = 16, side: int = 128, batch_size: int = 4) -> Workload:
    """A U-Net that says of every pixel what it belongs to."""
    return Workload(
        f"One training step of a U-Net of width {width} with batch normalisation on {side}x{side} images, "
        f"batch {batch_size}, Adam, float32",
        batch_size,
        (side, side, 3),
        2,
        _model("UNet", 2, width, norm=True),
        functools.partial(torch_networks.unet, width, 2),
        "UNET_MILESIAL",
        kind="segmentation",
    )


def mlp(batch_size: int = 128, *widths: int) -> Workload:
    """The MLP that is trained, alone or at many rates."""
    sizes = widths or (784, 512, 512, 10)
    side = round(sizes[0] ** 0.5)
    return of_layers(
        f"One training step of an MLP {'-'.join(map(str, sizes))}, batch {batch_size}, Adam, float32",
        batch_size,
        (side, side, 1),
        *itertools.pairwise(sizes),
    )


def sweep(batch_size: int = 128, *widths: int) -> Workload:
    """One step of every point of a sweep of learning rates."""
    one = mlp(batch_size, *(widths or (784, 128, 10)))
    return one._replace(
        title=f"{one.title}, at {len(RATES)} learning rates", kind="sweep", peers=("jdl-runs", "torch")
    )


WORKLOADS = {
    "mlp": mlp(),
    "lenet": of_layers(
        "One training step of LeNet-5, batch 128, Adam, float32",
        128,
        (32, 32, 1),
        (5, 5, 1, 6),
        (5, 5, 6, 16),
        (400, 120),
        (120, 84),
        (84, 10),
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
    "resnet20": resnet_cifar(),
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
    "vit": vit(),
    "unet": unet(),
    "lstm": recurrent("lstm"),
    "gru": recurrent("gru"),
    "gpt": gpt(),
    "bert": bert(),
    "vae": vae(),
    "dcgan": dcgan(),
    "sweep": sweep(),
    "gpt2": gpt2(),
    "resnet50": resnet50(),
}

FOR_ACCELERATORS = ("gpt2", "resnet50")
"""Those that are measured on a CPU only where they are named: a step takes it minutes."""

OVERHEAD = of_layers(
    "One training step of an MLP 64-32-10, batch 8, Adam: the loop of fit and its compiled step alone",
    8,
    (8, 8, 1),
    (64, 32),
    (32, 10),
)
OVERHEAD_PLAYERS = dcgan(width=2, latents=4, side=8, batch_size=4)._replace(
    title="One turn of a DCGAN of 2 features on 8x8 images, batch 4, Adam: the loop of fit and its compiled "
    "step alone"
)
OVERHEADS = {"overhead": OVERHEAD, "overhead_players": OVERHEAD_PLAYERS}
"""Steps so small that what fit itself does can be seen."""


class Given(NamedTuple):
    """What every contender of a workload is given.

    Attributes:
        workload: the workload.
        weights: the initial weights, by PyTorch's names and in its layouts.
        arrays: inputs [N, H, W, C], [N, T, D] or [N, T], and labels [N, ...].
        rows: [batches, B], the examples of the first batches.
    """

    workload: Workload
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    rows: np.ndarray

    @property
    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inputs and labels of the first batches."""
        return [(self.arrays["inputs"][rows], self.arrays["labels"][rows]) for rows in self.rows]


def draw(workload: Workload, seed: int = 0) -> Given:
    """Weights and data for the contenders. A learner of jdl that starts from key ``seed`` has the weights."""
    import jax

    from jdl import data

    rng = np.random.default_rng(seed)
    size = workload.batches * workload.batch_size
    shape: tuple[int, ...] = (size,)
    if workload.kind == "segmentation":
        shape = (size, *workload.shape[:2])
    elif workload.reads_tokens:
        shape = (size, *workload.shape)
    arrays = {"inputs": _inputs(workload, size, rng)}
    arrays["labels"] = rng.integers(0, workload.classes, shape).astype(np.int32)
    order = data.shuffled({"rows": np.arange(size)}, workload.batch_size, resident=False)
    batch = {name: x[: workload.batch_size] for name, x in arrays.items()}
    if workload.kind == "inference":
        state = jax.jit(workload.module().init)(jax.random.key(seed), batch["inputs"])
    else:
        state = jax.jit(workload.learner().init)(jax.random.key(seed), batch)
    rows = np.stack([order(i)["rows"] for i in range(workload.batches)])
    return Given(workload, workload.tensors(jax.device_get(state)), arrays, rows)


def _inputs(workload: Workload, size: int, rng: np.random.Generator) -> np.ndarray:
    shape = (size, *workload.shape)
    if workload.kind == "elbo":
        return rng.random(shape) < 0.2
    if workload.kind == "gan":
        return rng.integers(0, 256, shape).astype(np.uint8)
    if workload.reads_tokens:
        return rng.integers(0, workload.classes, shape).astype(np.int32)
    return rng.normal(size=shape).astype(np.float32)


def write(given: Given, folder: Path) -> None:
    """Writes what the contenders are given."""
    arrays: Any = {"rows": given.rows, **given.arrays}
    tensors: Any = given.weights
    np.savez(folder / "given.npz", **arrays)
    np.savez(folder / "weights.npz", **tensors)


def read(workload: Workload, folder: Path) -> Given:
    """What `write` wrote."""
    with np.load(folder / "given.npz") as file, np.load(folder / "weights.npz") as weights:
        arrays = {name: file[name] for name in ("inputs", "labels")}
        return Given(workload, dict(weights), arrays, file["rows"])
