"""MLP-Mixer has the published parameters and multiply-adds, and computes what its twin computes."""

import jax
import jax.numpy as jnp
import pytest

from jdl.interop import names
from jdl.models import Mixer, mixer
from tests.models.parity import compare, shapes, size_of
from tests.models.twins import mixer as twin


# Parameters: the paper's table 1 in millions, and for B/16 timm's count. Multiply-adds: timm's, in billions.
@pytest.mark.parametrize(
    ("size", "patch", "parameters", "billions"),
    [
        ("small", 32, 19.1e6, 1.0),
        ("small", 16, 18.5e6, 3.79),
        ("base", 16, 59_880_472, 12.61),
        ("large", 16, 208.2e6, 44.6),
    ],
)
def test_has_the_published_size(size, patch, parameters, billions):
    counted, multiply_adds = size_of(mixer(size, patch), 224)
    assert counted == parameters if isinstance(parameters, int) else abs(counted - parameters) < 5e4
    assert multiply_adds == pytest.approx(1e3 * billions, rel=0.02)


SMALL = Mixer(8, 16, 2, 12, 24, num_classes=5)


def test_equals_its_twin(torch):
    reference = twin.mixer(torch, 16, 8, 16, 2, 12, 24, 5)
    compare(torch, SMALL, reference, names.MIXER_TIMM, 32)


def test_without_classes_gives_pooled_features():
    model = Mixer(8, 16, 1, 12, 24, num_classes=0)
    outputs = jax.eval_shape(model.apply, shapes(model, 32), jnp.zeros((2, 32, 32, 3)))
    assert outputs.shape == (2, 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixer("huge"), "has the sizes small, base, large; got 'huge'"),
        (lambda: shapes(SMALL, 36), "multiples of its patch, 8 pixels; got 36x36"),
        (
            lambda: jax.eval_shape(SMALL.apply, shapes(SMALL, 32), jnp.zeros((1, 64, 64, 3))),
            "the weights are for images of 16 patches; these have 64",
        ),
    ],
)
def test_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
