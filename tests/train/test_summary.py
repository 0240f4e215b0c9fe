"""The summary counts what the papers and the compiler count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jdl import models, nn, tasks
from jdl.train import summary


def image_batch(size, channels=1, B=2):
    return {"inputs": np.zeros((B, size, size, channels), np.float32), "labels": np.zeros(B, np.int32)}


@pytest.mark.parametrize(
    ("module", "size", "params", "multiply_adds"),
    [
        # By hand: 28*28*6*25 + 10*10*16*25*6 + 400*120 + 120*84 + 84*10.
        (models.LeNet5(), 32, 61_706, 117_600 + 240_000 + 48_000 + 10_080 + 840),
        (models.MLP((300, 100, 10)), 28, 266_610, 784 * 300 + 300 * 100 + 100 * 10),
    ],
)
def test_totals(module, size, params, multiply_adds):
    found = summary(tasks.classification(module), image_batch(size))
    assert (found.params, found.multiply_adds) == (params, multiply_adds)
    assert sum(layer.params for layer in found.layers) == params
    assert sum(layer.multiply_adds for layer in found.layers) == multiply_adds


def test_lenet_layer_by_layer():
    found = summary(tasks.classification(models.LeNet5()), image_batch(32))
    assert [(layer.name, layer.output) for layer in found.layers] == [
        ("Conv_0", (28, 28, 6)),
        ("Conv_1", (10, 10, 16)),
        ("Dense_0", (120,)),
        ("Dense_1", (84,)),
        ("Dense_2", (10,)),
    ]
    assert "61,706" in str(found)


class Nested(linen.Module):
    """Two levels, a grouped convolution, a loop and a collection beside the parameters."""

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Conv(8, (3, 3), feature_group_count=4, name="grouped")(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Sequential([linen.Dense(16), linen.Dense(16)], name="inner")(x.mean((1, 2)))
        kernel = self.param("kernel", linen.initializers.ones, (16, 16))
        x, _ = jax.lax.scan(lambda x, _: (x @ kernel, None), x, length=5)
        return x


def test_nested_modules_groups_loops_and_collections():
    found = summary(tasks.classification(Nested()), image_batch(4, 4))
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["grouped"].multiply_adds == 4 * 4 * 8 * 9 * 1
    assert by_name["inner/Dense_0"][2:] == (8 * 16 + 16, 8 * 16)
    assert by_name["(whole)"].multiply_adds == 5 * 16 * 16
    assert by_name["(whole)"].params == 256
    assert found.other == 16


def test_depthwise_convolutions_count_in_every_formulation():
    layer = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)
    found = summary(tasks.classification(Pooled(layer)), {"inputs": np.zeros((2, 6, 6, 8), np.float32)})
    assert found.multiply_adds == 6 * 6 * 8 * 9


class Pooled(linen.Module):
    """A layer, and the means of its maps."""

    layer: linen.Module

    def __call__(self, x, train=False):
        return self.layer(x).mean((1, 2))


def test_it_agrees_with_the_compiler():
    task, batch = tasks.classification(models.MLP((64, 32, 10))), image_batch(8)
    variables = task.init(jax.random.key(0), batch)
    cost = jax.jit(task.predict).lower(variables, jnp.asarray(batch["inputs"])).compile().cost_analysis()
    # The compiler counts two operations a multiply-add, and the elementwise work too.
    counted = 2 * 2 * summary(task, batch).multiply_adds
    assert counted <= cost["flops"] <= 1.05 * counted
