"""What is compared: one plain ``nn.Module`` a method, ``forward(student, teacher, target) -> scalar``.

Every loss says in ``needs`` what it reads, out of

- ``"logits"``: class scores of both networks, for the same classes;
- ``"layers"``: tapped layers, in pairs; ``"student_layers"``, ``"teacher_layers"``: of one side alone;
- ``"embedding"``: the embedding or one tapped layer; ``"teacher_embedding"``: of the teacher alone;
- ``"classes"``: integer class labels; ``"index"``: the sample index;
- ``"views"``: further views of the batch, those named in its attribute ``views``;
- ``"student_classifier"``, ``"teacher_classifier"``: the linear layer that reads a network's embedding.

Further class attributes, all but the first where needed:

- ``recipe_weight``: the factor in the CIFAR-100 recipe beside weight 1 on the labels, unless the docstring says
  otherwise;
- ``minimum``: the value where both networks are equal, if not 0; ``None`` where that is no minimum;
- ``layer_count``: how many pairs of layers it takes, if not any number;
- ``order_matters``: the order of the batch changes the value, as samples are compared with their neighbours or each
  draws numbers of its own;
- ``several_teachers``: it is for the layers of an ensemble;
- ``only_views``: it reads what it needs on its views alone, not on the batch itself;
- ``true_gradient``: false where the gradient is on purpose not the derivative of the value: held weights, parts that
  learn against the loss.
"""

from kdlab.losses import feature, relation, response
from kdlab.losses.feature import *  # noqa: F403
from kdlab.losses.relation import *  # noqa: F403
from kdlab.losses.response import *  # noqa: F403

__all__ = [*response.__all__, *feature.__all__, *relation.__all__]
