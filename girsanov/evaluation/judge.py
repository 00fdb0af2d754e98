r"""The judge: an independent classifier of digits that says whether samples can be read as what was asked for.

A support vector machine with a Gaussian kernel, ``k(x, y) = exp(-gamma |x - y|^2)``, on the pixels, trained on images
that neither the generator nor a reward has seen. Class probabilities are Platt's: a sigmoid per class of the decision
value, fitted by cross-validation on the judge's own images, normalised over the classes.

It saturates near 100 %: follow its probability and its per-class values too.

References: Cortes & Vapnik 1995, doi:10.1007/BF00994018; Platt 1999, Probabilistic outputs for support vector machines.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from girsanov.errors import GirsanovError


@dataclass(frozen=True)
class Verdict:
    """What a judge says of B samples.

    Attributes:
        accuracy: share of samples whose likeliest class is the one asked for.
        probability: mean probability of the class asked for.
        class_accuracy, class_probability: the same per class, [C]; NaN for classes without samples.
        correct, asked: per sample, bool [B] and float [B] (for intervals).
    """

    accuracy: float
    probability: float
    class_accuracy: Tensor
    class_probability: Tensor
    correct: Tensor
    asked: Tensor


class Judge:
    """An RBF support vector machine on flattened images.

    Args:
        x, labels: training images [N, *D] and classes [N], 0 .. C - 1.
        test_x, test_labels: real images that it is not trained on; ``real_accuracy`` is measured on them.
        C, gamma: penalty and kernel width; the defaults suit 8 x 8 digits in [-1, 1].
        seed: of the folds behind the probabilities.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        test_x: Tensor,
        test_labels: Tensor,
        *,
        C: float = 10.0,
        gamma: float = 0.02,
        seed: int = 0,
    ) -> None:
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.model_selection import StratifiedKFold
        from sklearn.svm import SVC

        if len(x) != len(labels) or len(test_x) != len(test_labels):
            raise GirsanovError("a judge needs one label an image")
        folds = StratifiedKFold(n_splits=3, shuffle=True, random_state=seed)
        machine = CalibratedClassifierCV(SVC(C=C, gamma=gamma), method="sigmoid", cv=folds, ensemble=False)
        self.classes = int(labels.max()) + 1
        self.shape = tuple(x.shape[1:])
        self.machine = machine.fit(_flat(x), labels.cpu().numpy())
        if not np.array_equal(machine.classes_, np.arange(self.classes)):
            raise GirsanovError(f"a judge needs images of every class from 0 to {self.classes - 1}")
        self.real = self(test_x, test_labels)

    @property
    def real_accuracy(self) -> float:
        """Its accuracy on real images that it has not seen."""
        return self.real.accuracy

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities of images [B, *D]: float64 [B, C] on the host."""
        if tuple(x.shape[1:]) != self.shape:
            raise GirsanovError(f"this judge reads images of shape {list(self.shape)}, got {list(x.shape[1:])}")
        flat = _flat(x)
        if not np.isfinite(flat).all():
            raise GirsanovError("the judge got an image that is not finite: look at the sampler and the learning rate")
        return torch.from_numpy(self.machine.predict_proba(flat))

    def __call__(self, x: Tensor, labels: Tensor) -> Verdict:
        """The verdict on images [B, *D] that were asked to show classes [B]."""
        p, labels = self.probabilities(x), labels.cpu()
        if len(labels) != len(p):
            raise GirsanovError(f"{len(labels)} labels for {len(p)} images: give one label an image")
        asked = p[torch.arange(len(p)), labels]
        correct = p.argmax(1) == labels
        member = torch.nn.functional.one_hot(labels, self.classes).double()
        count = member.sum(0)
        rate, mean = (correct.double() @ member) / count, (asked @ member) / count
        return Verdict(float(correct.double().mean()), float(asked.mean()), rate, mean, correct, asked)


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().flatten(1).cpu().double().numpy()
