"""Confidence intervals of what a run measures."""

import math


def share_interval(share, n, z=1.96):
    """The 95% confidence interval (low, high) of a share of `n` examples (Wilson 1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - spread, middle + spread
