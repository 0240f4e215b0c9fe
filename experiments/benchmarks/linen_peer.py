"""Plain Flax: Linen, `TrainState` and a jitted train step, as Flax's own examples have it.

The networks have jdl's names of parameters, so that the same weights fit, and none of its layers.
"""

from __future__ import annotations

import time
from typing import Any

from experiments.benchmarks.harness import Contender, first_losses, jax_memory
from experiments.benchmarks.workloads import Given


def _layers(kernels: Any) -> Any:
    """An MLP or LeNet."""
    import jax
    from flax import linen as nn

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            *hidden, last = kernels
            for shape in hidden:
                if len(shape) == 4:
                    x = nn.Conv(shape[-1], shape[:2], padding="VALID")(x)
                    x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
                else:
                    x = nn.relu(nn.Dense(shape[-1])(x.reshape(x.shape[0], -1)))
            return nn.Dense(last[-1])(x)

    return Layers()


def _resnet(blocks: int) -> Any:
    """The residual network of CIFAR, whose shortcuts pad."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    class ConvNorm(nn.Module):
        features: int
        stride: int = 1

        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = nn.Conv(
                self.features, (3, 3), self.stride, padding=1, use_bias=False, name="conv"
            )(x)  # fmt: skip
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name="norm")(x)

    class Block(nn.Module):
        features: int
        stride: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            h = nn.relu(ConvNorm(self.features, self.stride, name="conv1")(x, train))
            h = ConvNorm(self.features, name="conv2")(h, train)
            if more := self.features - x.shape[-1]:
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
            return nn.relu(h + x)

    class Stage(nn.Module):
        features: int
        stride: int

        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            for b in range(blocks):
                x = Block(self.features, 1 if b else self.stride, name=f"block{b + 1}")(x, train)
            return x

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = nn.relu(ConvNorm(16, name="stem")(x, train))
            for s, width in enumerate((16, 32, 64), 1):
                x = Stage(width, 1 if s == 1 else 2, name=f"stage{s}")(x, train)
            return nn.Dense(10, name="head")(x.mean((1, 2)))

    return ResNet()


def _gpt(context: int, vocab_size: int, width: int, depth: int, num_heads: int) -> Any:
    """A GPT of tied embeddings."""
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            q, k, v = (
                nn.Dense(width, name=name)(x).reshape(*x.shape[:2], num_heads, -1)
                for name in ("query", "key", "value")
            )
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            return nn.Dense(width, name="out")(y.reshape(x.shape))

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            h = nn.gelu(nn.Dense(4 * width, name="expand")(x))
            return nn.Dense(width, name="project")(h)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = x + Attention(name="attention")(nn.LayerNorm(1e-5, name="norm1")(x))
            return x + MLP(name="mlp")(nn.LayerNorm(1e-5, name="norm2")(x))

    class Blocks(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for b in range(depth):
                x = Block(name=f"block{b + 1}")(x)
            return x

    class GPT(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
            table = nn.Embed(vocab_size, width, name="tokens")
            positions = nn.Embed(context, width, name="positions")(jnp.arange(tokens.shape[1])[None])
            x = Blocks(name="blocks")(table(tokens) + positions)
            return table.attend(nn.LayerNorm(1e-5, name="norm")(x))

    return GPT()


def _network(given: Given) -> Any:
    workload = given.workload
    if workload.kernels:
        return _layers(workload.kernels)
    ours = workload.module()
    if workload.kind == "next_token":
        return _gpt(workload.shape[0], workload.classes, ours.width, ours.depth, ours.block.num_heads)
    return _resnet(len({name.split(".")[1] for name in given.weights if name.startswith("layer1.")}))


def train_step(given: Given) -> tuple[Any, Any, Any]:
    """A training step of the workload in plain Flax: the jitted function, its state, and a batch."""
    import jax
    import optax
    from flax.training import train_state

    from jdl import interop

    class TrainState(train_state.TrainState):
        batch_stats: Any

    @jax.jit
    def step(state: TrainState, inputs: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> Any:
            logits, changed = state.apply_fn(
                {"params": params, **state.batch_stats}, inputs, train=True, mutable=["batch_stats"]
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed

        (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=changed), value

    model = _network(given)
    shapes = jax.eval_shape(model.init, jax.random.key(0), given.batches[0][0])
    variables = jax.device_put(interop.load_weights(shapes, given.weights, given.workload.rules))
    params = variables.pop("params")
    state = TrainState.create(
        apply_fn=model.apply, params=params, tx=given.workload.tx(), batch_stats=variables
    )
    return step, state, given.batches[0]


def linen(given: Given) -> Contender:
    """The workload in plain Flax."""
    import jax

    advance, state, _ = train_step(given)
    batches = [jax.device_put(batch) for batch in given.batches]

    def step(i: int) -> jax.Array:
        nonlocal state
        state, value = advance(state, *batches[i % len(batches)])
        return value

    losses, first_step = first_losses(lambda i: [float(step(i))])

    def run(steps: int) -> float:
        start = time.perf_counter()
        for i in range(steps):
            step(i)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return Contender("Flax, TrainState", parameters, losses, run, first_step, jax_memory())
