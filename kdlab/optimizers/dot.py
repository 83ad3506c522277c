"""Distillation-oriented training (DOT): more momentum for distillation than for the task (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdlab.errors import InputError


class DOT(torch.optim.Optimizer):
    r"""Distillation-oriented SGD with one momentum buffer for the task's gradient and one for the distillation's.

    .. math:: v_{task} \leftarrow (\mu - \Delta) \, v_{task} + g_{task} + \lambda \theta, \qquad
              v_{kd} \leftarrow (\mu + \Delta) \, v_{kd} + g_{kd}, \qquad
              \theta \leftarrow \theta - lr \, (v_{task} + v_{kd})

    A parameter with only one of the two gradients (an adapter of a loss, a classifier with a loss on layers) has the
    usual momentum :math:`\mu` and weight decay. With delta = 0, DOT is SGD up to rounding.

    kdlab's modules give it the task's gradient before every backward pass (:meth:`split`); the rest of ``.grad`` is
    the distillation's. Used elsewhere without that, it is SGD. Gradient clipping is refused, as it would change the sum
    and not its parts.

    Recipe: momentum 0.9; delta 0.075 on CIFAR-100 and Tiny-ImageNet, 0.09 on ImageNet; with KD at its usual weights.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: :math:`\mu`; momentum + delta must be below 1.
        delta: :math:`\Delta`, from 0 to ``momentum``.
        weight_decay: :math:`\lambda`, added to the task's gradient.

    Raises:
        InputError: a number is out of range.

    Paper: B. Zhao, Q. Cui, R. Song, J. Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023, arXiv 2307.08436.
    Follows mdistiller, without its second full backward pass and its limit to one group of parameters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
    ) -> None:
        if not lr >= 0 or not weight_decay >= 0:
            raise InputError(f"DOT's lr and weight_decay must be at least 0, not {lr} and {weight_decay}.")
        if not 0 <= delta <= momentum or not momentum + delta < 1:
            raise InputError(
                f"DOT's delta must be from 0 to the momentum, and both together below 1, not {delta} and {momentum}."
            )
        defaults = {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self._task: dict[nn.Parameter, Tensor] = {}
        self._distilled: set[nn.Parameter] = set()

    def split(
        self, task: Tensor | None, distilled: Tensor | None, scale: float = 1.0, share: float = 1.0, processes: int = 1
    ) -> None:
        """Add the gradient of the weighted task loss to its part of the next step's, before the whole backward pass.

        Of ``distilled``, the weighted sum of all other terms, only the graph is read. ``scale`` is a gradient scaler's,
        ``share`` that of this batch in the step's gradient; gradients are averaged over ``processes``.
        """
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        if task is not None:
            gradients = torch.autograd.grad(task * (scale * share), parameters, retain_graph=True, allow_unused=True)
        reached = [False] * len(parameters) if distilled is None else reaches(distilled, parameters)
        for parameter, gradient, hit in zip(parameters, gradients, reached, strict=True):
            if hit:
                self._distilled.add(parameter)
            if gradient is not None:
                gradient = gradient / scale if scale != 1 else gradient
                if processes > 1:
                    dist.all_reduce(gradient)
                    gradient /= processes
                self._task[parameter] = self._task[parameter] + gradient if parameter in self._task else gradient

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, including the task's part."""
        super().zero_grad(set_to_none)
        self._task.clear()
        self._distilled.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        assert parameter.grad is not None
        task, distilled = self._task.get(parameter), parameter in self._distilled
        decayed = parameter * group["weight_decay"]
        if distilled and task is not None:
            low, high = group["momentum"] - group["delta"], group["momentum"] + group["delta"]
            velocity = self._velocity(parameter, "task_momentum", low, task + decayed)
            velocity = velocity + self._velocity(parameter, "distillation_momentum", high, parameter.grad - task)
        else:
            name = "distillation_momentum" if distilled else "task_momentum"
            velocity = self._velocity(parameter, name, group["momentum"], parameter.grad + decayed)
        parameter.add_(velocity, alpha=-group["lr"])

    def _velocity(self, parameter: nn.Parameter, name: str, momentum: float, gradient: Tensor) -> Tensor:
        """Update a momentum buffer and return it."""
        state: dict[str, Tensor] = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name].mul_(momentum).add_(gradient)


def reaches(value: Tensor, sources: Sequence[Tensor]) -> list[bool]:
    """Return which of the sources the gradient of ``value`` reaches, read off the graph without computing it."""
    nodes, todo = set[Any](), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [following for following, _ in node.next_functions]
    leaves = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    return [id(source) in leaves or source.grad_fn in nodes for source in sources]
