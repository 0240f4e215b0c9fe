"""What an NVIDIA GPU computes is what the portable formulations do: run by hand where there is one.

JAX_PLATFORMS=cuda,cpu python -m pytest tests/nn/test_gpu.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import models, tasks
from jdl.nn.attention import attention_by_head

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")

B, H, T, K = 2, 4, 256, 64
LENGTHS = np.array([T, 100], np.int32)
SEGMENTS = np.repeat(np.arange(4, dtype=np.int32), T // 4)[None].repeat(B, 0)
MASK = np.random.default_rng(1).random((B, 1, T, T)) < 0.8

CASES = {
    "all": ({}, H),
    "causal": ({"causal": True}, H),
    "groups": ({"causal": True}, 2),
    "window": ({"causal": True, "window": 32}, H),
    "lengths": ({"lengths": LENGTHS}, H),
    "segments": ({"causal": True, "segments": (SEGMENTS, SEGMENTS)}, H),
    "mask": ({"mask": MASK}, H),
}


def given(G):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(B, n, T, K)), jnp.float32) for n in (H, G, G, H)]


@pytest.mark.parametrize("case", CASES)
def test_cudnn_attention_is_attention(case):
    options, G = CASES[case]
    *qkv, weigh = given(G)

    def loss(q, k, v):
        y = attention_by_head(q, k, v, **options)
        return (y.astype(jnp.float32) * weigh).sum(), y

    def computed(dtype):
        arrays = [x.astype(dtype) for x in qkv]
        (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
        return [np.asarray(x, np.float32) for x in (y, *gradients)]

    program = jax.jit(loss).lower(*(x.astype(jnp.bfloat16) for x in qkv)).compile().as_text()
    assert "fmha" in program
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in qkv]
    qkv = rounded
    with jax.default_matmul_precision("highest"):
        expected = computed(jnp.float32)
    for found, wanted in zip(computed(jnp.bfloat16), expected, strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_array_less(np.linalg.norm(found - wanted) / np.linalg.norm(wanted), 0.02)


def test_a_gpt_learns_in_bfloat16_what_it_learns_in_float32():
    tokens = np.random.default_rng(0).integers(0, 64, (8, 129)).astype(np.int32)
    batch = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}

    def gradient(dtype):
        model = models.gpt(vocab_size=64, context=128, width=128, depth=2, num_heads=2, dtype=dtype)
        task = tasks.next_token(model)
        variables = jax.jit(task.init)(jax.random.key(0), batch)
        found = jax.jit(jax.value_and_grad(lambda v: task.loss(v, batch, jax.random.key(1))[0]))(variables)
        return jax.tree.map(lambda x: np.asarray(x, np.float32), found)

    with jax.default_matmul_precision("highest"):
        (loss, gradients) = gradient(None)
    (low, lower) = gradient(jnp.bfloat16)
    assert abs(low / loss - 1) < 2e-3
    found, wanted = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (lower, gradients))
    assert np.linalg.norm(found - wanted) < 0.03 * np.linalg.norm(wanted)


NETWORKS = {
    "resnet": lambda: (models.resnet_cifar(8), (32, 32, 3)),
    "mobilenet_v2": lambda: (models.mobilenet_v2(num_classes=10, dropout=0.0), (64, 64, 3)),
    "lstm": lambda: (models.Recurrent(10, (32, 32), "lstm"), (12, 16)),
    "gru": lambda: (models.Recurrent(10, (32, 32), "gru"), (12, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_computes_what_a_cpu_does(name):
    """The formulations for CPUs beside those that a GPU gets: values and gradients."""
    module, shape = NETWORKS[name]()
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, *shape)).astype(np.float32)
    batch = {"inputs": inputs, "labels": np.arange(4, dtype=np.int32)}
    task = tasks.classification(module)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        variables = jax.device_get(jax.jit(task.init)(jax.random.key(0), batch))

    def computed(device):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            loss = jax.value_and_grad(
                lambda params: task.loss({**variables, "params": params}, batch, jax.random.key(1))[0]
            )
            return jax.device_get(jax.jit(loss)(variables["params"]))

    (there, gradients), (here, expected) = computed(jax.devices()[0]), computed(cpu)
    np.testing.assert_allclose(there, here, rtol=1e-4)
    for found, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(found - wanted) <= 1e-2 * np.linalg.norm(wanted) + 1e-5
