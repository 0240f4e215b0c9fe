"""Equinox on JAX: its own layers, `jax.vmap` over examples, a step under `eqx.filter_jit` that donates.

Its layers lay out weights as PyTorch's do, and the networks have PyTorch's names of them.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Contender, first_losses, jax_memory
from experiments.benchmarks.workloads import Given


def _layers(kernels: Any) -> Any:
    """An MLP or LeNet, of one example."""
    import equinox as eqx
    import jax

    keys = iter(jax.random.split(jax.random.key(0), len(kernels)))

    class Layers(eqx.Module):
        conv: list[eqx.nn.Conv2d]
        dense: list[eqx.nn.Linear]

        def __init__(self) -> None:
            self.conv = [eqx.nn.Conv2d(k[2], k[3], k[:2], key=next(keys)) for k in kernels if len(k) == 4]
            self.dense = [eqx.nn.Linear(*k, key=next(keys)) for k in kernels if len(k) == 2]

        def __call__(self, x: jax.Array) -> jax.Array:
            if self.conv:
                x = x.transpose(2, 0, 1)
                for conv in self.conv:
                    x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(conv(x)))
                x = x.transpose(1, 2, 0)
            x = x.ravel()
            for dense in self.dense[:-1]:
                x = jax.nn.relu(dense(x))
            return self.dense[-1](x)

    return Layers()


def _gpt(context: int, vocab_size: int, width: int, depth: int, num_heads: int) -> Any:
    """A GPT of tied embeddings, of one row of tokens."""
    import equinox as eqx
    import jax

    keys = iter(jax.random.split(jax.random.key(0), 4 * depth + 2))

    class Block(eqx.Module):
        norm1: eqx.nn.LayerNorm
        norm2: eqx.nn.LayerNorm
        qkv: eqx.nn.Linear
        out: eqx.nn.Linear
        expand: eqx.nn.Linear
        project: eqx.nn.Linear

        def __init__(self) -> None:
            self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
            self.qkv = eqx.nn.Linear(width, 3 * width, key=next(keys))
            self.out = eqx.nn.Linear(width, width, key=next(keys))
            self.expand = eqx.nn.Linear(width, 4 * width, key=next(keys))
            self.project = eqx.nn.Linear(4 * width, width, key=next(keys))

        def __call__(self, x: jax.Array) -> jax.Array:
            T = x.shape[0]
            q, k, v = jax.vmap(self.qkv)(jax.vmap(self.norm1)(x)).reshape(T, 3, num_heads, -1).swapaxes(0, 1)
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + jax.vmap(self.out)(y.reshape(T, width))
            h = jax.nn.gelu(jax.vmap(self.expand)(jax.vmap(self.norm2)(x)))
            return x + jax.vmap(self.project)(h)

    class GPT(eqx.Module):
        tokens: eqx.nn.Embedding
        positions: eqx.nn.Embedding
        blocks: list[Block]
        norm: eqx.nn.LayerNorm

        def __init__(self) -> None:
            self.tokens = eqx.nn.Embedding(vocab_size, width, key=next(keys))
            self.positions = eqx.nn.Embedding(context, width, key=next(keys))
            self.blocks = [Block() for _ in range(depth)]
            self.norm = eqx.nn.LayerNorm(width)

        def __call__(self, tokens: jax.Array) -> jax.Array:
            x = jax.vmap(self.tokens)(tokens) + self.positions.weight[: len(tokens)]
            for block in self.blocks:
                x = block(x)
            return jax.vmap(self.norm)(x) @ self.tokens.weight.T

    return GPT()


def _loaded(model: Any, weights: dict[str, np.ndarray]) -> Any:
    """The model with the weights, which are found by the paths to them."""
    import jax

    left = set(weights)

    def read(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        left.discard(name)
        return jax.device_put(weights[name].reshape(leaf.shape))

    model = jax.tree_util.tree_map_with_path(read, model)
    if left:
        raise ValueError(f"the network has no {', '.join(sorted(left))}")
    return model


def equinox(given: Given) -> Contender:
    """The workload in Equinox."""
    import equinox as eqx
    import jax
    import optax

    workload, tx = given.workload, given.workload.tx()
    if workload.kernels:
        model = _layers(workload.kernels)
    else:
        ours = workload.module()
        model = _gpt(workload.shape[0], workload.classes, ours.width, ours.depth, ours.block.num_heads)
    model = _loaded(model, given.weights)
    parameters = sum(x.size for x in jax.tree.leaves(model))
    opt_state = tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit(donate="all-except-first")
    def train_step(batch: Any, model: Any, opt_state: Any) -> Any:
        inputs, labels = batch

        def loss(model: Any) -> jax.Array:
            logits = jax.vmap(model)(inputs)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, opt_state = tx.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, value

    batches = [jax.device_put(batch) for batch in given.batches]

    def step(i: int) -> jax.Array:
        nonlocal model, opt_state
        model, opt_state, value = train_step(batches[i % len(batches)], model, opt_state)
        return value

    losses, first_step = first_losses(lambda i: [float(step(i))])

    def run(steps: int) -> float:
        start = time.perf_counter()
        for i in range(steps):
            value = step(i)
        jax.block_until_ready((model, value))
        return time.perf_counter() - start

    return Contender("Equinox", parameters, losses, run, first_step, jax_memory())
