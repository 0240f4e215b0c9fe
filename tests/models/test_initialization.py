"""What networks give before training: no class is preferred, whatever the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdl import models

CLASSES = 10


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (models.ViT(8, 32, 2, 2, num_classes=CLASSES), 32),
        (models.Mixer(8, 32, 2, 16, 64, num_classes=CLASSES), 32),
        (models.NiN(CLASSES), 32),
        (models.squeezenet(num_classes=CLASSES), 64),
        (models.UNet(CLASSES, width=8, depth=3), 32),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_first_loss_is_that_of_guessing(model, size):
    x = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
    logits, _ = jax.jit(model.init_with_output)(jax.random.key(0), x)
    labels = np.random.default_rng(1).integers(0, CLASSES, logits.shape[:-1])
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1).mean()
    assert float(loss) == pytest.approx(np.log(CLASSES), abs=1.0)


def test_a_unet_keeps_its_signal_on_the_way_down_and_up():
    """Each stage's maps are about as large as the image's values (Ronneberger et al. 2015, section 3)."""
    model, x = models.UNet(0, width=16, depth=3), np.random.default_rng(0).normal(size=(2, 32, 32, 1))
    y, _ = jax.jit(model.init_with_output)(jax.random.key(0), x.astype(np.float32))
    assert 0.3 < float(jnp.sqrt(jnp.square(y).mean())) < 3
