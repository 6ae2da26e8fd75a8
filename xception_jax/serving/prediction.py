"""The answer of a model to one picture."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    Attributes:
      name: the picture's path or address, or `image 3` of arrays.
      class_names: of the model.
      probabilities: float32 `[classes]`; empty where the picture cannot be used.
      logits: float32 `[classes]`; empty for an exported program, which gives probabilities alone.
      features: float32 `[features]`, what the head is applied to; empty unless asked for.
      heat: float32 `[height, width]`, where the image speaks for its most probable class, see
        `inference.heat_of`; empty unless asked for.
      error: why the picture cannot be used, or empty.
      labels: of a model with sigmoid, the classes whose probability is at least their threshold;
        None with softmax.
    """

    name: str
    class_names: tuple[str, ...]
    probabilities: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    heat: np.ndarray
    error: str = ""
    labels: tuple[str, ...] | None = None

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes and their probabilities; of equals, the first one first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]
