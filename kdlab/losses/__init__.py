"""Distillation losses: one plain ``nn.Module`` for each method, ``forward(student, teacher, target) -> scalar``.

The class attribute ``needs`` lists the inputs of a loss:

- ``"logits"``: class scores of both networks, for the same classes;
- ``"layers"``: tapped layers, in pairs; ``"student_layers"``, ``"teacher_layers"``: of one side alone;
- ``"embedding"``: the embedding, or one tapped layer; ``"teacher_embedding"``: of the teacher alone;
- ``"classes"``: integer class labels; ``"index"``: the sample index;
- ``"views"``: the further views of the batch that the attribute ``views`` names;
- ``"student_classifier"``, ``"teacher_classifier"``: the linear layer on a network's embedding.

Further class attributes; all but the first are optional:

- ``recipe_weight``: weight in its recipe, for images CIFAR-100 beside weight 1 on the labels, unless the docstring says
  otherwise;
- ``minimum``: value where both networks are equal, 0 by default; ``None`` where that is no minimum;
- ``layer_count``: number of pairs of layers, any by default;
- ``order_matters``: true where the value depends on the order of the batch (comparison with the next sample, or random
  numbers drawn for each sample);
- ``couples_samples``: true where the value is not the mean over the samples of a batch, so that several processes give
  another one unless ``Knowledge(..., gather=True)``;
- ``several_teachers``: true where the loss compares the layers of an ensemble;
- ``positions``: an attribute of a loss; ``"attended"`` compares all positions that are no padding, also without a
  label;
- ``chunk_size``: an attribute of a loss; where it is set networks give factored logits
  (:class:`~kdlab.outputs.factored.FactoredLogits`);
- ``reads_sequences``: true where the loss selects the positions that count itself, of logits as the networks give them,
  which may differ in length and classes;
- ``only_views``: true where the loss reads its views alone and not the batch itself;
- ``true_gradient``: false where the gradient is deliberately not the derivative of the value (detached weights,
  adversarial parts).
"""

from kdlab.losses import feature, relation, response, tokens
from kdlab.losses.feature import *  # noqa: F403
from kdlab.losses.relation import *  # noqa: F403
from kdlab.losses.response import *  # noqa: F403
from kdlab.losses.tokens import *  # noqa: F403

__all__ = [*response.__all__, *feature.__all__, *relation.__all__]
__all__ += [name for name in tokens.__all__ if hasattr(getattr(tokens, name), "needs")]
