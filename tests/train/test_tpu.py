"""What TPUs would say to one another: a GPT's step compiled ahead of time for eight of them, and counted."""

import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdl import data, models, tasks, train
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


def step_of(tpus, spec, dtype=None, mode="jit", chunk=None, **options):
    """A step's program, and the number of parameters."""
    mesh = train.make_mesh(spec, tpus)
    model = models.gpt(vocab_size=V, context=T, width=D, depth=2, num_heads=8, scan=True)
    task = tasks.next_token(model, chunk=chunk)
    task = task if dtype is None else tasks.mixed_precision(task, dtype)
    learner = gradient(task, optax.sgd(0.1, momentum=0.9), **options)
    batch = {name: jax.ShapeDtypeStruct((B, T), jnp.int32) for name in ("inputs", "labels")}
    state = jax.eval_shape(learner.init, jax.random.key(0), batch)
    shardings = train.state_shardings(state, mesh)
    step = jax.jit(
        train.distributed(learner.step, mesh, mode, state),
        donate_argnums=0,
        out_shardings=(shardings, NamedSharding(mesh, P())),
    )
    lowered = step.lower(shaped(state, shardings), shaped(batch, train.batch_shardings(batch, mesh)))
    return lowered.compile(), sum(x.size for x in jax.tree.leaves(state.params))


def compiled(*arguments, **options):
    """What a step's devices exchange, the bytes of a device's state, and the number of parameters."""
    program, size = step_of(*arguments, **options)
    return collectives(program.as_text()), program.memory_analysis().argument_size_in_bytes, size


def test_data_parallel_sums_gradients_and_nothing_else(tpus):
    found, _, size = compiled(tpus, "data:8")
    assert found.keys() == {"all-reduce"}
    # The gradient once in float32; the tied embedding's may be summed before its two parts are added.
    assert 4 * size <= found["all-reduce"].bytes <= 1.3 * 4 * size


def test_gradients_of_bfloat16_are_summed_in_bfloat16(tpus):
    found, held, size = compiled(tpus, "data:8", jnp.bfloat16)
    assert found.keys() == {"all-reduce"}
    assert 2 * size <= found["all-reduce"].bytes <= 1.3 * 2 * size
    # The parameters and their momentum are float32.
    assert 8 * size <= held <= 1.1 * 8 * size


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "sums"), [("jit", 4), ("shard_map", 1)])
def test_parts_of_a_batch_are_summed_one_by_one_or_at_the_end(tpus, mode, sums):
    found, _, size = compiled(tpus, "data:8", mode=mode, accumulate=4)
    assert found.keys() == {"all-reduce"}
    assert sums * 4 * size <= found["all-reduce"].bytes <= sums * 1.3 * 4 * size


@pytest.mark.slow
def test_an_axis_of_fsdp_beside_data_gathers_and_scatters_within_it_alone(tpus):
    found, held, size = compiled(tpus, "data:2,fsdp:4")
    assert found.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    assert found["reduce-scatter"].sent == found["reduce-scatter"].bytes * 3
    assert found["all-gather"].sent == found["all-gather"].bytes * 3 / 4
    # What each of four holds is then summed with its like.
    assert found["all-reduce"].bytes <= 1.5 * 4 * size / 4
    assert held <= 1.2 * 8 * size / 4


@pytest.mark.slow
def test_fsdp_gathers_parameters_and_scatters_gradients_of_each_part(tpus):
    accumulate = 2
    found, held, size = compiled(tpus, "fsdp:8", accumulate=accumulate)
    assert found.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
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


@pytest.mark.slow
def test_three_axes_exchange_what_each_of_them_does(tpus):
    found, held, size = compiled(tpus, "data:2,fsdp:2,tensor:2")
    activation = 4 * B * T * D / 4  # Of the examples that a pair of devices has.
    # fsdp: half of what a device of tensor has comes from the other, forward and back.
    assert 2 * 0.9 * size / 2 <= found["all-gather"].bytes <= 2 * 4 * 1.3 * size / 2
    # tensor: two sums a block each way, and one at the ends; data: the share of the gradients.
    assert 9 * activation <= found["all-reduce"].bytes <= 12 * activation + 1.3 * 4 * size / 2
    assert found["all-reduce"].times <= 30
    assert held <= 1.4 * 8 * size / 4


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 16], ids=["whole", "chunked"])
def test_a_split_sequence_gathers_keys_and_values_alone_and_nobody_works_twice(tpus, chunk):
    program, size = step_of(tpus, "sequence:8", chunk=chunk)
    found = collectives(program.as_text())
    # Those of two blocks, forward and back, in bfloat16 or float32.
    both = 2 * 2 * 4 * B * T * D
    assert found["all-gather"].bytes <= 1.1 * 2 * both
    # The gradients of weights, and those of keys and values back to where these are from.
    assert found["all-reduce"].bytes <= 1.1 * (4 * size + both)
    assert found.keys() <= {"all-gather", "reduce-scatter", "all-reduce"}
    flops = [each.cost_analysis()["flops"] for each in (program, step_of(tpus, "data:8", chunk=chunk)[0])]
    assert flops[0] <= 1.1 * flops[1]


def test_a_layer_is_not_split_over_hosts():
    """What would be refused on a pod is refused where its program is only compiled."""
    four = topology("v5e:4x4")
    assert train.make_mesh("data:4,tensor:4", four).shape == {"data": 4, "tensor": 4}
    with pytest.raises(ValueError, match="must lie within one process"):
        train.make_mesh("data:2,tensor:8", four)


def test_what_is_planned_for_several_hosts_is_the_program_of_several_hosts():
    """There the host gives every step its batch; on one, the data lie on the chips."""
    examples = {"inputs": jnp.zeros((4096, 512)), "labels": jnp.zeros(4096, jnp.int32)}
    learner = gradient(tasks.classification(models.MLP((8, 2))), optax.sgd(0.1))

    def planned(name, **options):
        with train.planning(topology(name)) as plan:
            train.fit(learner, data.shuffled(examples, 64), 2, **options)
        return plan.costs["train"].memory.data

    assert planned("v5e:2x4") > 4 * 4096 * 512
    assert planned("v5e:4x4") < 64 * 4 * 512
    with pytest.raises(ValueError, match="evaluators need one process"):
        planned("v5e:4x4", evaluators=[lambda predict, batches: {}])
    with pytest.raises(ValueError, match="4 processes train, and the mesh has devices of 2"):
        planned("v5e:4x4", mesh="data:8")
