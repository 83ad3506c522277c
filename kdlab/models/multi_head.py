"""The base of networks that have further heads in training."""

from __future__ import annotations

import copy
from functools import partial

from torch import nn

from kdlab.errors import InputError, nearest
from kdlab.outputs import Head, classifier_of


class MultiHead(nn.Module):
    """A network with further heads; the network's own head is the main one, named ``""``.

    A subclass registers the network as ``network`` and each further head as a submodule of the head's name.
    """

    network: nn.Module

    @property
    def heads(self) -> dict[str, Head]:
        """Return the heads by name, as :func:`kdlab.outputs.heads_of` reads them."""
        classifiers = {"": classifier_of(self.network), **self._further_classifiers()}
        return {name: Head(classifier, partial(self._layer, name)) for name, classifier in classifiers.items()}

    def get_classifier(self) -> nn.Module | None:
        """Return the main head's classifier."""
        return classifier_of(self.network)

    def alone(self, head: str = "") -> nn.Module:
        """Return a copy of the network without its further heads, or of one further head with the layers that it needs.

        Raises:
            InputError: there is no such head.
        """
        if head not in self.heads:
            raise InputError(f"There is no head {head!r}; the nearest names are {nearest(head, self.heads)}.")
        return self._alone(head) if head else copy.deepcopy(self.network)

    def _further_classifiers(self) -> dict[str, nn.Module | None]:
        """Return the classifiers of the further heads by name."""
        raise NotImplementedError(f"{type(self).__name__} must define _further_classifiers().")

    def _layer(self, head: str, name: str) -> str:
        """Return the name in this module of the layer that a head calls ``name``."""
        raise NotImplementedError(f"{type(self).__name__} must define _layer().")

    def _alone(self, head: str) -> nn.Module:
        """Return a copy of a further head as a network of its own."""
        raise NotImplementedError(f"{type(self).__name__} must define _alone().")
