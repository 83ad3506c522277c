"""Accuracy of classifiers on frozen features, with scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

from kdlab.errors import InputError
from kdlab.probes.extraction import Features


def knn_accuracy(train: Features, test: Features, neighbors: int = 20) -> float:
    """Return the accuracy of a vote of the nearest training samples by cosine, from 0 to 1.

    Neighbors weigh 1 / (1 - cosine), scikit-learn's ``weights="distance"``.

    Args:
        train: features with labels.
        test: those to classify.
        neighbors: how many vote; all where there are fewer.
    """
    from sklearn.neighbors import KNeighborsClassifier

    count = min(neighbors, len(train.labels))
    return _accuracy(KNeighborsClassifier(count, metric="cosine", weights="distance", algorithm="brute"), train, test)


def linear_probe_accuracy(train: Features, test: Features, strength: float = 1.0, iterations: int = 200) -> float:
    """Return the accuracy of logistic regression on standardized features, from 0 to 1.

    Args:
        train: features with labels.
        test: those to classify.
        strength: scikit-learn's ``C``, the inverse of the L2 penalty.
        iterations: at most so many steps of L-BFGS.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _accuracy(
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=iterations, tol=1e-3)), train, test
    )


def _accuracy(classifier: Any, train: Features, test: Features) -> float:
    for name, part in (("training", train), ("test", test)):
        if not bool(part.labels.ge(0).all()):
            raise InputError(f"The {name} samples of a probe need labels: name a data set that has them.")
    if len(set(train.labels.tolist())) < 2:
        raise InputError("A probe needs training samples of two classes at least.")
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the probe
        classifier.fit(train.embedding.numpy(), train.labels.numpy())
    return float(classifier.score(test.embedding.numpy(), test.labels.numpy()))
