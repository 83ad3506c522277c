"""The methods of the oracle file that compare layers."""

from __future__ import annotations

from kdlab import losses
from tests.oracle_methods.method import Method

METHODS: dict[str, Method] = {
    "AT": Method(lambda h: losses.AttentionTransfer(h.get("p", 2))),
    "FitNet": Method(
        lambda h: losses.Hint("conv"),
        {
            "regressor_conv_weight": "regressors.0.weight",
            "regressor_conv_bias": "regressors.0.bias",
            "regressor_bn_weight": "regressors.0.norm.weight",
            "regressor_bn_bias": "regressors.0.norm.bias",
        },
    ),
    "FitNet-1x1": Method(lambda h: losses.Hint("1x1"), {"transform_weight": "regressors.0.weight"}),
}
