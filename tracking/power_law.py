"""Fit a power law to the final losses of runs.

    L(x) = c + a·x^-b

Kaplan et al. 2020 ("Scaling Laws for Neural Language Models") fit it with c = 0, Hoffmann et al. 2022 ("Training
Compute-Optimal Large Language Models") with c > 0, the loss that no model gets below.
"""

import math
from dataclasses import dataclass

import numpy as np

FEWEST = 3  # points of a fit
F_95 = {1: 161.4, 2: 18.5, 3: 10.1, 4: 7.7}  # 95% points of the F distribution of (1, key) degrees of freedom
F_95_MORE = 6.6  # for more degrees of freedom, the point of 5
LOG_ERROR = 1e-6  # relative error of a loss in a log, which has six decimals
EXPONENTS = (0.01, 5.0)  # between which b is searched if c is fitted too


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = c + a·x^-b. Kept is the logarithm of a, because a itself may be too large for a float."""

    log_a: float
    b: float
    c: float = 0.0

    def __call__(self, x):
        return self.c + np.exp(self.log_a - self.b * np.log(x))

    def describe(self, symbol):
        with np.errstate(over="ignore"):
            a = f"{np.exp(self.log_a):.3g}".replace("e+", "e")
        offset = f"{self.c:.3f} + " if self.c else ""
        return f"L = {offset}{a} · {symbol}^{-self.b:.3f}"


def fit_power_law(x, losses):
    """Return the `PowerLaw` with the least squares of log L through (x, losses), each (n,), or None for n < 3.

    c is 0 unless there are at least four points, and with c the sum of squares is smaller by an F-test at 95%.
    """
    if len(x) < FEWEST:
        return None
    slope, log_a = np.polyfit(np.log(x), np.log(losses), 1)
    plain = PowerLaw(log_a, -slope)
    law = fit_with_offset(x, losses) if len(x) > FEWEST else None
    if law is None:
        return plain
    free = len(x) - 3
    variance = max(sum_of_squares(law, x, losses) / free, LOG_ERROR**2)
    gain = sum_of_squares(plain, x, losses) - sum_of_squares(law, x, losses)
    return law if gain > F_95.get(free, F_95_MORE) * variance else plain


def sum_of_squares(law, x, losses):
    return (np.log(losses / law(x)) ** 2).sum()


def fit_with_offset(x, losses):
    """Return the `PowerLaw` with c > 0 that fits best, or None if there is none with b in `EXPONENTS`.

    The squares of the relative errors are minimised: for a given b, c and a solve a linear problem, and b is searched.
    """
    middle = np.log(x).mean()
    z = np.log(x) - middle

    def solve(b):
        columns = np.stack([np.ones(len(z)), np.exp(-b * z)], 1) / losses[:, None]  # (n, 2): of c, of a·exp(-b·middle)
        solution = np.linalg.lstsq(columns, np.ones(len(z)))[0]
        return solution, ((columns @ solution - 1) ** 2).sum()

    low, high = EXPONENTS
    for _ in range(12):
        exponents = np.geomspace(low, high, 41)
        k = int(np.argmin([solve(b)[1] for b in exponents]))
        low, high = exponents[max(k - 1, 0)], exponents[min(k + 1, 40)]
    b = exponents[k]
    c, scale = solve(b)[0]
    inside = EXPONENTS[0] * 1.01 < b < EXPONENTS[1] / 1.01
    if not inside or scale <= 0 or c <= 0:
        return None
    return PowerLaw(math.log(scale) + b * middle, b, c)
