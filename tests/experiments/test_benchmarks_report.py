"""How fast jdl is beside plain Flax, told in the summary of every run: a report, which no speed can fail."""

import pytest

from experiments.benchmarks import beside_linen


@pytest.mark.parametrize("name", beside_linen.QUICK)
def test_speed_beside_plain_flax_is_reported(name, record_property, monkeypatch):
    monkeypatch.setenv(
        "JDL_PLAIN", "1"
    )  # The choices for a whole process are not made for that of the tests.
    found = beside_linen.ratio(beside_linen.QUICK[name])
    assert found > 0
    record_property("report", f"{name}: jdl's step is {found:.2f} times as fast as plain Flax's")
