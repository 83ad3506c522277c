"""Students cut out of a transformer teacher: fewer layers, narrower layers, a smaller vocabulary."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.weights import load_weights
from kdlab.tokenization import check_cut, load_tokenizer, vocabulary_of

_log = logging.getLogger("kdlab.models")

HEADED_ROWS = re.compile(r"\b(query|key|value|[qkv]_proj|[qkv]_lin|c_attn)\.(weight|bias)$")
HEADED_COLUMNS = re.compile(r"\b(attention\.output\.dense|o_proj|out_lin|attn\.c_proj)\.weight$")
INTERMEDIATE = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim")
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")


class Sizes(NamedTuple):
    """Parameters of a transformer: of its token and position embeddings, its layers, and the rest (heads)."""

    embeddings: int
    layers: int
    rest: int

    @property
    def total(self) -> int:
        """Return all parameters."""
        return sum(self)


def sizes_of(network: nn.Module) -> Sizes:
    """Return how many parameters of a transformer are embeddings, layers and the rest; tied ones count once."""
    layers = {id(p) for p in network.get_submodule(layers_name(network)).parameters()}
    tables = [module for module in network.modules() if isinstance(module, nn.Embedding)]
    embeddings = {id(p) for table in tables for p in table.parameters()} - layers
    numbers = {id(p): p.numel() for p in network.parameters()}
    of_tables = sum(numbers[key] for key in embeddings)
    of_layers = sum(numbers[key] for key in layers)
    return Sizes(of_tables, of_layers, sum(numbers.values()) - of_tables - of_layers)


def layers_name(network: Any) -> str:
    """Return the name of the list of a transformer's layers, such as ``"bert.encoder.layer"``.

    Raises:
        InputError: there is no such list.
    """
    count = getattr(getattr(network, "config", None), "num_hidden_layers", None)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return str(name)
    raise InputError(
        f"{type(network).__name__} is no transformer of Hugging Face with config.num_hidden_layers layers in a list, "
        "so no student can be cut out of it."
    )


def evenly(layers: int, of: int) -> list[int]:
    """Return which of ``of`` layers a student with ``layers`` starts from: evenly spread, the first and the last too.

    For 6 of 12 these are the layers that DistilBERT's released code takes.

    >>> evenly(6, 12), evenly(3, 6), evenly(1, 6)
    ([0, 2, 4, 7, 9, 11], [0, 2, 5], [0])
    """
    return [round(place * (of - 1) / max(layers - 1, 1)) for place in range(layers)]


def student_from_teacher(
    teacher: nn.Module,
    layers: int | list[int] | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    intermediate: int | None = None,
    vocabulary: str | None = None,
    weights: str | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Cut a student out of a transformer: BERT, DistilBERT, RoBERTa, GPT-2, Llama and others with their names.

    The student has the teacher's class, and its weights wherever shapes allow; the teacher is not changed.
    Depth: whole layers, as DistilBERT (V. Sanh, L. Debut, J. Chaumond, T. Wolf, 2019, arXiv 1910.01108). Width: of
    every matrix the leading rows and columns, in attention the first heads and of each the leading dimensions. That is
    a start for training, not a good network. Vocabulary: the rows of its tokens, which changes nothing on texts
    of these tokens. In a student that is cut in depth alone most parameters are embeddings; what is smaller is logged.

    Args:
        teacher: a network of :func:`kdlab.models.hugging_face` or transformers.
        layers: number of layers, evenly spread (:func:`evenly`), or the teacher's layers to take; ``None`` for all.
        hidden: width; ``None`` for the teacher's.
        heads: attention heads; by default as many of the teacher's width as fit in.
        intermediate: width inside the feed-forward layers; by default in proportion to ``hidden``.
        vocabulary: folder of a cut tokenizer, see :func:`kdlab.tokenization.cut_tokenizer`; give the same to the
            teacher and to the data.
        weights: a weights file of the student, see :func:`kdlab.models.load_weights`.
        local_files_only: never ask the hub for the teacher's tokenizer.

    Raises:
        InputError: the teacher is no such transformer, a layer or size is out of range, heads do not divide the width,
            or the vocabulary is no part of the teacher's.
    """
    inner = _transformer_in(teacher)
    count = len(inner.get_submodule(layers_name(inner)))
    chosen = (
        evenly(layers, count) if isinstance(layers, int) else list(range(count)) if layers is None else list(layers)
    )
    if not chosen or min(chosen) < 0 or max(chosen) >= count or (isinstance(layers, int) and layers > count):
        raise InputError(f"layers={layers} is out of range: the teacher has {count} layers, 0 to {count - 1}.")
    widths = _widths(inner, hidden, heads, intermediate)
    old_ids = None if vocabulary is None else _old_ids(inner, vocabulary, local_files_only)
    student: nn.Module = _cut(inner, chosen, widths, old_ids)
    if vocabulary is not None:
        _name(student, vocabulary)
    if inner is not teacher:
        student = teacher.around(student)  # type: ignore[operator]
    new, old = sizes_of(student), sizes_of(teacher)
    _log.info(
        "Student of %s: layers %s, %s",
        *(type(teacher).__name__, ", ".join(map(str, chosen)), described_sizes(old, new)),
    )
    return student if weights is None else load_weights(student, weights)


def described_sizes(old: Sizes, new: Sizes) -> str:
    """Describe what is smaller in a student, in parameters.

    >>> described_sizes(Sizes(100, 200, 10), Sizes(100, 50, 10))
    '160 of 310 parameters (embeddings 100 of 100, layers 50 of 200, rest 10 of 10).'
    """
    parts = ", ".join(f"{name} {b:,} of {a:,}" for name, a, b in zip(Sizes._fields, old, new, strict=True))
    return f"{new.total:,} of {old.total:,} parameters ({parts})."


def cut_vocabulary(network: nn.Module, vocabulary: str, local_files_only: bool = False) -> nn.Module:
    """Return a transformer with the tokens of a cut tokenizer alone, see :func:`kdlab.models.hugging_face`.

    Raises:
        InputError: it is no such transformer, or the vocabulary is no part of its.
    """
    inner = _transformer_in(network)
    count = len(inner.get_submodule(layers_name(inner)))
    made: nn.Module = _cut(inner, list(range(count)), {}, _old_ids(inner, vocabulary, local_files_only))
    _name(made, vocabulary)
    return made if inner is network else network.around(made)  # type: ignore[operator]


def _transformer_in(network: Any) -> Any:
    """Return the transformer in a :class:`~kdlab.models.SentenceEncoder`, else the network itself."""
    return getattr(network, "network", network)


def _name(network: Any, folder: str) -> None:
    """Note where the network's tokenizer is."""
    network.config._name_or_path = network.name_or_path = folder


def _old_ids(network: Any, vocabulary: str, local_files_only: bool) -> list[int]:
    """Return the old id of each token of a cut tokenizer."""
    old = vocabulary_of(load_tokenizer(network.name_or_path, local_files_only))
    old_ids = check_cut(load_tokenizer(vocabulary, local_files_only=True), old)
    if max(old_ids) >= network.config.vocab_size:
        raise InputError(
            f"The tokenizer of {network.name_or_path!r} has the id {max(old_ids)}, but the network has "
            f"{network.config.vocab_size} embeddings."
        )
    return old_ids


def _widths(network: Any, hidden: int | None, heads: int | None, intermediate: int | None) -> dict[str, int]:
    """Return the values of the config that change the width."""
    config, widths = network.config, dict[str, int]()
    old: dict[str, int] = {name: getattr(config, name) for name in ("hidden_size", "num_attention_heads")}
    size = hidden or old["hidden_size"]
    number = heads or max(1, old["num_attention_heads"] * size // old["hidden_size"])
    for word, chosen, limit in zip(("hidden", "heads"), (size, number), old.values(), strict=True):
        if not 1 <= chosen <= limit:
            raise InputError(f"{word}={chosen} is out of range: the teacher has {limit}.")
    if size % number:
        raise InputError(f"{number} heads do not divide hidden={size}: give heads too.")
    if (size, number) != (old["hidden_size"], old["num_attention_heads"]):
        widths = {"hidden_size": size, "num_attention_heads": number}
        if getattr(config, "num_key_value_heads", None):
            groups = old["num_attention_heads"] // config.num_key_value_heads
            widths["num_key_value_heads"] = max(1, number // groups)
            if number % widths["num_key_value_heads"]:
                raise InputError(f"{number} heads cannot share {widths['num_key_value_heads']} key-value heads.")
        if getattr(config, "head_dim", None):
            widths["head_dim"] = size // number
    name = next((name for name in INTERMEDIATE if hasattr(config, name)), "")
    inner: int = (getattr(config, name) if name else None) or 4 * old["hidden_size"]
    new = intermediate or inner * size // old["hidden_size"]
    if not 1 <= new <= inner:
        raise InputError(f"intermediate={new} is out of range: the teacher has {inner}.")
    return widths | ({name: new} if name and new != inner else {})


def _cut(teacher: Any, layers: Sequence[int], widths: dict[str, int], old_ids: Sequence[int] | None) -> Any:
    """Build the student and copy what it starts from."""
    place, old = layers_name(teacher), teacher.config
    config = copy.deepcopy(old)
    for name, value in vars(old).items():  # one value for each layer, such as layer_types
        if isinstance(value, list) and len(value) == old.num_hidden_layers:
            setattr(config, name, [value[layer] for layer in layers])
    for name, number in {**widths, "num_hidden_layers": len(layers)}.items():
        setattr(config, name, number)
    if old_ids is not None:
        config.vocab_size = len(old_ids)
        for name in (f"{word}_token_id" for word in SPECIAL):
            if (special := getattr(old, name, None)) is not None:
                specials = special if isinstance(special, list) else [special]
                new = [old_ids.index(number) for number in specials if number in old_ids]
                setattr(config, name, new if isinstance(special, list) else new[0] if new else None)
    student = type(teacher)(config)
    student.to(dtype=teacher.dtype, device=teacher.device)
    state, tables = teacher.state_dict(), _vocabulary_tables(teacher)
    rows = None if old_ids is None else torch.tensor(old_ids, device=teacher.device)
    started = {}
    for name, value in student.state_dict().items():
        source = re.sub(rf"^{re.escape(place)}\.(\d+)\.", lambda at: f"{place}.{layers[int(at[1])]}.", name)
        if source not in state:
            raise InputError(f"The teacher has no {source!r}, which the student needs.")
        whole = state[source]
        if rows is not None and source in tables:
            whole = whole[rows]
        started[name] = _narrowed(whole, value.shape, name, old, config)
    student.load_state_dict(started)
    student.name_or_path = teacher.name_or_path
    return student.train()  # whatever mode the teacher is in


def _vocabulary_tables(network: Any) -> set[str]:
    """Return the names of tensors with a row for each token."""
    inside, outside = network.get_input_embeddings(), network.get_output_embeddings()
    modules = {name: module for name, module in network.named_modules() if module in (inside, outside)}
    names = {f"{name}.{part}" for name, module in modules.items() for part in module.state_dict()}
    holders = {
        name.rpartition(".")[0] for name, module in modules.items() if module is outside and module is not inside
    }
    sizes = {f"{holder}.bias" if holder else "bias" for holder in holders}  # BERT's cls.predictions.bias
    return names | {name for name in sizes if name in network.state_dict()}


def _narrowed(value: Tensor, shape: Sequence[int], name: str, old: Any, new: Any) -> Tensor:
    """Return the leading part of a teacher's tensor; of attention the leading part of the first heads."""
    for axis, size in enumerate(shape):
        if value.shape[axis] == size:
            continue
        turned = name.endswith("weight") and ".c_" in name  # GPT-2's Conv1D has (in, out)
        out = axis == (len(shape) - 1 if turned else 0)
        headed = HEADED_ROWS.search(name) if out else HEADED_COLUMNS.search(name)
        if headed:
            blocks = 3 if "c_attn" in name else 1
            dims = [_head_size(config) for config in (old, new)]
            view = torch.unflatten(value, axis, (blocks, value.shape[axis] // blocks // dims[0], dims[0]))
            view = view.narrow(axis + 1, 0, size // blocks // dims[1]).narrow(axis + 2, 0, dims[1])
            value = view.flatten(axis, axis + 2)
        else:
            value = value.narrow(axis, 0, size)
    return value.clone()


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
