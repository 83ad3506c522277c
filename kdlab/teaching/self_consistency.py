"""Networks taught by themselves on other inputs: another augmentation, or other images of the same class."""

from __future__ import annotations

from kdlab.data import SameClass, SecondView
from kdlab.errors import InputError
from kdlab.members.member import Learner
from kdlab.members.mixtures import Joined
from kdlab.teaching.plan import Edge, Plan, Teaching, Way, heads_of_all


class TwoViews(Teaching):
    r"""Two augmentations of one image that teach each other (DDGSD).

    .. math:: L = \tfrac12 (task_a + task_b) + w \left( loss(a, \mathrm{sg}[b]) + loss(b, \mathrm{sg}[a]) \right)

    Both go through the network in one forward.

    Recipe: :class:`~kdlab.losses.SoftTargets`. The re-implementation (Self-KD-Lib) adds 5e-4 times the squared
    difference of the embeddings' overall means, and halves the label loss once more (``task_weight=0.5``).

    Paper: T.-B. Xu, C.-L. Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019.

    Args:
        detach: whether the teacher's side is detached from the graph.
    """

    ways = (Way("Data-distortion guided (DDGSD)", "Xu and Liu 2019", ("ddgsd",)),)
    view = "second"

    def __init__(self, detach: bool = True) -> None:
        super().__init__()
        self.detach = detach

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with edges between both views of each student."""
        for learner in networks.values():
            learner.views = (self.view,)
        pairs = [(name, f"{name}@{self.view}") for name in heads_of_all(networks)]
        edges = [Edge(*pair, detach=self.detach) for one, other in pairs for pair in ((one, other), (other, one))]
        supervision = {name: 0.5 for pair in pairs for name in pair}
        return Plan(networks, edges, supervision, {self.view: SecondView()})


class Classmate(Teaching):
    r"""Images that are taught by another image of their class (CS-KD).

    .. math:: L = task(x) + w \cdot loss\big(f(x), \mathrm{sg}[f(x')]\big)

    with x' drawn from x's class, with replacement; it may be x, as in the released code. The labels count for x alone.
    Both go through the network in one forward; the released code runs x' in a forward of its own, also in train mode.

    Recipe: :class:`~kdlab.losses.SoftTargets` with T = 4, weight 1 (CIFAR-100, TinyImageNet) or 3 (fine-grained).

    Paper: S. Yun, J. Park, K. Lee, J. Shin, "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR
    2020, arXiv 2003.13964.
    """

    ways = (Way("Class-wise self-distillation (CS-KD)", "Yun et al. 2020", ("cs_kd",)),)
    view = "classmate"

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student to itself on the other image."""
        for learner in networks.values():
            learner.views = (self.view,)
        students = heads_of_all(networks)
        edges = [Edge(name, f"{name}@{self.view}") for name in students]
        return Plan(networks, edges, dict.fromkeys(students, 1.0), {self.view: SameClass()})


class Classmates(Teaching):
    r"""Batches joined with further images of their classes; labels and losses count for all (BAKE).

    .. math:: L = task(X) + w \cdot loss\big(f(X), \mathrm{sg}[f(X)]\big), \qquad X = x \cup x'_1 \cup .. \cup x'_V

    for losses that compare the samples of one batch, which are seldom of one class otherwise.

    Recipe: BAKE three further images (CIFAR-100), :class:`~kdlab.losses.BAKE` with weight 1.

    Paper: Y. Ge, X. Zhang, C. L. Choi, K. C. Cheung, P. Zhao, F. Zhu, X. Wang, R. Zhao, H. Li, "Self-distillation with
    Batch Knowledge Ensembling Improves ImageNet Classification", 2021, arXiv 2104.13298.

    Args:
        count: V, further images a sample.

    Raises:
        InputError: a count below 1.
    """

    ways = (Way("Batch knowledge ensembling (BAKE)", "Ge et al. 2021", ("bake",)),)
    view = "classmates"

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        if count < 1:
            raise InputError(f"Classmates needs at least 1 further image a sample, not {count}.")
        self.count = count

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student on all images to itself."""
        for learner in networks.values():
            learner.views = (self.view,)
        students = heads_of_all(networks)
        joined = {f"{name}@all": Joined(f"{name}@all", name, self.view) for name in students}
        supervision = {}
        for name in students:
            supervision[name], supervision[f"{name}@{self.view}"] = 1 / (1 + self.count), self.count / (1 + self.count)
        edges = [Edge(name, name) for name in joined]
        return Plan({**networks, **joined}, edges, supervision, {self.view: SameClass(self.count)})
