"""The fit recovers known power laws, and has an irreducible loss only where the points determine it."""

import numpy as np
import pytest

from tracking.power_law import PowerLaw, fit_power_law

SIZES = (1e4, 3e4, 1e5, 4e5, 1e6)


@pytest.mark.parametrize("b", [0.05, 0.34, 1.5])
@pytest.mark.parametrize("count", [3, 5])
def test_fit_recovers_a_power_law(b, count):
    x = np.array(SIZES[:count])
    law = fit_power_law(x, 7.5 * x**-b)
    assert law.c == 0
    assert law.b == pytest.approx(b, rel=1e-9)
    assert np.exp(law.log_a) == pytest.approx(7.5, rel=1e-7)


@pytest.mark.parametrize(("b", "c"), [(0.34, 1.69), (0.1, 0.8), (1.2, 3.0)])
def test_fit_recovers_an_irreducible_loss(b, c):
    x = np.array(SIZES)
    law = fit_power_law(x, c + 400 * x**-b)
    assert law.b == pytest.approx(b, rel=1e-5)
    assert law.c == pytest.approx(c, rel=1e-5)
    assert law(5e7) == pytest.approx(c + 400 * 5e7**-b, rel=1e-4)


def test_fit_has_no_irreducible_loss_that_the_points_do_not_determine():
    x, noise = np.array(SIZES), 1 + 0.01 * np.array([1, -1, 1, -1, 1])
    assert fit_power_law(x, (1.0 + 5 * x**-0.1) * noise).c == 0
    assert fit_power_law(x[:3], 1.69 + 400 * x[:3] ** -0.34).c == 0, "three points"
    assert fit_power_law(x, 5 - x**0.1).c == 0, "falls ever faster"
    assert fit_power_law(x, 8 * x**-0.2 - 0.05).c == 0, "a negative one"
    assert fit_power_law(x[:2], x[:2]) is None


def test_fit_of_extreme_numbers_is_finite():
    x = np.array([1e6, 1e6 + 1, 1e6 + 2])
    law = fit_power_law(x, np.array([1e20, 1.0, 1e-20]))
    assert np.isfinite(law(x)).all()
    assert law.describe("N").startswith("L = inf")


def test_power_law_is_described_by_its_formula():
    assert PowerLaw(np.log(7.5), 0.076).describe("N") == "L = 7.5 · N^-0.076"
    assert PowerLaw(np.log(2.5e9), 0.34, 1.69).describe("C") == "L = 1.690 + 2.5e09 · C^-0.340"
