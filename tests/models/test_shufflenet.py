"""ShuffleNet v2 has the published parameters and multiply-adds, and computes what its twin computes."""

import jax
import jax.numpy as jnp
import pytest

from jdl.interop import names
from jdl.models import ShuffleNet, shufflenet_v2
from jdl.nn import features
from tests.models.parity import compare, shapes, size_of
from tests.models.twins import shufflenet


# Parameters: torchvision's documentation. Millions of multiply-adds: the paper's table 8.
@pytest.mark.parametrize(
    ("width", "parameters", "millions"),
    [(0.5, 1_366_792, 41), (1.0, 2_278_604, 146), (1.5, 3_503_624, 299), (2.0, 7_393_996, 591)],
)
def test_has_the_published_size(width, parameters, millions):
    counted, multiply_adds = size_of(shufflenet_v2(width), 224)
    assert counted == parameters
    assert multiply_adds == pytest.approx(millions, rel=0.03)


def test_equals_its_twin(torch):
    reference = shufflenet.shufflenet_v2(torch, (2, 2), (8, 16, 24, 32), 5)
    model = ShuffleNet((2, 2), (16, 24), 8, 32, 5)
    compare(torch, model, reference, names.SHUFFLENET_TORCHVISION, 32, train=True)


def test_every_resolution_is_the_output_of_a_stage():
    model, images = shufflenet_v2(0.5), jnp.zeros((1, 64, 64, 3))
    stages = ("stem", "stage1", "stage2", "stage3")
    maps = jax.eval_shape(lambda v: features(model, v, images, stages), shapes(model, 64))
    assert [x.shape[1:] for x in maps] == [(32, 32, 24), (8, 8, 48), (4, 4, 96), (2, 2, 192)]


def test_without_classes_gives_pooled_features():
    model = shufflenet_v2(0.5, num_classes=0)
    assert jax.eval_shape(model.apply, shapes(model, 50), jnp.zeros((2, 50, 70, 3))).shape == (2, 1024)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shufflenet_v2(3), "has the widths 0.5, 1.0, 1.5, 2.0; got 3"),
        (lambda: shapes(ShuffleNet((1,), (15,)), 32), "as many widths as depths, all even"),
        (lambda: jax.eval_shape(shufflenet_v2().init, jax.random.key(0), jnp.zeros((1, 3, 64, 64))), "first"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
