"""Files of stored outputs: what is read from each format, what is refused, and what the member gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses import TopK
from kdlab.losses.tokens import top_k_of, top_k_rows
from kdlab.members import Stored, save_outputs
from kdlab.members.output_file import read_outputs, writer
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TOKENS, LENGTHS, VOCABULARY = 9, [3, 1, 5], 11


def batch(index: list[int], epoch: int = 0, mask: Tensor | None = None) -> Batch:
    inputs: Any = torch.zeros(len(index), 1) if mask is None else {"input_ids": mask, "attention_mask": mask}
    return Batch(inputs, torch.zeros(len(index)), torch.tensor(index).long(), progress=Progress(epoch, 0))


def given(path: Path, index: list[int], epoch: int = 0, mask: Tensor | None = None, **options: Any) -> Outputs:
    return Stored(str(path), **options)(batch(index, epoch, mask), {})["teacher"]


def test_safetensors_npy_and_parquet_give_their_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    save_file({"logits": LOGITS}, tmp_path / "a.safetensors")
    np.save(tmp_path / "a.npy", LOGITS.numpy().astype("float16"))
    pyarrow.parquet.write_table(pa.table({"logits": LOGITS.tolist(), "text": ["x"] * 6}), tmp_path / "a.parquet")
    for name in ("a.safetensors", "a.parquet"):
        assert torch.equal(given(tmp_path / name, [4, 0]).logits, LOGITS[[4, 0]])
    assert torch.equal(given(tmp_path / "a.npy", [5]).logits, LOGITS[[5]].half().float())
    assert given(tmp_path / "a.npy", [5], kind="embedding").embedding is not None


def test_a_list_of_lists_in_parquet_is_one_row_a_token(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], [[7.0, 8.0], [9.0, 10.0]]]
    pyarrow.parquet.write_table(pa.table({"logits": rows}), tmp_path / "tokens.parquet")
    tensors = read_outputs(tmp_path / "tokens.parquet").tensors
    assert tensors["logits"].tolist() == [row for tokens in rows for row in tokens]
    assert tensors["ends"].tolist() == [2, 3, 5]


def test_probabilities_are_logits_by_their_logarithm(tmp_path: Path) -> None:
    save_outputs(tmp_path / "p.safetensors", probabilities=LOGITS.softmax(1))
    logits = given(tmp_path / "p.safetensors", [0, 3]).logits
    for temperature in (1, 4):
        assert torch.allclose((logits / temperature).softmax(1), (LOGITS[[0, 3]] / temperature).softmax(1))


def test_an_index_reorders_the_rows(tmp_path: Path) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    save_outputs(tmp_path / "i.safetensors", logits=LOGITS[order], index=order)
    assert torch.equal(given(tmp_path / "i.safetensors", [0, 1, 5]).logits, LOGITS[[0, 1, 5]])


def test_views_repeat_by_epoch(tmp_path: Path) -> None:
    with writer(tmp_path / "v.safetensors", {"logits": ((6, 4), torch.float32)}, {"views": 2}) as places:
        places["logits"].copy_(LOGITS)
    for epoch in range(4):
        row = 3 * (epoch % 2) + 1
        assert torch.equal(given(tmp_path / "v.safetensors", [1], epoch).logits, LOGITS[[row]])


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    save_outputs(tmp_path / "w.safetensors", logits=LOGITS)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "w.safetensors")
    assert torch.equal(load_file(tmp_path / "w.safetensors")["logits"], LOGITS)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def interrupted(path: Path) -> None:
    with writer(path, {"logits": ((6, 4), torch.float32)}, {}) as places:
        places["logits"].zero_()
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_written_files_are_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"labels": torch.arange(3), "logits": LOGITS[:3].to(dtype), "embedding": LOGITS[3:, :3].to(dtype)}
    tensors["logits"] = tensors["logits"][:, :1]  # of a size that no number of 8 bytes may follow
    save_outputs(tmp_path / "s.safetensors", **tensors)
    read = load_file(tmp_path / "s.safetensors")  # of the library
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def ragged(values: Tensor) -> tuple[Tensor, Tensor]:
    """A mask (3, 5), padded on either side, and the values of all tokens at their places."""
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]])
    padded = torch.zeros(3, 5, values.shape[1])
    padded[mask.bool()] = values
    return mask, padded


def test_tokens_go_where_the_mask_is_one(tmp_path: Path) -> None:
    values = torch.randn(TOKENS, 2)
    save_outputs(tmp_path / "t.safetensors", logits=values, ends=torch.tensor(LENGTHS).cumsum(0))
    mask, padded = ragged(values)
    assert torch.equal(given(tmp_path / "t.safetensors", [0, 1, 2], mask=mask).logits, padded)
    swapped = given(tmp_path / "t.safetensors", [2, 0], mask=mask[[2, 0]]).logits
    assert torch.equal(swapped, padded[[2, 0]])
    with pytest.raises(InputError, match=r"Sample 1 has 3 tokens, and 1 in .* another tokenizer"):
        given(tmp_path / "t.safetensors", [1], mask=mask[:1])


def test_hidden_states_give_the_heads_logits(tmp_path: Path) -> None:
    hidden, weight, bias = torch.randn(TOKENS, 6), torch.randn(VOCABULARY, 6), torch.randn(VOCABULARY)
    heads = {"head.weight": weight, "head.bias": bias}
    save_outputs(tmp_path / "h.safetensors", hidden=hidden, ends=torch.tensor(LENGTHS).cumsum(0), **heads)
    mask, padded = ragged(hidden)
    logits = given(tmp_path / "h.safetensors", [0, 1, 2], mask=mask).logits
    assert logits.shape == (3, 5, VOCABULARY)
    assert torch.allclose(logits + 0, padded @ weight.T + bias, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("missing", ["rest", "renormalize"])
def test_top_k_of_a_file_is_the_loss_on_its_tokens(tmp_path: Path, k: int, missing: Any) -> None:
    teacher, student = torch.randn(TOKENS, VOCABULARY) * 3, torch.randn(3, 5, VOCABULARY)
    log_p, tokens = top_k_of(teacher, 3)
    ends = torch.tensor(LENGTHS).cumsum(0)
    save_outputs(tmp_path / "k.safetensors", log_probabilities=log_p, tokens=tokens.int(), ends=ends)
    mask, _ = ragged(log_p)
    seen = given(tmp_path / "k.safetensors", [0, 1, 2], mask=mask, num_classes=VOCABULARY)
    labels = torch.where(mask.bool(), 0, -100)
    value = TopK(k, missing)(Outputs(student, mask=mask), seen, labels)
    rows = student[mask.bool()].double()
    expected = top_k_rows(rows, teacher.double().log_softmax(1).topk(k).values, tokens[:, :k], missing).mean()
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    chunked = TopK(k, missing, chunk_size=2)(Outputs(student, mask=mask), seen, labels)
    assert chunked.item() == pytest.approx(value.item(), abs=1e-6)


def test_missing_mass_is_shared_by_the_others(tmp_path: Path) -> None:
    p = torch.tensor([[0.5, 0.3]])
    save_outputs(tmp_path / "m.safetensors", log_probabilities=p.log(), tokens=torch.tensor([[2, 0]]))
    logits = given(tmp_path / "m.safetensors", [0], num_classes=4).logits
    assert torch.allclose(logits.softmax(1), torch.tensor([[0.3, 0.1, 0.5, 0.1]]))
    assert Stored(str(tmp_path / "m.safetensors")).missing_mass() == pytest.approx((0.2, 0.2))
    with pytest.raises(InputError, match="does not say how many classes there are: set num_classes"):
        given(tmp_path / "m.safetensors", [0])


def test_nothing_is_given_in_evaluation(tmp_path: Path) -> None:
    assert Stored(str(tmp_path / "none.npy"))(batch([0])._replace(progress=None), {}) == {}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"scores": LOGITS}, "has none of logits"),
        ({"logits": LOGITS, "embedding": LOGITS[:5]}, "'embedding' has 5 rows, and 'logits' 6"),
        ({"logits": LOGITS, "embedding": torch.zeros(7, 2)}, "'embedding' has 7 rows, and 'logits' 6"),
        ({"logits": LOGITS[0]}, "'logits' must be (rows, width), not (4,)"),
        ({"logits": LOGITS[None]}, "'logits' must be (rows, width), not (1, 6, 4)"),
        ({"logits": LOGITS, "head.weight": LOGITS}, "'hidden' and 'head.weight' belong together"),
        ({"log_probabilities": LOGITS}, "'log_probabilities' and 'tokens' belong together"),
        ({"tokens": LOGITS.long()}, "'log_probabilities' and 'tokens' belong together"),
        ({"log_probabilities": LOGITS, "tokens": LOGITS[:, :3].long()}, "has width 4, and 'tokens' 3"),
        ({"hidden": LOGITS[:, :3], "head.weight": LOGITS}, "'hidden' has width 3, and 'head.weight' 4"),
        ({"logits": LOGITS, "ends": torch.tensor([2, 5, 7])}, "the samples end at token 7, but there are 6 rows"),
        ({"logits": LOGITS, "labels": torch.zeros(7)}, "'labels' has 7 rows for 6 samples"),
        ({"hidden": LOGITS}, "'hidden' and 'head.weight' belong together"),
        ({"hidden": LOGITS, "head.weight": LOGITS[:, :3]}, "'hidden' has width 4, and 'head.weight' 3"),
        ({"logits": LOGITS, "ends": torch.tensor([2, 5])}, "the samples end at token 5, but there are 6 rows"),
        ({"logits": LOGITS, "labels": torch.zeros(5)}, "'labels' has 5 rows for 6 samples"),
        ({"logits": LOGITS, "index": torch.tensor([0, 1, 2, 3, 4, 4])}, "'index' must name each of 0 to 5 once"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, tensors: Any, message: str) -> None:
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, tmp_path / "f.safetensors")
    with pytest.raises(InputError) as caught:
        read_outputs(tmp_path / "f.safetensors")
    assert message in str(caught.value)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no such thing")
    (tmp_path / "x.npy").write_bytes(b"no such thing")
    for name, message in (("x.safetensors", "cannot be read"), ("x.npy", "cannot be read"), ("y.npy", "no file")):
        with pytest.raises(InputError, match=message):
            read_outputs(tmp_path / name)
    for number in (0, 2):
        save_file({"logits": LOGITS}, tmp_path / "z.safetensors", {"kdlab": json.dumps({"format": number})})
        with pytest.raises(InputError, match=f"has format {number}, and this kdlab reads 1"):
            read_outputs(tmp_path / "z.safetensors")
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    (tmp_path / "empty.npy").touch()
    for name in ("objects.npy", "empty.npy"):
        with pytest.raises(InputError, match="cannot be read"):
            read_outputs(tmp_path / name)
    with pytest.raises(InputError, match=r"are in a file .safetensors, .npy, .parquet, not 'x.txt'"):
        read_outputs((tmp_path / "x.npy").rename(tmp_path / "x.txt"))
    save_outputs(tmp_path / "n.safetensors", logits=torch.full((2, 3), torch.nan))
    with pytest.raises(InputError, match="not finite"):
        given(tmp_path / "n.safetensors", [0])
    for index in (-2, -1, 2, 3):
        with pytest.raises(InputError, match=rf"sample indices from {min(index, 0)} to {max(index, 0)}, but .* has 2 "):
            given(tmp_path / "n.safetensors", [0, index])


def test_a_file_that_the_system_does_not_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError("no permission")

    np.save(tmp_path / "a.npy", LOGITS.numpy())
    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(no permission\)"):
        read_outputs(tmp_path / "a.npy")


def test_parquet_that_has_no_rows_of_one_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def written(**columns: Any) -> Path:
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
        return tmp_path / "p.parquet"

    with pytest.raises(InputError, match="lists of 'logits' have length 2 in row 0 and 1 in row 2"):
        read_outputs(written(logits=[[1.0, 2.0], [3.0, 4.0], [5.0]]))
    with pytest.raises(InputError, match="lists of 'logits' have length 1 in row 0 and 2 in row 1"):
        read_outputs(written(logits=[[1.0], [3.0, 4.0]]))
    with pytest.raises(InputError, match="the column 'logits' has 1 empty fields"):
        read_outputs(written(logits=[[1.0], None]))
    with pytest.raises(InputError, match="not finite"):
        given(written(logits=[[1.0, None]]), [0])
    empty = pa.array([], pa.list_(pa.float32()))
    assert read_outputs(written(logits=empty)).tensors["logits"].shape == (0, 0)
    labeled = read_outputs(written(embedding=[[1.0], [2.0]], labels=[4, 5], index=[1, 0])).tensors
    assert [labeled[name].tolist() for name in ("labels", "index")] == [[4, 5], [1, 0]]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        read_outputs(tmp_path / "p.parquet")


@pytest.mark.parametrize("more", range(8))
def test_tensors_begin_at_a_multiple_of_8(tmp_path: Path, more: int) -> None:
    shapes: Any = {"labels": ((3,), torch.int64), "logits": ((3, 1), torch.float16)}
    with writer(tmp_path / "a.safetensors", shapes, {"text": "x" * more}) as places:
        places["labels"].copy_(torch.arange(3))
        places["logits"].copy_(LOGITS[:3, :1])
    read = load_file(tmp_path / "a.safetensors")  # of the library
    assert torch.equal(read["labels"], torch.arange(3))
    assert torch.equal(read["logits"], LOGITS[:3, :1].half())
    content = (tmp_path / "a.safetensors").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0


def test_tokens_have_views_too(tmp_path: Path) -> None:
    values, ends = torch.randn(2 * TOKENS, 2), torch.tensor(LENGTHS).cumsum(0)
    path = tmp_path / "t.safetensors"
    shapes: Any = {"logits": ((2 * TOKENS, 2), torch.float32), "ends": ((3,), torch.int64)}
    with writer(path, shapes, {"views": 2}) as places:
        places["logits"].copy_(values)
        places["ends"].copy_(ends)
    for epoch in range(3):
        mask, padded = ragged(values[TOKENS * (epoch % 2) :][:TOKENS])
        assert torch.equal(given(path, [0, 1, 2], epoch, mask=mask).logits, padded)
    with pytest.raises(InputError, match="the batch has no attention_mask"):
        given(path, [0])


def test_embeddings_alone_have_no_classes_and_no_samples_no_rows(tmp_path: Path) -> None:
    save_outputs(tmp_path / "e.safetensors", embedding=LOGITS)
    seen = given(tmp_path / "e.safetensors", [3, 1])
    assert seen.logits.shape == (2, 0)
    assert torch.equal(seen.embedding, LOGITS[[3, 1]])
    assert given(tmp_path / "e.safetensors", []).embedding.shape == (0, 4)
    with pytest.raises(InputError, match="needs the sample index"):
        Stored(str(tmp_path / "e.safetensors"))(batch([0])._replace(index=None), {})


@pytest.mark.parametrize(("count", "mean"), [(8191, 0.25), (8192, 0.5), (12287, 0.5), (12288, 1 / 3)])
def test_missing_mass_is_of_some_thousand_rows(tmp_path: Path, count: int, mean: float) -> None:
    """Every second row of 8192, every third of 12288: rows leave out 0.5, 0, 0.5, 0, ... or 1/3, ..."""
    missing = torch.where(torch.arange(count) % 2 == 0, 0.5, 0.0)
    if count == 12288:
        missing = torch.where(torch.arange(count) % 3 == 0, 1 / 3, 0.9)
    save_outputs(
        tmp_path / "m.safetensors", log_probabilities=(1 - missing).log()[:, None], tokens=torch.zeros(count, 1).long()
    )
    mass = Stored(str(tmp_path / "m.safetensors")).missing_mass()
    assert mass == pytest.approx((mean, 1 / 3 if count == 12288 else 0.5), rel=1e-3)


def test_no_missing_mass_of_whole_logits(tmp_path: Path) -> None:
    save_outputs(tmp_path / "l.safetensors", logits=LOGITS)
    assert Stored(str(tmp_path / "l.safetensors")).missing_mass() is None
