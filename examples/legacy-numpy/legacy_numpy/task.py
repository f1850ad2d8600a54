"""What is learned: which of ten digits an image of 8x8 pixels shows, by multinomial logistic regression.

Plain numpy, and nothing random that is not seeded: the same sites give the same accuracy on every machine.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PIXELS, DIGITS = 64, 10
HELD_OUT = 360  # images that no site has, to judge the common model by
VALIDATION = 0.2  # the share of a site's images that it judges the common model by

Floats = NDArray[np.float64]
Model = list[Floats]  # weights (PIXELS x DIGITS), bias (DIGITS)


@dataclass(frozen=True)
class Images:
    """Pixels between 0 and 1, one row an image, and the digit that each row shows."""

    pixels: Floats
    digits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, rows: "slice | NDArray[np.int64]") -> "Images":
        return Images(self.pixels[rows], self.digits[rows])


def all_images() -> Images:
    """The 1,797 images that scikit-learn ships, in a fixed random order.

    It is the table behind `sklearn.datasets.load_digits`, read without importing scikit-learn: the import takes
    seconds, and a ClientApp may be a fresh process for each message.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("The digits come with scikit-learn: pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    table = table[np.random.default_rng(1797).permutation(len(table))]
    return Images(table[:, :PIXELS] / 16.0, table[:, PIXELS].astype(np.int64))


def held_out() -> Images:
    """The images that the ServerApp judges the common model by."""
    return all_images()[:HELD_OUT]


def site_images(partition_id: int, num_partitions: int) -> tuple[Images, Images]:
    """One site's own images: those it learns from, those it judges by."""
    if not 0 <= partition_id < num_partitions:
        raise ValueError(f"partition-id {partition_id} is not one of the {num_partitions} partitions (0 is the first)")
    own = all_images()[slice(HELD_OUT + partition_id, None, num_partitions)]
    kept = round(len(own) * VALIDATION)
    return own[kept:], own[:kept]


def new_model() -> Model:
    """A model that knows nothing."""
    return [np.zeros((PIXELS, DIGITS)), np.zeros(DIGITS)]


def probabilities(model: Model, pixels: Floats) -> Floats:
    """How likely each image shows each digit."""
    weights, bias = model
    scores = pixels @ weights + bias
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def train(model: Model, images: Images, *, epochs: int, batch_size: int, learning_rate: float, seed: int) -> Model:
    """The model after some epochs of stochastic gradient descent; the one given stays as it is."""
    weights, bias = (array.copy() for array in model)
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        shuffled = order.permutation(len(images))
        for start in range(0, len(images), batch_size):
            batch = images[shuffled[start : start + batch_size]]
            gradient = probabilities([weights, bias], batch.pixels)
            gradient[np.arange(len(batch)), batch.digits] -= 1.0
            gradient /= len(batch)
            weights -= learning_rate * batch.pixels.T @ gradient
            bias -= learning_rate * gradient.sum(axis=0)
    return [weights, bias]


def judge(model: Model, images: Images) -> tuple[float, float]:
    """Mean cross-entropy and the share of images recognized."""
    likely = probabilities(model, images.pixels)
    right = likely[np.arange(len(images)), images.digits]
    loss = float(-np.log(np.maximum(right, 1e-12)).mean())
    return loss, float((likely.argmax(axis=1) == images.digits).mean())
