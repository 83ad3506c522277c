"""What is compared: one plain ``nn.Module`` a method, ``forward(student, teacher, target) -> scalar``.

Every loss says in ``needs`` what it reads, out of

- ``"logits"``: class scores of both networks, for the same classes;
- ``"layers"``: tapped layers, in pairs; ``"student_layers"``, ``"teacher_layers"``: of one side alone;
- ``"embedding"``: the embedding or one tapped layer;
- ``"classes"``: integer class labels; ``"index"``: the sample index;
- ``"views"``: further views of the batch, those named in its attribute ``views``;
- ``"student_classifier"``, ``"teacher_classifier"``: the linear layer that reads a network's embedding.

``recipe_weight`` is the factor of the CIFAR-100 recipe beside weight 1 on the labels, unless the docstring says otherwise.
"""

from kdlab.losses.feature import AttentionTransfer, Hint
from kdlab.losses.relation import RKDAngle, RKDDistance, SimilarityPreserving
from kdlab.losses.response import DKD, SoftTargets

__all__ = [
    "AttentionTransfer",
    "DKD",
    "Hint",
    "RKDAngle",
    "RKDDistance",
    "SimilarityPreserving",
    "SoftTargets",
]
