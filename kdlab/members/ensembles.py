"""Ensembles of frozen teachers: as one teacher, or each with a weight of its own for every sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab.deprecation import renamed
from kdlab.errors import InputError
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import ALL_KINDS, CLASSES, Kind


class Ensemble:
    r"""Several teachers as one whose class probabilities are the weighted mean of theirs.

    :math:`z^t = \log \sum_m w_m \operatorname{softmax}(z^m)`, with the teachers' weights :math:`\sum_m w_m = 1`. A
    loss's temperature then softens this mean. (Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network,
    2015, arXiv:1503.02531.)

    A subclass changes :meth:`together`, or gives each teacher :meth:`weights` for every sample: a loss of logits is
    then computed for each teacher m and summed, :math:`L = \sum_m \frac{1}{B} \sum_b w_{mb} \, loss_b(student, m)`,
    which a loss must offer as ``per_sample()``.
    """

    weighted: ClassVar[bool] = True  # whether it takes a weight for each teacher
    kinds: ClassVar[tuple[Kind, ...]] = CLASSES  # the kinds of targets for which it is right
    method: ClassVar[str] = "mean of probabilities"
    paper: ClassVar[str] = "Hinton et al. 2015"

    def together(self, logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Return the teachers' logits as one, in float32 (float64 for float64), as evaluation reports them."""
        log_p = F.log_softmax(_stack(logits), -1)
        return torch.logsumexp(log_p + _spread(weights, log_p).log(), 0)

    def weights(
        self, seen: Sequence[Outputs], weights: Sequence[float], student: Outputs, target: Tensor
    ) -> Tensor | None:
        """Return the weight of each teacher for each sample, (M, B); ``None`` if they teach as one."""
        return None


class MeanOfLogits(Ensemble):
    r"""Several teachers as one whose logits are the weighted mean of theirs: :math:`z^t = \sum_m w_m z^m`."""

    kinds: ClassVar[tuple[Kind, ...]] = ALL_KINDS
    method: ClassVar[str] = "mean of logits"
    paper: ClassVar[str] = "Hinton et al. 2015"

    def together(self, logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Return the mean of the logits, in float32 (float64 for float64)."""
        stacked = _stack(logits)
        return (stacked * _spread(weights, stacked)).sum(0)


class MeanOfLosses(Ensemble):
    r"""The weighted mean of the losses to each teacher: :math:`L = \sum_m w_m \, loss(student, m)`.

    With soft targets its gradient is that of one teacher whose softened probabilities, at the loss's own temperature,
    are the mean of theirs. (S. You, C. Xu, C. Xu, D. Tao, Learning from Multiple Teacher Networks, KDD 2017, whose loss
    on the logits this is; it is the average of the CA-MKD repository's comparison.)
    """

    method: ClassVar[str] = "mean of losses"
    paper: ClassVar[str] = "You et al. 2017"

    def weights(self, seen: Sequence[Outputs], weights: Sequence[float], student: Outputs, target: Tensor) -> Tensor:
        """Return the teachers' own weights, for every sample alike."""
        logits = seen[0].logits
        shares = torch.tensor(weights, device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))
        return shares.unsqueeze(1).expand(-1, len(logits))


class EBKD(Ensemble):
    r"""Entropy-based weights for every sample: confident teachers count more.

    .. math:: w_{mb} = \frac{1}{M} \left( 1 - \frac{H_{mb}}{\sum_j H_{jb}} \right), \qquad
              H_{mb} = - \sum_k p_{mbk} \log p_{mbk}, \quad p_{mb} = \operatorname{softmax}(z^m_b)

    They sum to (M - 1) / M over the teachers. (K. Kwon, H. Na, H. Lee, N. S. Kim, Adaptive Knowledge Distillation Based
    on Entropy, ICASSP 2020; as in the CA-MKD repository.)
    """

    weighted: ClassVar[bool] = False
    method: ClassVar[str] = "entropy-based weights"
    paper: ClassVar[str] = "Kwon et al. 2020"

    def weights(self, seen: Sequence[Outputs], weights: Sequence[float], student: Outputs, target: Tensor) -> Tensor:
        """Return the weights, (M, B)."""
        log_p = F.log_softmax(_stack([each.logits for each in seen]), -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        tiny = torch.finfo(entropy.dtype).tiny  # all teachers entirely sure: each counts alike
        return (1 - (entropy + tiny) / (entropy + tiny).sum(0)) / len(seen)


class CAMKD(Ensemble):
    r"""Confidence-aware weights for every sample, by its label: correct teachers count more.

    .. math:: w_{mb} = \frac{1}{M} \cdot \frac{1 - \operatorname{softmax}_m(CE_{mb})}{M - 1}, \qquad
              CE_{mb} = - \log \operatorname{softmax}(z^m_b)_{y_b}

    (H. Zhang, D. Chen, C. Wang, Confidence-Aware Multi-Teacher Knowledge Distillation, ICASSP 2022, arXiv:2201.00007.)
    The paper's weights lack the factor 1 / M that the released code has. The part on layers is the loss
    :class:`~kdlab.losses.CAMKDFeatures`.

    Args:
        released: with the factor 1 / M.
    """

    weighted: ClassVar[bool] = False
    method: ClassVar[str] = "confidence-aware weights"
    paper: ClassVar[str] = "Zhang et al. 2022"

    def __init__(self, released: bool = True) -> None:
        self.released = released

    def weights(self, seen: Sequence[Outputs], weights: Sequence[float], student: Outputs, target: Tensor) -> Tensor:
        """Return the weights, (M, B)."""
        if target.is_floating_point() or target.dim() != 1:
            raise InputError(
                "CA-MKD weights teachers by their loss on the label, so labels must be class indices (B,)."
            )
        log_p = F.log_softmax(_stack([each.logits for each in seen]), -1)
        loss = -log_p.gather(-1, target.expand(len(seen), -1).unsqueeze(-1)).squeeze(-1)
        shares = (1 - loss.softmax(0)) / (len(seen) - 1)
        return shares / len(seen) if self.released else shares


class AEKD(Ensemble):
    r"""Weights for the batch from the gradients of the student's logits: the direction that suits all teachers.

    With :math:`g_m = \frac{T}{B} (\operatorname{softmax}(z^s / T) - \operatorname{softmax}(z^m / T))`, the gradient of
    the soft-target loss to teacher m,

    .. math:: w = \arg\min_\alpha \tfrac12 \Big\| \sum_m \alpha_m g_m \Big\|^2, \qquad
              \sum_m \alpha_m = 1, \quad 0 \le \alpha_m \le \frac{1}{\nu M}

    which is the dual of a one-class support vector machine (scikit-learn's, on the CPU). A large nu keeps disagreeing
    teachers in; nu = 1 counts all alike. (S. Du et al., Agree to Disagree: Adaptive Ensemble Knowledge Distillation in
    Gradient Space, NeurIPS 2020.)

    Args:
        nu: from 1 / M to 1; ``None`` is 1 / M.
        temperature: T of the gradients, as in the loss.
        normalize: whether gradients are first scaled to length 1.

    Raises:
        InputError: a number out of range.
    """

    weighted: ClassVar[bool] = False
    method: ClassVar[str] = "agreement in gradient space"
    paper: ClassVar[str] = "Du et al. 2020"

    @renamed(normalise="normalize")
    def __init__(self, nu: float | None = None, temperature: float = 4.0, normalize: bool = False) -> None:
        if nu is not None and not 0 < nu <= 1:
            raise InputError(f"AEKD's nu is a share from 1 / (number of teachers) to 1, not {nu}.")
        if not 0 < temperature < float("inf"):
            raise InputError(f"AEKD's temperature must be a finite number above 0, not {temperature}.")
        self.nu, self.temperature, self.normalize = nu, temperature, normalize

    def weights(self, seen: Sequence[Outputs], weights: Sequence[float], student: Outputs, target: Tensor) -> Tensor:
        """Return the weights, (M, B), the same for every sample."""
        count, size = len(seen), len(student.logits)
        nu = 1 / count if self.nu is None else self.nu
        if nu * count < 1 - 1e-9:
            raise InputError(f"AEKD's nu must be at least 1 / {count} with {count} teachers, not {nu}.")
        soft = torch.stack([(each.logits.double() / self.temperature).softmax(-1) for each in seen])
        own = (student.logits.detach().double() / self.temperature).softmax(-1)
        gradients = (own - soft).flatten(1)  # but for T / B, which the shares do not depend on
        if self.normalize:
            gradients = F.normalize(gradients, dim=1)
        shares = _least_norm(gradients @ gradients.T, nu).to(student.logits.device)
        return shares.to(torch.promote_types(student.logits.dtype, torch.float32)).unsqueeze(1).expand(-1, size)


def _least_norm(products: Tensor, nu: float) -> Tensor:
    """Return the shares, (M,), of the shortest mixture of vectors with these inner products, at most 1 / (nu M)."""
    from sklearn.svm import OneClassSVM

    shares = torch.zeros(len(products), dtype=torch.float64)
    size = float(products.diagonal().mean())
    if size == 0 or nu == 1:  # the student agrees with every teacher, or no other shares are allowed
        return shares + 1 / len(products)
    machine = OneClassSVM(kernel="precomputed", nu=nu, tol=1e-10).fit((products / size).cpu().numpy())
    shares[torch.as_tensor(machine.support_).long()] = torch.as_tensor(machine.dual_coef_[0])
    return shares / shares.sum()


def _stack(logits: Sequence[Tensor]) -> Tensor:
    """Return the teachers' logits (M, B, K) in float32 (float64 for float64)."""
    stacked = torch.stack(list(logits))
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))


def _spread(weights: Sequence[float], stacked: Tensor) -> Tensor:
    return stacked.new_tensor(weights).view(-1, *[1] * (stacked.dim() - 1))
