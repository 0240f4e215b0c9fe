"""The network whitens, begins as the identity, and computes what a PyTorch twin computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import interop
from jdl.models import AirBench
from jdl.models.airbench import whitening_kernel

NAMES = [
    ("whiten", "whiten"),
    ("group{g}/conv{i}", "groups.{g-1}.conv{i}"),
    ("group{g}/norm{i}", "groups.{g-1}.norm{i}"),
    ("head", "head"),
]


def test_whitened_patches_are_uncorrelated_and_of_equal_variance():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(200, 9, 9, 3)) @ rng.normal(size=(3, 3))
    images = (images + np.roll(images, 1, 2)).astype(np.float32)
    kernel = jnp.asarray(whitening_kernel(images, epsilon=0.0))
    assert kernel.shape == (2, 2, 3, 24)
    y = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    y = np.asarray(y).reshape(-1, 24)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=2e-3)
    np.testing.assert_allclose(y[:, 12:], -y[:, :12], atol=1e-5)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 17x17"):
        AirBench().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


@pytest.mark.parity
def test_equals_pytorch(torch):
    nn = torch.nn

    class Group(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv1, self.conv2 = (
                nn.Conv2d(n, outputs, 3, padding=1, bias=False) for n in (inputs, outputs)
            )
            self.norm1, self.norm2 = (nn.BatchNorm2d(outputs, eps=1e-12) for _ in range(2))

        def forward(self, x):
            x = nn.functional.gelu(self.norm1(nn.functional.max_pool2d(self.conv1(x), 2)))
            return nn.functional.gelu(self.norm2(self.conv2(x)))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.whiten = nn.Conv2d(3, 24, 2)
            self.groups = nn.Sequential(Group(24, 8), Group(8, 12))
            self.head = nn.Linear(12, 5, bias=False)

        def forward(self, x):
            x = self.groups(nn.functional.gelu(self.whiten(x)))
            return self.head(x.amax((2, 3))) / 9

    torch.manual_seed(0)
    twin, model = Twin(), AirBench((8, 12), 5)
    x = np.random.default_rng(0).normal(size=(4, 20, 20, 3)).astype(np.float32)
    labels = np.array([0, 3, 1, 4])
    state = {name: tensor.detach().numpy() for name, tensor in twin.state_dict().items()}
    ignore = ["*norm?.weight"]  # its scales are ones that nothing trains
    variables = interop.load_weights(
        jax.eval_shape(model.init, jax.random.key(0), x), state, NAMES, ignore=ignore
    )
    inputs = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    loss = nn.functional.cross_entropy(twin(inputs), torch.tensor(labels))
    loss.backward()

    def objective(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(4), labels].mean()

    value, grads = jax.value_and_grad(objective)(variables["params"])
    assert value == pytest.approx(loss.item(), abs=1e-5)
    ours = interop.export_weights({"params": grads}, NAMES)
    for name, theirs in twin.named_parameters():
        if name in ours:
            expected = theirs.grad.numpy()
            np.testing.assert_allclose(ours[name], expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)
