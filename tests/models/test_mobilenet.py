"""MobileNets have the published parameters and multiply-adds, and compute what their references compute."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jdl.interop import export_weights, load_weights, names
from jdl.models import MobileNet, mobilenet_v1, mobilenet_v2, mobilenet_v3
from jdl.models.mobilenet import BlockShape
from jdl.nn import features
from tests.models.parity import compare, shapes, size_of
from tests.models.twins import inverted

# Parameters and millions of multiply-adds. v1: 1.0 as Keras counts it, the rest the paper's table 6; v2:
# torchvision for 1.0 and the paper's table 4; v3: torchvision, and the paper's table 3.
PUBLISHED = {
    "v1 1.0": (functools.partial(mobilenet_v1, 1.0), 4_231_976, 569),
    "v1 0.5": (functools.partial(mobilenet_v1, 0.5), 1.3e6, 149),
    "v1 0.25": (functools.partial(mobilenet_v1, 0.25), 0.5e6, 41),
    "v2 1.0": (functools.partial(mobilenet_v2, 1.0), 3_504_872, 300),
    "v2 1.4": (functools.partial(mobilenet_v2, 1.4), 6.1e6, 585),
    "v3 large": (functools.partial(mobilenet_v3, "large"), 5_483_032, 219),
    "v3 small": (functools.partial(mobilenet_v3, "small"), 2_542_856, 56),
}


@pytest.mark.parametrize("which", PUBLISHED)
def test_has_the_published_size(which):
    make, parameters, millions = PUBLISHED[which]
    counted, multiply_adds = size_of(make(), 224)
    assert counted == parameters if isinstance(parameters, int) else abs(counted - parameters) < 5e4
    assert multiply_adds == pytest.approx(millions, rel=0.05)


LIKE_TENSORFLOW = {"padding": "SAME", "epsilon": 1e-3, "dropout": 0.0}


def test_v1_equals_hugging_face(torch):
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV1Config(
        depth_multiplier=0.25, classifier_dropout_prob=0.0, hidden_act="relu", num_labels=5
    )
    reference = transformers.MobileNetV1ForImageClassification(config)
    model = mobilenet_v1(0.25, 5, **LIKE_TENSORFLOW)
    compare(torch, model, reference, names.MOBILENET_V1_HUGGING_FACE, 64, logits=lambda output: output.logits)


def test_v2_equals_hugging_face(torch):
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, classifier_dropout_prob=0.0, num_labels=5)
    reference = transformers.MobileNetV2ForImageClassification(config)
    model = mobilenet_v2(0.35, 5, **LIKE_TENSORFLOW)
    rules = names.MOBILENET_V2_HUGGING_FACE
    compare(torch, model, reference, rules, 64, batch=2, logits=lambda output: output.logits)


def test_v3_equals_its_twin(torch):
    reference = inverted.mobilenet_v3(torch, inverted.SMALL, 1024, 5)
    model = mobilenet_v3("small", 5, dropout=0.0)
    compare(torch, model, reference, names.MOBILENET_V3_SMALL_TORCHVISION, 64)


@pytest.mark.parametrize("which", ["v2", "v3 large"])
def test_maps_the_names_of_torchvision(torch, which):
    if which == "v2":
        reference, model = inverted.mobilenet_v2(torch, 5), mobilenet_v2(1.0, 5)
        rules = names.MOBILENET_V2_TORCHVISION
    else:
        reference, model = inverted.mobilenet_v3(torch, inverted.LARGE, 1280, 5), mobilenet_v3("large", 5)
        rules = names.MOBILENET_V3_LARGE_TORCHVISION
    state = {name: x.numpy() for name, x in reference.state_dict().items() if "num_batches" not in name}
    back = export_weights(load_weights(shapes(model, 32), state, rules), rules)
    assert back.keys() == state.keys()
    assert all((back[name] == x).all() for name, x in state.items())


@pytest.mark.parametrize("make", [mobilenet_v1, mobilenet_v2, lambda: mobilenet_v3("large")])
def test_every_resolution_is_the_output_of_a_stage(make):
    model, images = make(), jnp.zeros((1, 64, 64, 3))
    stages = [f"stage{s}" for s in range(1, 6)]
    maps = jax.eval_shape(lambda v: features(model, v, images, stages), shapes(model, 64))
    assert [x.shape[1] for x in maps] == [32, 16, 8, 4, 2]


def test_without_classes_gives_pooled_features():
    model = mobilenet_v3("small", num_classes=0)
    outputs = jax.eval_shape(model.apply, shapes(model, 50), jnp.zeros((2, 50, 70, 3)))
    assert outputs.shape == (2, 576)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mobilenet_v3("huge"), "has the sizes large and small; got 'huge'"),
        (lambda: mobilenet_v2(-1.0), "a factor of the channels, above 0 and at most 4; got -1.0"),
        (lambda: mobilenet_v2(10), "got 10. The number of classes is num_classes"),
        (
            lambda: shapes(MobileNet(((BlockShape(8, 0),),), 8, activation="tanh"), 32),
            "activations relu, relu6",
        ),
        (lambda: jax.eval_shape(mobilenet_v1().init, jax.random.key(0), jnp.zeros((1, 3, 64, 64))), "first"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
