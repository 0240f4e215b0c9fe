"""The signal report measures what PyTorch's hooks measure, and tells a network that cannot learn."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from jdl.audit import activations, signal_report
from jdl.models import MLP, TwoConv

RNG = np.random.default_rng(0)
BATCH = {"inputs": RNG.normal(size=(8, 8, 8, 1)).astype(np.float32), "labels": np.arange(8) % 4}
KEY = jax.random.key(1)


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()


def perturbed(module, batch=BATCH):
    variables = module.init(jax.random.key(0), batch["inputs"])
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
    return {**variables, "params": jax.tree.map(noise, variables["params"])}


def torch_twin(torch, params):
    """The normalised TwoConv layer by layer, in Linen's names."""
    nn = torch.nn
    layers = {
        "Conv_0": nn.Conv2d(1, 4, 3, padding=1, bias=False),
        "BatchNorm_0": nn.BatchNorm2d(4),
        "Conv_1": nn.Conv2d(4, 8, 3, padding=1, bias=False),
        "BatchNorm_1": nn.BatchNorm2d(8),
        "Dense_0": nn.Linear(32, 4),
    }
    with torch.no_grad():
        for name, layer in layers.items():
            for theirs, ours in (("weight", "kernel"), ("weight", "scale"), ("bias", "bias")):
                if ours in params[name]:
                    x = np.asarray(params[name][ours])
                    if name == "Dense_0" and ours == "kernel":
                        x = x.reshape(2, 2, 8, 4).transpose(3, 2, 0, 1).reshape(4, 32)
                    elif x.ndim == 4:
                        x = x.transpose(3, 2, 0, 1)
                    getattr(layer, theirs).copy_(torch.tensor(x))
    return layers


@pytest.mark.parametrize("train", [True, False])
def test_equals_torch_with_hooks(torch, train):
    module = TwoConv(4, (4, 8), (3, 3), batch_norm=True)
    variables = perturbed(module)
    report = signal_report(module, variables, BATCH, cross_entropy, KEY, train=train)

    layers, outputs = torch_twin(torch, variables["params"]), {}
    for name, layer in layers.items():
        layer.train(train)

        def keep(_, __, output, name=name):
            output.retain_grad()
            outputs[name] = output

        layer.register_forward_hook(keep)
    x = torch.tensor(BATCH["inputs"].transpose(0, 3, 1, 2))
    for i in range(2):
        x = torch.nn.functional.max_pool2d(layers[f"Conv_{i}"](x), 2)
        x = torch.relu(layers[f"BatchNorm_{i}"](x))
    loss = torch.nn.functional.cross_entropy(layers["Dense_0"](x.flatten(1)), torch.tensor(BATCH["labels"]))
    loss.backward()

    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    measured = {layer.name: layer for layer in report.layers if layer.name != "Dropout_0"}
    assert list(measured) == list(outputs)
    for name, output in outputs.items():
        seen, gradient = output.detach().numpy(), output.grad.numpy()
        parameters = list(layers[name].parameters())
        norm = lambda tensors: float(np.sqrt(sum(np.square(x).sum() for x in tensors)))
        expected = {
            "mean": seen.mean(),
            "std": seen.std(),
            "rms": np.sqrt(np.square(seen).mean()),
            "dead": (gradient == 0).all((0, *range(2, gradient.ndim))).mean(),
            "output_gradient": norm([gradient]),
            "parameter_gradient": norm([p.grad.numpy() for p in parameters]),
            "weight": norm([p.detach().numpy() for p in parameters]),
        }
        for field, value in expected.items():
            assert getattr(measured[name], field) == pytest.approx(value, rel=1e-5, abs=1e-5), (name, field)


class Deep(linen.Module):
    """Twenty equal layers."""

    activation: object
    kernel_init: object

    @linen.compact
    def __call__(self, inputs, train=False):
        x = inputs.reshape(len(inputs), -1)
        for _ in range(20):
            x = self.activation(linen.Dense(64, kernel_init=self.kernel_init)(x))
        return linen.Dense(4)(x)


def of_deep(activation, kernel_init):
    module = Deep(activation, kernel_init)
    batch = {"inputs": RNG.normal(size=(64, 8, 8)).astype(np.float32), "labels": np.arange(64) % 4}
    report = signal_report(module, module.init(jax.random.key(0), batch["inputs"]), batch, cross_entropy, KEY)
    return report.layers[0], report.layers[19]


def test_gradients_vanish_through_sigmoids_and_not_through_relus_with_he_initialisation():
    first, last = of_deep(jax.nn.sigmoid, linen.initializers.glorot_normal())
    assert first.output_gradient < 1e-8 * last.output_gradient
    first, last = of_deep(jax.nn.relu, linen.initializers.he_normal())
    assert 0.2 < first.output_gradient / last.output_gradient < 5
    assert 0.3 < first.rms / last.rms < 3


def test_activations_vanish_through_relus_with_small_weights():
    first, last = of_deep(jax.nn.relu, linen.initializers.normal(0.05))
    assert last.rms < 1e-3 * first.rms


def test_dead_and_blocked_units_are_counted():
    module = MLP((10, 4))
    batch = {"inputs": RNG.normal(size=(200, 5)).astype(np.float32), "labels": np.arange(200) % 4}
    variables = module.init(jax.random.key(0), batch["inputs"])
    variables["params"]["Dense_0"]["bias"] = jnp.zeros(10).at[:3].set(-100.0)
    hidden, *_ = signal_report(module, variables, batch, cross_entropy, KEY).layers
    x = np.asarray(activations(module, variables, batch["inputs"])["Dense_0"])
    assert hidden.dead == pytest.approx(0.3)
    assert (x <= 0).mean() <= hidden.blocked < (x <= 0).mean() + 0.02
    saturated = MLP((10, 4), activation=jnp.tanh)
    variables["params"]["Dense_0"]["bias"] = jnp.zeros(10).at[:3].set(7.0)
    hidden, *_ = signal_report(saturated, variables, batch, cross_entropy, KEY).layers
    assert hidden.dead == 0
    assert 0.2 < hidden.blocked < 0.35


def test_updates_are_compared_with_the_weights():
    module = MLP((6, 4))
    variables = perturbed(module)
    updates = jax.tree.map(lambda p: 0.01 * p, variables["params"])
    report = signal_report(module, variables, BATCH, cross_entropy, KEY, updates=updates)
    assert [layer.update_ratio for layer in report.layers] == [
        pytest.approx(0.01), None, pytest.approx(0.01)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="differ in structure"):
        signal_report(module, variables, BATCH, cross_entropy, KEY, updates={"Dense_0": 0.0})


def test_noise_comes_from_the_key_and_only_in_training():
    module = MLP((32, 4), dropout=0.5)
    variables = perturbed(module)
    of = lambda key, train: signal_report(
        module, variables, BATCH, cross_entropy, jax.random.key(key), train=train
    )
    assert of(0, True) == of(0, True)
    assert of(0, True).loss != of(1, True).loss
    assert of(0, False) == of(1, False)


def test_report_prints_a_table_and_is_json():
    module = TwoConv(4, (4, 8), (3, 3), batch_norm=True, dropout=0.1)
    report = signal_report(module, perturbed(module), BATCH, cross_entropy, KEY)
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", *[row.name for row in report.layers], "loss"]
    assert len({len(line) for line in lines[1:-1] if "Dropout" not in line}) == 1
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert stored["layers"][2]["name"] == "Conv_1"
    assert stored["layers"][2]["shape"] == [8, 4, 4, 8]
    assert stored["layers"][4]["weight"] is None
    assert stored["loss"] == report.loss


def test_says_what_is_wrong():
    module = MLP((6, 4))
    with pytest.raises(ValueError, match=r"loss must give a scalar; it gives shape \(8,\)"):
        signal_report(module, perturbed(module), BATCH, lambda logits, batch: logits.sum(-1), KEY)
