"""Spotting a step unlike the ones before it: a z-score over a window of past values (as llm.c's outlier detector)."""

import math
from collections import deque

WINDOW = 128  # steps


class OutlierDetector:
    """`is_outlier(value)` judges a value by the last 128, then counts it among them. The first 128 all pass."""

    def __init__(self, limit):
        self.limit = limit  # standard deviations above the mean; 0: nothing is an outlier
        self.values = deque(maxlen=WINDOW)

    def is_outlier(self, value):
        z = self.zscore(value)
        if math.isfinite(value):
            self.values.append(value)
        return self.limit > 0 and z > self.limit

    def zscore(self, value):
        """Standard deviations between `value` and the window's mean; 0 while the window fills."""
        if len(self.values) < WINDOW or not math.isfinite(value):
            return 0.0
        mean = sum(self.values) / WINDOW
        deviation = math.sqrt(sum((v - mean) ** 2 for v in self.values) / WINDOW)
        return (value - mean) / deviation if deviation > 0 else 0.0

    def state_dict(self):
        return {"values": list(self.values)}

    def load_state_dict(self, state):
        self.values = deque(state["values"], maxlen=WINDOW)
