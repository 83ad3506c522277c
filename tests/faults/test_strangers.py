"""Files made to do harm, which random changes do not hit: links out of a store, classes that do not exist, bombs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.members.row_store import Form, Rows
from kdlab.members.teacher_cache import Store, TeacherCache
from kdlab.models import load_weights


def test_a_link_in_a_store_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "mine"
    outside.write_bytes(bytes(Rows.size(4, 8, "float16")))  # of the right size, all rows absent
    (tmp_path / "store").mkdir()
    (tmp_path / "store/rows").symlink_to(outside)
    with pytest.raises(InputError, match="is a link"):
        Rows(tmp_path / "store/rows", 4, 8, "float16").write(np.arange(4), np.ones((4, 8), "float16"))
    (tmp_path / "store/rows").unlink()
    (tmp_path / "store/rows").symlink_to(tmp_path / "new")  # of a file that is not there
    with pytest.raises(InputError, match="is a link"):
        Rows(tmp_path / "store/rows", 4, 8, "float16")
    assert not any(outside.read_bytes())
    assert not (tmp_path / "new").exists()


def test_a_store_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    def store() -> Store:
        return Store(TeacherCache(str(tmp_path / "cache")), {"a": 1}, {"": 4}, {"logits": Form(3, "float16")})

    folder = store().folder
    folder.parent.mkdir()
    (tmp_path / "mine").mkdir()
    folder.symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a link"):
        store()


@pytest.mark.parametrize("wrong", [-1, 50, 32767])
def test_rows_of_classes_that_do_not_exist(wrong: int, tmp_path: Path) -> None:
    """Their checksum is right; as an index on a GPU they would end the process."""
    form = Form(50, "float16", 5)
    values = form.encode(torch.randn(4, 50)).copy()
    values[2, -2:] = np.array([wrong], np.int16).view(np.uint8)
    rows = Rows(tmp_path / "rows", 4, *form.row)
    rows.write(np.arange(4), values)
    stored, present = rows.read(np.arange(4))
    assert present.all()
    with pytest.raises(InputError, match="classes that do not exist"):
        form.decode(stored, torch.device("cpu"))


def test_a_small_weights_file_that_claims_all_memory(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000, 1000), "bias": torch.zeros(1000)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for name in good.namelist():
            bomb.writestr(name, good.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(InputError, match="is compressed"):
        load_weights(nn.Linear(1000, 1000), tmp_path / "bomb.pt")
