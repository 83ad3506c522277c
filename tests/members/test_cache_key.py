"""The teacher cache's key, its size on disk, and processes that share one."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.members.row_store import Rows
from kdlab.members.teacher_cache import Store, TeacherCache, plan_disk
from kdlab.modules.cache_setup import describe
from kdlab.outputs import Outputs

CPU = torch.device("cpu")


class Scaled(nn.Module):
    """A layer whose repr says nothing of what it does."""

    def __init__(self, factor: float = 2.0, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.factor, self.activation, self.odd = factor, activation, (object(),)
        self.register_buffer("shift", torch.zeros(3), persistent=False)


def network(kind: type[nn.Module] = nn.ReLU, **scaled: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), kind(), Scaled(**scaled), nn.Linear(4, 2))


def flipped(net: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        net[0].weight.view(torch.int32)[3, 2, 2, 2] ^= 1  # the last
    return net


def buffer(net: nn.Sequential, layer: int, name: str) -> nn.Sequential:
    getattr(net[layer], name)[1] += 1
    return net


def rebuffered(net: nn.Sequential, name: str, value: Tensor) -> nn.Sequential:
    del net[3].shift
    net[3].register_buffer(name, value, persistent=False)
    return net


def twice(net: nn.Sequential) -> nn.Sequential:
    net[3].register_buffer("again", net[3].shift, persistent=False)  # the same tensor
    return net


def reshaped(net: nn.Sequential) -> nn.Sequential:
    net[4].weight.data = net[4].weight.data.reshape(4, 2)  # the same bytes, and the same repr
    return net


CHANGES: dict[str, Callable[[], nn.Module]] = {
    "weight bit": lambda: flipped(network()),
    "buffer": lambda: buffer(network(), 1, "running_mean"),
    "passing buffer": lambda: buffer(network(), 3, "shift"),
    "architecture": lambda: network(nn.GELU),
    "shape": lambda: reshaped(network()),
    "dtype": lambda: network().bfloat16(),
    "dtype of zeros": lambda: rebuffered(network(), "shift", torch.zeros(3, dtype=torch.int32)),
    "name": lambda: rebuffered(network(), "shifts", torch.zeros(3)),
    "second name": lambda: twice(network()),
    "number": lambda: network(factor=3.0),
    "function": lambda: network(activation=F.gelu),
    "place": lambda: nn.Sequential(*[network()[each] for each in (1, 0, 2, 3, 4)]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_network_changes_its_description(change: str) -> None:
    assert describe(CHANGES[change]()) != describe(network())


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"norm_first": True}])
def test_what_a_layer_computes_without_saying_so(options: dict[str, Any]) -> None:
    def layer(**options: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(8, 2, 8, **options)

    assert describe(layer(**options)) != describe(layer())


def test_the_same_in_any_form() -> None:
    net = network()
    plain = describe(net)
    assert plain == describe(network())
    assert plain == describe(copy.deepcopy(net).to(memory_format=torch.channels_last))
    assert plain == describe(net.eval().requires_grad_(False))
    if torch.cuda.is_available():
        assert plain == describe(copy.deepcopy(net).cuda())
    net[0].weight.data = net[0].weight.data.transpose(2, 3).contiguous().transpose(2, 3)
    net[0].register_full_backward_hook(lambda *_: None)
    assert plain == describe(net)
    json.dumps(plain)


def test_all_dtypes_are_hashed() -> None:
    net = nn.Module()
    for number, dtype in enumerate((torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.complex64)):
        net.register_buffer(f"buffer{number}", torch.ones(2, 3, dtype=dtype))
    net.register_buffer("scalar", torch.tensor(1.0))
    net.register_buffer("empty", torch.ones(0))
    before = describe(net)
    for name, value in net.named_buffers():
        if value.numel():
            changed = copy.deepcopy(net)
            getattr(changed, name).flatten()[-1:].zero_()
            assert describe(changed) != before


def test_refuses_a_memory_address() -> None:
    class Odd(nn.Module):
        def extra_repr(self) -> str:
            return repr(object())

    with pytest.raises(InputError, match=r"memory address \('.*Odd: Odd\(<object object at 0x...'\)"):
        describe(Odd())


class Stateful(nn.Linear):
    """A layer with a state that is no tensor."""

    def __init__(self, state: object) -> None:
        torch.manual_seed(0)
        super().__init__(2, 2)
        self.state = state

    def get_extra_state(self) -> object:
        return self.state


def test_extra_state_is_part_of_weights_and_text() -> None:
    one, two = (describe(Stateful({"scale": scale})) for scale in (1, 2))
    assert one["weights"] != two["weights"]
    assert one["network"] == "Stateful: Stateful(in_features=2, out_features=2, bias=True)\n_extra_state: {'scale': 1}"
    with pytest.raises(InputError, match="memory address"):
        describe(Stateful(object()))


def key(folder: Path, teacher: object = 0, data: object = 0, rows: int = 9, **options: Any) -> str:
    cache = TeacherCache(str(folder), **options)
    forms = cache.forms(Outputs(torch.zeros(1, 10)), False)
    return Store(cache, {"teacher": teacher, "data": {"data": data}}, {"": rows}, forms).folder.name


def test_the_key_depends_on_teacher_data_dtype_and_top_k_alone(tmp_path: Path) -> None:
    plain = key(tmp_path)
    assert len(plain) == 32
    different = [{"teacher": 1}, {"data": 1}, {"rows": 8}, {"dtype": "float32"}, {"top_k": 3}, {"top_k": 2}]
    keys = [key(tmp_path, **each) for each in different]  # type: ignore[arg-type]
    assert len({plain, *keys}) == 7
    for each in ({"views": 3}, {"check": 2}, {"teacher": 0}):
        assert key(tmp_path, **each) == plain  # type: ignore[arg-type]
    assert key(tmp_path / "elsewhere", {"a": 1, "b": (2,)}) == key(tmp_path, {"b": [2], "a": 1})
    assert not list(tmp_path.iterdir())


def opened(folder: Path, embedding: bool = False, classes: int = 10, rows: Any = None, **options: Any) -> Store:
    cache = TeacherCache(str(folder), **options)
    forms = cache.forms(Outputs(torch.zeros(1, classes), embedding=torch.zeros(1, 6)), embedding)
    return Store(cache, {"teacher": {"teacher": "tést"}, "data": {"data": 0}}, rows or {"": 100}, forms)


def look(store: Store, epoch: int = 0) -> None:
    seen = Outputs(torch.randn(4, 10), embedding=torch.ones(4, 6))
    store.look(epoch, torch.arange(4), lambda: seen, CPU)


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    store = opened(tmp_path / "new", top_k=3)
    assert not (tmp_path / "new").exists()
    look(store)
    (folder,) = (tmp_path / "new").iterdir()
    assert sorted(os.listdir(folder)) == [".filling", "00000--logits-10", "key.json"]
    about = json.loads((folder / "key.json").read_text())
    expected = {"format": 1, "teacher": {"teacher": "tést"}, "data": {"data": 0}, "rows": 100}
    assert about == {**expected, "dtype": "float16", "top_k": 3}
    written = (folder / "key.json").stat().st_ino
    look(store, 1)
    assert (folder / "key.json").stat().st_ino == written  # once


@pytest.mark.parametrize("text", ['{"format": 1}', "half a fil", "[]", '"\udc80"'])
def test_refuses_a_folder_that_says_something_else(tmp_path: Path, text: str) -> None:
    look(opened(tmp_path))
    (path,) = tmp_path.glob("*/key.json")
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=r"key.json' describes something else"):
        opened(tmp_path)


def test_refuses_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        look(opened(tmp_path / "file" / "in"))


@pytest.mark.parametrize(
    ("options", "embedding", "row"),
    [
        ({}, False, 8 + 24),
        ({"dtype": "float32"}, False, 8 + 40),
        ({"top_k": 3}, False, 8 + 16),  # (3 + 1) numbers of 2 bytes, 3 classes of 2
        ({"dtype": "float32", "top_k": 3}, False, 8 + 24),
        ({}, True, 8 + 24 + 8 + 16),
        ({"top_k": 3}, True, 8 + 16 + 8 + 16),
    ],
)
def test_the_plan_is_what_the_files_take(
    tmp_path: Path, options: dict[str, Any], embedding: bool, row: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path / "new", embedding, views=3, **options)
    assert plan_disk([store], 2) == 2 * 100 * row
    assert not (tmp_path / "new").exists()
    assert plan_disk([store], 7) == 3 * 100 * row
    look(store)
    files = [each for each in tmp_path.glob("new/*/*") if each.name not in ("key.json", ".filling")]
    assert sum(each.stat().st_size for each in files) == 100 * row
    caplog.clear()  # a fit in an earlier test may have let the log be heard
    with caplog.at_level(logging.INFO, "kdlab.teaching"):
        assert (
            plan_disk([opened(tmp_path / "new", embedding, 10, {"": 100, "crops": 300}, views=3, **options)], 7)
            == 3 * 400 * row
        )
    (message,) = [each for each in caplog.messages if not each.startswith("top_k")]  # which states its error
    assert "for 3 views" in message
    assert "4 of 100 rows" in message


def test_refuses_what_the_disk_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look(opened(tmp_path, views=3))
    room = namedtuple("room", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room(2 * 3200))
    assert plan_disk([opened(tmp_path, views=3)], 9) == 3 * 3200  # one of three is there
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room(2 * 3200 - 1))
    with pytest.raises(InputError, match=r"0\.0 MB are free"):
        plan_disk([opened(tmp_path, views=3)], 9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room(1_100_000_000))
    with pytest.raises(InputError, match=r"needs 2.4 GB in '.*', where 1.1 GB are free: lower views, use top_k or f"):
        plan_disk([opened(tmp_path / "none" / "here", classes=100, rows={"": 48_000})], 240)
    assert len(list(tmp_path.iterdir())) == 1


SCRIPT = """
import sys, torch
from kdlab.outputs import Outputs
from kdlab.members.teacher_cache import Store, TeacherCache
torch.set_num_threads(1)
folder, seed = sys.argv[1], int(sys.argv[2])
cache = TeacherCache(folder, "float32", views=2)
forms = cache.forms(Outputs(torch.zeros(1, 10), embedding=torch.zeros(1, 6)), True)
store = Store(cache, {"teacher": 0, "data": 0}, {"": 400}, forms)
truth = torch.randn(2, 400, 16, generator=torch.Generator().manual_seed(0))
print("ready", flush=True)
sys.stdin.readline()
ran = 0
for epoch in range(6):
    order = torch.randperm(400, generator=torch.Generator().manual_seed(seed + epoch))
    for places in order.split(20):
        def live():
            global ran
            ran += 1
            return Outputs(truth[epoch % 2, places, :10], embedding=truth[epoch % 2, places, 10:])
        seen = store.look(epoch, places, live, torch.device("cpu"))
        assert torch.equal(torch.cat([seen.logits, seen.embedding], 1), truth[epoch % 2, places])
print(ran)
"""


@pytest.mark.full
def test_two_processes_fill_one_store(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(seed)], stdin=-1, stdout=-1, text=True, bufsize=1
        )
        for seed in (0, 100)
    ]
    for each in both:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    said = []
    for each in both:  # both wait for their line, so that they start together
        assert each.stdin is not None
        each.stdin.write("go\n")
    for each in both:
        out, _ = each.communicate(timeout=120)
        assert each.returncode == 0
        said.append(int(out))
    assert max(said) <= 40  # 20 batches of two views; the four epochs that come again never run
    assert sum(said) >= 40
    files = [each for each in tmp_path.glob("*/*") if each.name not in ("key.json", ".filling")]
    assert sorted(each.name for each in files) == [
        f"0000{v}--{k}" for v in (0, 1) for k in ("embedding-6", "logits-10")
    ]
    assert all(Rows(each, 400, int(each.name.split("-")[-1]), "float32").count() == 400 for each in files)
