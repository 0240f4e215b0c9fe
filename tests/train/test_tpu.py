"""What TPUs would say to one another: a GPT's step compiled ahead of time for eight of them, and counted."""

import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdl import models, tasks, train
from jdl.learners import gradient
from jdl.train.chips import topology
from jdl.train.collectives import collectives

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason='compiling for a TPU needs libtpu: pip install -e ".[tpu]"',
    ),
]

B, T, D, V = 64, 32, 128, 256


@pytest.fixture(scope="module")
def tpus():
    return topology("v5e:2x4")


def shaped(tree, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def compiled(tpus, spec, **options):
    """What a step's devices exchange, the bytes of a device's state, and the number of parameters."""
    mesh = train.make_mesh(spec, tpus)
    model = models.gpt(vocab_size=V, context=T, width=D, depth=2, num_heads=8, scan=True)
    learner = gradient(tasks.next_token(model), optax.sgd(0.1, momentum=0.9), **options)
    batch = {name: jax.ShapeDtypeStruct((B, T), jnp.int32) for name in ("inputs", "labels")}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    shardings = train.state_shardings(state, mesh)
    step = jax.jit(
        train.distributed(learner.step, mesh, "jit", state),
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, P())),
    )
    program = step.lower(
        shaped(state, shardings), shaped(batch, train.batch_shardings(batch, mesh))
    ).compile()
    size = sum(x.size for x in jax.tree.leaves(state.params))
    return collectives(program.as_text()), program.memory_analysis().argument_size_in_bytes, size


def test_data_parallel_sums_gradients_and_nothing_else(tpus):
    found, _, size = compiled(tpus, "data:8")
    assert found.keys() == {"all-reduce"}
    # The gradient once in float32; the tied embedding's may be summed before its two parts are added.
    assert 4 * size <= found["all-reduce"].bytes <= 1.3 * 4 * size


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_scatters_gradients_of_each_part(tpus):
    accumulate = 2
    found, held, size = compiled(tpus, "fsdp:8", accumulate=accumulate)
    assert found.keys() >= {"all-gather", "reduce-scatter", "all-reduce"}
    assert "all-to-all" not in found
    # Parameters twice for each part, forward and back, in bfloat16 or float32; gradients by the share.
    assert 2 * 2 * 0.9 * size <= found["all-gather"].bytes / accumulate <= 2 * 4 * 1.1 * size
    assert 4 * 0.9 * size / 8 <= found["reduce-scatter"].bytes / accumulate <= 4 * 1.2 * size / 8
    # Sums of whole arrays are of what is small: biases, norms, metrics.
    assert found["all-reduce"].bytes / accumulate <= 0.05 * 4 * size
    # A share of the parameters and of the momentum, and of little else.
    assert held <= 1.2 * 8 * size / 8


@pytest.mark.slow
def test_tensor_parallel_sums_activations_twice_a_block_each_way(tpus):
    found, held, size = compiled(tpus, "tensor:8")
    activation = 4 * B * T * D
    # Forward and back: two a block in a network of two, and one of embeddings or head.
    assert 9.5 * activation <= found["all-reduce"].bytes <= 10.5 * activation
    # What is gathered is the best logit of each part of the vocabulary, for the accuracy.
    assert found.get("all-gather", (0, 0))[1] <= 2 * 4 * B * T * 8
    assert found.keys() <= {"all-reduce", "all-gather"}
    assert held <= 1.4 * 8 * size / 8
