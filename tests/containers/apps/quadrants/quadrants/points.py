"""What is learned: whether both coordinates of a point have the same sign, which no straight line tells."""

import numpy as np


def points(seed, count=512):
    """Points in the square from -1 to 1, and 1.0 for each whose coordinates have the same sign."""
    where = np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)
    return where, (where[:, 0] * where[:, 1] > 0).astype(np.float32)
