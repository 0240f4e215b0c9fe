"""ConvNeXt has the published parameters and multiply-adds, and computes what Hugging Face's computes."""

import jax
import jax.numpy as jnp
import pytest

from jdl.interop import names
from jdl.models import ConvNeXt, convnext
from jdl.nn import features
from tests.models.parity import compare, shapes, size_of


# Parameters: torchvision's documentation. Billions of multiply-adds: the paper's table 1.
@pytest.mark.parametrize(
    ("size", "parameters", "billions"),
    [
        ("tiny", 28_589_128, 4.5),
        ("small", 50_223_688, 8.7),
        ("base", 88_591_464, 15.4),
        ("large", 197_767_336, 34.4),
    ],
)
def test_has_the_published_size(size, parameters, billions):
    counted, multiply_adds = size_of(convnext(size), 224)
    assert counted == parameters
    assert multiply_adds == pytest.approx(1e3 * billions, rel=0.02)


def test_equals_hugging_face(torch):
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(
        depths=[1, 2], hidden_sizes=[8, 16], num_stages=2, layer_norm_eps=1e-6, num_labels=5
    )
    reference = transformers.ConvNextForImageClassification(config)
    model = ConvNeXt((1, 2), (8, 16), num_classes=5)
    compare(torch, model, reference, names.CONVNEXT_HUGGING_FACE, 32, logits=lambda output: output.logits)


def test_every_resolution_is_the_output_of_a_stage():
    model, images = convnext("tiny"), jnp.zeros((1, 64, 64, 3))
    stages = [f"stage{s}" for s in range(1, 5)]
    maps = jax.eval_shape(lambda v: features(model, v, images, stages), shapes(model, 64))
    assert [x.shape[1:] for x in maps] == [(16, 16, 96), (8, 8, 192), (4, 4, 384), (2, 2, 768)]


def test_without_classes_gives_pooled_features():
    model = convnext("tiny", num_classes=0)
    assert jax.eval_shape(model.apply, shapes(model, 50), jnp.zeros((2, 50, 70, 3))).shape == (2, 768)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convnext("huge"), "has the sizes tiny, small, base, large; got 'huge'"),
        (lambda: shapes(ConvNeXt((1,), (8, 16)), 32), "as many widths as depths"),
        (lambda: shapes(convnext("tiny"), 31), "at least 32x32 pixels"),
        (
            lambda: jax.eval_shape(convnext("tiny").init, jax.random.key(0), jnp.zeros((1, 3, 64, 64))),
            "first",
        ),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
