"""Writing with a GPT and a cache of keys and values, in jdl and in PyTorch.

``python -m experiments.benchmarks.decoding CONTENDER FOLDER`` is a contender's process; the folder holds
the weights and the prompts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import torch_gpt
from experiments.benchmarks.harness import (
    Contender,
    Worker,
    check_sizes,
    cores,
    jax_memory,
    peak_memory,
    serve,
)

VOCABULARY, CONTEXT, WIDTH, DEPTH, HEADS = 65, 256, 192, 6, 6
PROMPT, NEW = 16, 128
"""Tokens of a prompt, and tokens to write."""
TITLE = f"GPT of {DEPTH} layers, width {WIDTH}, float32: {NEW} tokens after a prompt of {PROMPT}, greedy"
BATCHES = (1, 32)
SAME = 0.9
"""The share of the tokens that contenders must agree on: where two logits tie, rounding decides which is
written, and what follows in the row differs too."""


def _module() -> Any:
    from jdl import models

    return models.gpt(vocab_size=VOCABULARY, context=CONTEXT, width=WIDTH, depth=DEPTH, num_heads=HEADS)


def write(rows: int, folder: Path, seed: int = 0) -> None:
    """Draws weights and prompts, and writes them for the contenders."""
    import jax

    from jdl import interop

    prompts = np.random.default_rng(seed).integers(0, VOCABULARY, (rows, PROMPT)).astype(np.int32)
    variables = jax.jit(_module().init)(jax.random.key(seed), prompts[:1])
    # Larger weights, so that logits are far enough apart for all to choose the same tokens.
    variables = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, variables)
    weights: Any = interop.export_weights(variables, torch_gpt.NAMES)
    np.savez(folder / "weights.npz", **weights)
    np.save(folder / "prompts.npy", prompts)


def read(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The weights and the prompts."""
    with np.load(folder / "weights.npz") as weights:
        return dict(weights), np.load(folder / "prompts.npy")


def check_same(contenders: Sequence[Worker | Contender]) -> None:
    """Checks that all have a model of the same size, and wrote the same tokens but for a few.

    Raises:
        ValueError: naming the first that differs, and by how much.
    """
    check_sizes(contenders)
    first, *others = contenders
    for other in others:
        pairs = zip(first.losses, other.losses, strict=True)
        if (same := np.mean([a == b for a, b in pairs])) < SAME:
            raise ValueError(
                f"{other.label} wrote {same:.1%} of the tokens that {first.label} wrote, less than {SAME:.0%}"
            )


def _contender(
    label: str,
    parameters: int,
    decode: Callable[[], np.ndarray],
    memory: Callable[[], int] = peak_memory,
) -> Contender:
    """One whose "losses" are the tokens that it wrote, row by row."""
    tokens, first_step = decode(), time.time()

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            decode()
        return time.perf_counter() - start

    return Contender(label, parameters, tokens.ravel().tolist(), run, first_step, memory)


def jdl(folder: Path, *, scan: bool = False) -> Contender:
    """`jdl.generation.generate`, with the layers one after another or in a loop."""
    from jdl import train

    train.prepare()
    import jax

    from jdl import generation, interop, nn

    weights, prompts = read(folder)
    model = _module()
    shapes = jax.eval_shape(model.init, jax.random.key(0), prompts[:1])
    variables: Any = interop.load_weights(shapes, weights, torch_gpt.NAMES)
    if scan:
        model, variables = model.clone(scan=True), nn.stack_layers(variables)
    decoder = generation.decoder(model, jax.device_put(variables))

    def decode() -> np.ndarray:
        written = generation.generate(
            decoder, prompts, 0, generation.greedy, max_new_tokens=NEW, capacity=PROMPT + NEW
        )
        return np.asarray(written.tokens_BN)

    parameters = sum(x.size for x in jax.tree.leaves(variables))
    return _contender("jdl, layers in a loop" if scan else "jdl", parameters, decode, jax_memory())


def pytorch(folder: Path) -> Contender:
    """PyTorch, eager: one call a token, keys and values written into a cache of fixed size."""
    import torch

    torch.set_num_threads(cores())
    weights, given = read(folder)
    model = torch_gpt.gpt(VOCABULARY, CONTEXT, WIDTH, DEPTH, HEADS).eval()
    model.load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
    prompts = torch.tensor(given).long()

    @torch.inference_mode()
    def decode() -> np.ndarray:
        caches = model.caches(len(prompts), PROMPT + NEW)
        written, new, start = [], prompts, 0
        for _ in range(NEW):
            logits = model.extend(new, caches, start)
            start += new.shape[1]
            new = logits.argmax(-1, keepdim=True)
            written.append(new)
        return torch.cat(written, 1).numpy()

    return _contender("PyTorch, eager", sum(p.numel() for p in model.parameters()), decode)


CONTENDERS: dict[str, Callable[[Path], Contender]] = {
    "jdl": jdl,
    "jdl-scan": lambda folder: jdl(folder, scan=True),
    "torch": pytorch,
}


def command(contender: str, folder: Path) -> list[str]:
    """Arguments of ``python -m`` for a contender's process."""
    return ["experiments.benchmarks.decoding", contender, str(folder)]


if __name__ == "__main__":
    contender, place = sys.argv[1:]
    serve(CONTENDERS[contender](Path(place)))
