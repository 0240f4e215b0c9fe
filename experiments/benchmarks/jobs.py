"""Whole trainings, from the start of a process to a target of quality, in jdl and in PyTorch.

``python -m experiments.benchmarks.jobs JOB CONTENDER SEED FOLDER`` is one of them; the folder holds the data.
The recipe is the same in both: network, optimiser, rates, augmentation, batches and how often the test set is
looked at. The order of the examples and the noise are each one's own, and so are initial weights, but for
those of the GPT.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import torch_gpt, torch_models
from experiments.benchmarks.harness import apart, cores

Seen = Callable[[float], None]
"""Takes the quality of an evaluation, and raises `Reached` where that is enough."""


class Job(NamedTuple):
    """A training with a target.

    Attributes:
        title: what it is.
        recipe: how it is trained, for the note.
        dataset: its name in `jdl.data`.
        metric: of the test or validation set.
        target: of the metric.
        sign: 1 where more is better, else -1.
        steps: at which it gives up; the rate has fallen to its end by then.
        every: steps between evaluations.
        batch_size: examples.
        rate: the peak of the learning rate.
        warmup: the share of the steps in which the rate rises to it.
        end: the share of the rate that is left at the end.
    """

    title: str
    recipe: str
    dataset: str
    metric: str
    target: float
    sign: int
    steps: int
    every: int
    batch_size: int
    rate: float
    warmup: float
    end: float

    def learning_rate(self, step: int) -> float:
        """The rate of a step: up in a straight line, down along a cosine."""
        rises = max(1, round(self.warmup * self.steps))
        if step < rises:
            return self.rate * (step + 1) / (rises + 1)
        gone = min(1.0, (step - rises) / max(1, self.steps - rises))
        return self.rate * (self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * gone)))

    def enough(self, quality: float) -> bool:
        """Whether a quality is as good as the target."""
        return self.sign * quality >= self.sign * self.target


JOBS = {
    "lenet_job": Job(
        "LeNet-5 to 99 % of the test digits of MNIST",
        "Adam, peak rate 0.002, at most 8 passes, batch 128; evaluated every quarter of a pass.",
        "mnist", "accuracy", 0.99, 1, 3744, 117, 128, 2e-3, 0.05, 0.01,
    ),
    "cifar_job": Job(
        "ResNet-20 to 80 % of the test images of CIFAR-10",
        "SGD with momentum 0.9, peak rate 0.1, weight decay 0.0005 of all parameters, 6 passes, batch 128, "
        "crops and mirrored images; evaluated every half of a pass.",
        "cifar10", "accuracy", 0.80, 1, 2340, 195, 128, 0.1, 0.15, 0.001,
    ),
    "gpt_job": Job(
        "GPT of 0.8 million parameters to 1.90 nats a character of the validation text of Tiny Shakespeare",
        "nanoGPT's setting for a CPU with 2,400 steps: 4 layers of width 128, 64 characters, 12 windows; "
        "AdamW, peak rate 0.001; evaluated on the whole text every 200 steps.",
        "tiny_shakespeare", "loss", 1.90, -1, 2400, 200, 12, 1e-3, 1 / 24, 0.1,
    ),
}  # fmt: skip

CONTEXT, WIDTH, DEPTH, HEADS = 64, 128, 4, 4
"""Of the GPT."""


class Done(NamedTuple):
    """What a run came to.

    Attributes:
        label: of the contender.
        quality: of the last evaluation.
        seconds: from the start of the process to the evaluation that was good enough, or None.
    """

    label: str
    quality: float
    seconds: float | None

    def sentence(self, job: Job) -> str:
        """In words."""
        if self.seconds is None:
            return f"{job.metric} {self.quality:.4f} after all {job.steps} steps, not {job.target:g}"
        return f"{job.metric} {self.quality:.4f} in {self.seconds:.1f} s"


class Reached(Exception):
    """The target is reached."""


def write(name: str, folder: Path) -> None:
    """Writes a job's data for both contenders, so that neither times how the other reads them."""
    from jdl import data

    job = JOBS[name]
    if name == "gpt_job":
        text = data.load_text(job.dataset)
        tokenizer = data.character_tokenizer(text.train + text.validation)
        np.savez(
            folder / "data.npz",
            train=tokenizer.encode(text.train),
            test=tokenizer.encode(text.validation),
            size=tokenizer.vocab_size,
        )
        return
    dataset = data.load(job.dataset)
    train, test = dataset.train["inputs"], dataset.test["inputs"]
    edge = (32 - train.shape[1]) // 2
    train, test = (np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0))) for x in (train, test))
    axes, scaled = (0, 1, 2), train[:10_000].astype(np.float32) / 255
    np.savez(
        folder / "data.npz",
        train=train,
        train_labels=dataset.train["labels"],
        test=test,
        test_labels=dataset.test["labels"],
        mean=scaled.mean(axes),
        deviation=scaled.std(axes),
    )


def start(name: str, contender: str, seed: int) -> Done:
    """Runs a job in a process of its own, with an empty cache of compiled programs.

    Raises:
        RuntimeError: if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(name, Path(folder))
        environment = {**os.environ, "JDL_CACHE": str(Path(folder) / "cache")}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        begin = time.time()
        told = apart(
            "experiments.benchmarks.jobs", name, contender, str(seed), folder, environment=environment
        )
    seconds = None if told["reached"] is None else told["reached"] - begin
    return Done(told["label"], told["quality"], seconds)


def run(name: str, contender: str, seed: int, folder: Path, job: Job | None = None) -> dict[str, Any]:
    """A job until its target, or its end.

    Returns:
        The contender's label, the last quality, and when the target was reached, seconds since the epoch.
    """
    job = job or JOBS[name]
    qualities: list[float] = []

    def seen(quality: float) -> None:
        qualities.append(quality)
        if job.enough(quality):
            raise Reached

    with np.load(folder / "data.npz") as file:
        arrays = dict(file)
    reached = None
    try:
        CONTENDERS[contender](name, job, seed, arrays, seen)
    except Reached:
        reached = time.time()
    label = {"jdl": "jdl", "torch": "PyTorch, eager"}[contender]
    return {"label": label, "quality": qualities[-1], "reached": reached}


def jdl(name: str, job: Job, seed: int, arrays: dict[str, np.ndarray], seen: Seen) -> None:
    """A job in jdl."""
    from jdl import train

    train.prepare()
    import jax
    import jax.numpy as jnp
    import optax

    from jdl import data, learners, models, tasks

    rates = jnp.asarray([job.learning_rate(step) for step in range(job.steps)], jnp.float32)

    def rate(step: Any) -> Any:
        return rates[jnp.minimum(step, job.steps - 1)]

    batches: Any
    if name == "gpt_job":
        model: Any = models.gpt(
            vocab_size=int(arrays["size"]), context=CONTEXT, width=WIDTH, depth=DEPTH, num_heads=HEADS
        )
        task = tasks.next_token(model)
        tx = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(
                rate, 0.9, 0.99, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
            ),
        )
        batches = data.windows(arrays["train"], CONTEXT, job.batch_size, seed, anywhere=True)
        test: Any = data.windows_in_order(arrays["test"], CONTEXT, 16 * job.batch_size)
    else:
        model = models.LeNet5(10) if name == "lenet_job" else models.resnet_cifar(20)
        mean, deviation = (255 * arrays[n].reshape(1, 1, 1, -1) for n in ("mean", "deviation"))
        task, tx = tasks.classification(model), optax.adam(rate)
        if name == "cifar_job":
            task = tasks.augmented(task, data.compose(data.random_crop(4), data.random_flip()))
            tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))
        task = tasks.preprocessed(task, lambda x: (x - mean) / deviation)
        batches = data.shuffled(
            {"inputs": arrays["train"], "labels": arrays["train_labels"]}, job.batch_size, seed=seed
        )
        test = data.in_order({"inputs": arrays["test"], "labels": arrays["test_labels"]}, 1000)

    def logger(record: Any) -> None:
        if record["split"] == "test" and record["step"]:
            seen(record[job.metric])

    train.fit(
        learners.gradient(task, tx),
        batches,
        job.steps,
        evaluation={"test": test},
        evaluate_every=job.every,
        loggers=[logger],
        mesh="data:1",
        key=seed,
    )


def pytorch(name: str, job: Job, seed: int, arrays: dict[str, np.ndarray], seen: Seen) -> None:
    """A job in PyTorch, eager, with channels last and a fused optimiser."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(cores())
    torch.manual_seed(seed)
    network, optimizer, batch, test = (_torch_text if name == "gpt_job" else _torch_images)(name, job, arrays)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: job.learning_rate(step) / job.rate)
    for step in range(1, job.steps + 1):
        inputs, labels = batch()
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(network(inputs).flatten(0, -2), labels.flatten()).backward()
        if name == "gpt_job":
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % job.every == 0 or step == job.steps:
            network.eval()
            total = weight = 0.0
            with torch.inference_mode():
                for inputs, labels in test():
                    logits = network(inputs).flatten(0, -2)
                    right = (logits.argmax(-1) == labels.flatten()).sum()
                    loss = cross_entropy(logits, labels.flatten(), reduction="sum")
                    total += float(right if job.metric == "accuracy" else loss)
                    weight += labels.numel()
            network.train()
            seen(total / weight)


def _torch_images(name: str, job: Job, arrays: dict[str, np.ndarray]) -> Any:
    import torch
    from torch.nn.functional import pad

    def images(x: np.ndarray) -> Any:
        found = torch.tensor(x).permute(0, 3, 1, 2).float().div_(255)
        mean, deviation = (torch.tensor(arrays[n]).view(1, -1, 1, 1) for n in ("mean", "deviation"))
        return found.sub_(mean).div_(deviation).contiguous(memory_format=torch.channels_last)

    is_lenet = name == "lenet_job"
    shapes = ((5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10))
    network = (
        torch_models.layers(shapes)
        if is_lenet
        else torch_models.resnet((3, 3, 3), (16, 32, 64), padding_shortcut=True)
    ).to(memory_format=torch.channels_last)
    optimizer: Any = (
        torch.optim.Adam(network.parameters(), job.rate, fused=True)
        if is_lenet
        else torch.optim.SGD(network.parameters(), job.rate, momentum=0.9, weight_decay=5e-4, fused=True)
    )
    train, labels = images(arrays["train"]), torch.tensor(arrays["train_labels"]).long()
    test = images(arrays["test"]), torch.tensor(arrays["test_labels"]).long()
    order: list[Any] = []

    def batch() -> tuple[Any, Any]:
        if not order:
            order.extend(reversed(torch.randperm(len(train)).split(job.batch_size)))
        rows = order.pop()
        if len(rows) < job.batch_size:
            return batch()
        x = train[rows]
        if is_lenet:
            return x, labels[rows]
        top, left = (torch.randint(0, 9, (len(rows), 1)) + torch.arange(32) for _ in range(2))
        mirrored = torch.rand(len(rows), 1) < 0.5
        left = torch.where(mirrored, left.flip(1), left)
        each = torch.arange(len(rows))[:, None, None]
        cropped = (
            pad(x, (4,) * 4).permute(0, 2, 3, 1)[each, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)
        )
        return cropped, labels[rows]

    return network, optimizer, batch, lambda: zip(test[0].split(1000), test[1].split(1000), strict=True)


def _torch_text(name: str, job: Job, arrays: dict[str, np.ndarray]) -> Any:
    import torch

    del name
    network = torch_gpt.gpt(int(arrays["size"]), CONTEXT, WIDTH, DEPTH, HEADS)
    matrices, vectors = ([p for p in network.parameters() if (p.dim() > 1) == big] for big in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=job.rate,
        betas=(0.9, 0.99),
        fused=True,
    )
    train, test = (torch.tensor(arrays[part]).long() for part in ("train", "test"))

    def batch() -> tuple[Any, Any]:
        starts = torch.randint(len(train) - CONTEXT, (job.batch_size,))
        windows = train[starts[:, None] + torch.arange(CONTEXT + 1)]
        return windows[:, :-1], windows[:, 1:]

    def evaluation() -> Any:
        count = (len(test) - 1) // CONTEXT
        inputs = test[: count * CONTEXT].view(count, CONTEXT).split(16 * job.batch_size)
        labels = test[1 : count * CONTEXT + 1].view(count, CONTEXT).split(16 * job.batch_size)
        yield from zip(inputs, labels, strict=True)
        if rest := (len(test) - 1) % CONTEXT:
            yield test[-rest - 1 : -1][None], test[-rest:][None]

    return network, optimizer, batch, evaluation


CONTENDERS: dict[str, Callable[[str, Job, int, dict[str, np.ndarray], Seen], None]] = {
    "jdl": jdl,
    "torch": pytorch,
}

if __name__ == "__main__":
    job_name, who, number, place = sys.argv[1:]
    print(json.dumps(run(job_name, who, int(number), Path(place))))
