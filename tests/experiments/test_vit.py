"""The Vision Transformer experiment, short."""

import jax
import numpy as np
import pytest

from experiments import cli, evaluate, vit


def test_the_default_is_the_published_size():
    variables = jax.eval_shape(
        vit.model(vit.Config()).init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)
    )
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == pytest.approx(2.7e6, rel=0.02)


def test_every_part_of_the_recipe_can_be_switched_on_and_it_learns(tmp_path):
    config = vit.Config(
        dataset="digits", steps=150, batch_size=64, learning_rate=3e-3, shift=0, flip=False, patch=2,
        width=32, depth=2, num_heads=2, rand_augment=1.0, mixup=0.1, cutmix=0.1, label_smoothing=0.1,
        dropout=0.05, stochastic_depth=0.1, averaging=0.9, evaluate_every=150,
        execution=cli.Execution(str(tmp_path / "run"), "data:1", quiet=True),
    )  # fmt: skip
    outcome = vit.main(config)
    assert outcome.test["accuracy"] > 0.5
    classifier = evaluate.load(tmp_path / "run")
    assert evaluate.test_metrics(classifier)["accuracy"] == pytest.approx(outcome.test["accuracy"])


def test_heads_must_divide_the_width(tmp_path):
    config = vit.Config(
        dataset="digits", width=30, num_heads=4, execution=cli.Execution(str(tmp_path / "run"), quiet=True)
    )
    with pytest.raises(ValueError, match="heads"):
        vit.main(config)
