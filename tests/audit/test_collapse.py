"""The alarms see what is wrong with samples, say so, and are quiet where nothing is."""

import numpy as np
import pytest

from jdl.audit.collapse import collapse_alarm, saturation_alarm
from jdl.audit.neighbours import nearest_mode

CENTRES = np.array([[0, 0], [4, 0], [0, 4], [4, 4.0]])
RNG = np.random.default_rng(0)


def around(modes):
    return CENTRES[modes] + 0.2 * RNG.normal(size=(len(modes), 2))


class Set:
    """An evaluation set of two batches; rows of weight 0 are far away, and must not count."""

    def __len__(self):
        return 2

    def __call__(self, i):
        rows = np.concatenate([around(np.arange(40) % 4), np.full((8, 2), 1e3)])
        return {"inputs": rows, "weights": np.arange(48) < 40}


def seen(samples, **options):
    said = []
    alarm = collapse_alarm(
        np.arange(80), modes=lambda x: nearest_mode(x, CENTRES, 1), tell=said.append, **options
    )
    look = lambda: alarm(lambda latents: samples[latents], Set())
    first = look()
    assert not said or not np.isfinite(samples).all(), "an untrained generator has not collapsed"
    said.clear()
    assert first["signs"] == look()["signs"]
    return first, said


def test_says_nothing_where_all_is_well():
    found, said = seen(around(np.arange(80) % 4))
    assert (found["signs"], found["modes"], said) == (0, 4, [])
    assert abs(found["sample_spread"] - 1) < 0.1


@pytest.mark.parametrize(
    ("samples", "signs"),
    [
        (around(np.zeros(80, int)), ["% as much as the data", "3 of 4 modes have no sample: 1, 2, 3"]),
        (around(np.arange(80) % 3), ["1 of 4 modes have no sample: 3"]),
        (np.repeat(around(np.arange(8) % 4), 10, 0), ["100 % of the samples nearly repeat another"]),
        (np.full((80, 2), np.nan), ["samples are not finite"]),
    ],
)
def test_names_what_it_saw(samples, signs):
    found, (said,) = seen(samples)
    assert said.startswith("collapse: ")
    assert found["signs"] == len(signs) == said.count(";") + 1
    for sign in signs:
        assert sign in said


def test_saturation_is_said_once_each_time_it_begins():
    said = []
    log = saturation_alarm(tell=said.append)
    for step, share in enumerate([0.9, 1.0, 1.0, 0.8, 0.999]):
        log({"step": step, "split": "train", "real_above_fake": share})
        log({"step": step, "split": "test", "real_above_fake": 1.0})
    log({"step": 9, "split": "train", "loss": 1.0})
    assert [text.split(":")[0] for text in said] == ["step 1", "step 4"]


def test_a_discriminator_that_is_always_right_may_still_teach():
    said = []
    log = saturation_alarm(tell=said.append)
    for step, norm in enumerate([20.0, 10.0, 2.1, 1.9, 1.0]):
        log({"step": step, "split": "train", "real_above_fake": 1.0, "generator_grad_norm": norm})
    assert [text.split(":")[0] for text in said] == ["step 3"]
    assert "gradient of the generator 1.9" in said[0]


def test_refuses_samples_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \(3,\) cannot be compared with data of shape \(2,\)"):
        collapse_alarm(np.arange(80))(lambda latents: np.ones((80, 3)), Set())


def test_refuses_thresholds_out_of_range():
    with pytest.raises(ValueError, match="least and slope are shares"):
        saturation_alarm(least=5)
    with pytest.raises(ValueError, match="duplicates a share"):
        collapse_alarm(np.arange(3), duplicates=2)
