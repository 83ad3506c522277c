"""Networks of timm by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlab.errors import InputError
from kdlab.models import timm_model

timm = pytest.importorskip("timm")


def test_without_classes_it_is_a_backbone() -> None:
    network = timm_model("resnet10t")
    assert network.num_classes == 0
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_weights_that_cannot_be_fetched_are_an_error_or_random(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("We couldn't connect.\nSecond line")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"'resnet10t' cannot be fetched \(We couldn't connect\): give a file"):
        timm_model("resnet10t", pretrained=True)
    with pytest.warns(UserWarning, match="so they are RANDOM"):
        network = timm_model("resnet10t", pretrained="auto")
    assert network.num_classes == 0
