"""How kdlab builds each method of an oracle file: one entry a method name; add an entry to add a method."""

from tests.oracle_methods import (
    feature,
    in_batch,
    llm,
    nlp,
    online,
    projection,
    relation,
    response,
    self_taught,
    teachers,
)
from tests.oracle_methods.method import Method

METHODS: dict[str, Method] = {
    **response.METHODS,
    **feature.METHODS,
    **projection.METHODS,
    **relation.METHODS,
    **teachers.METHODS,
    **self_taught.METHODS,
    **in_batch.METHODS,
    **online.METHODS,
    **nlp.METHODS,
    **llm.METHODS,
}
