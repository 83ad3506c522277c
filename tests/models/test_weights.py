"""Every common layout of weights file loads exactly; saving and loading is exact to the bit."""

import argparse
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kdlab.errors import InputError
from kdlab.models import load_weights, mlp, resnet8, resnet8x4, save_weights, with_weights, wrn_16_1
from tests.models.published import unfilled
from tests.models.test_class_paths import BUILDERS
from tests.tiers import tiered


def scrambled(network, seed=0):
    """The network with every tensor of its state redrawn, so that none can match by accident."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        value.copy_(torch.randint(1, 1000, value.shape, generator=generator) / (1 if value.dtype == torch.int64 else 7))
    return network


def prefixed(prefix, network):
    state = network.state_dict() if isinstance(network, nn.Module) else network
    return {f"{prefix}{name}": value for name, value in state.items()}


def assert_same(network, expected):
    state = expected.state_dict()
    assert set(network.state_dict()) == set(state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


SOURCE = scrambled(resnet8(10))
TEACHER = scrambled(resnet8x4(10), seed=1)
RIVAL = scrambled(resnet8(10), seed=2)  # fits too, but must not be loaded
STATE = SOURCE.state_dict()
SGD = torch.optim.SGD(SOURCE.parameters(), 0.1, momentum=0.9).state_dict()


def published_layouts(state, rival):
    """What the released codes save for a network of this state; ``rival`` is a teacher's of the same class."""
    return {
        "plain state_dict": state,  # ReviewKD's too
        "RepDistiller epoch": {"epoch": 240, "model": state, "accuracy": torch.tensor([70.1]), "optimizer": SGD},
        "RepDistiller best": {"epoch": 200, "model": state, "best_acc": torch.tensor(70.1), "optimizer": SGD},
        "RepDistiller last": {
            "opt": argparse.Namespace(lr=0.05, lr_decay_epochs=[150, 180], model="resnet8", tb=argparse.Namespace(a=1)),
            "model": state,
            "optimizer": SGD,
        },
        "mdistiller student": {"model": state},
        "mdistiller distiller": {
            "epoch": 3,
            "model": prefixed("module.student.", state)
            | prefixed("module.teacher.", rival)
            | {"module.conv_reg.weight": torch.ones(3), "module.embed_s.linear.bias": torch.ones(2)},
            "optimizer": SGD,
            "best_acc": torch.tensor([61.0]),
        },
        "SSKD": {"epoch": 1, "state_dict": state, "acc": 0.7},
        "KD++": {"model_state_dict": state, "epoch": 3},
        "SimKD": {
            "epoch": 238,
            "model": state,
            "best_acc": torch.tensor(78.1),
            "proj": {"transfer.0.weight": torch.ones(2, 3, 1, 1), "transfer.1.num_batches_tracked": torch.tensor(9)},
        },
    }


LAYOUTS = published_layouts(STATE, RIVAL.state_dict()) | {
    "parameters instead of tensors": {name: nn.Parameter(v, requires_grad=False) for name, v in STATE.items()},
    "numpy accuracy beside the weights": {"model": STATE, "best_acc": np.float64(71.2), "acc": np.float32(2)},
    "DataParallel": prefixed("module.", SOURCE),
    "DataParallel in a checkpoint": {"state_dict": prefixed("module.", SOURCE)},
    "kdlab checkpoint": {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": prefixed("student.", SOURCE) | {"losses.hint.weight": torch.ones(2)},
        "hyper_parameters": {},
    },
    "Lightning checkpoint with a teacher": {"state_dict": prefixed("teacher.", RIVAL) | prefixed("student.", SOURCE)},
    "Lightning checkpoint with another teacher": {
        "state_dict": prefixed("student.", SOURCE) | prefixed("teacher.", TEACHER)
    },
    "LightningModule's self.model": {"state_dict": prefixed("model.", SOURCE)},
    "LightningModule's self.network": {"state_dict": prefixed("network.", SOURCE)},
    "LightningModule's self.net": {"state_dict": prefixed("net.", SOURCE)},
    "compiled student": {"state_dict": prefixed("student._orig_mod.", SOURCE)},
    "compiled": prefixed("_orig_mod.", SOURCE),
    "one dictionary a network": {"teacher": TEACHER.state_dict(), "student": STATE},
    "nested": {"model": {"state_dict": STATE, "epoch": 1}, "epoch": 1},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_the_right_tensors(layout, zipped, tmp_path):
    torch.save(LAYOUTS[layout], tmp_path / "file", _use_new_zipfile_serialization=zipped)
    network = scrambled(resnet8(10), seed=5)
    assert load_weights(network, tmp_path / "file") is network
    assert_same(network, SOURCE)
    assert all(p.requires_grad for p in network.parameters())


def marked(network, sign):
    """A state of the network's shapes where every tensor repeats a different number, in shared memory."""
    state = network.state_dict()
    numbers = sign * torch.arange(1, len(state) + 1)
    shared = {torch.int64: numbers, torch.float32: numbers.float()}
    return {name: shared[value.dtype][i].expand(value.shape) for i, (name, value) in enumerate(state.items())}


@pytest.mark.parametrize("name", tiered(BUILDERS, ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_half", "shuffle_v1"]))
def test_every_network_loads_from_what_the_released_codes_write(name, tmp_path):
    network = unfilled(name)
    state = marked(network, 1)
    layouts = published_layouts(state, marked(network, -1))
    network.to_empty(device="cpu")
    for layout in ("RepDistiller epoch", "RepDistiller last", "mdistiller distiller", "SSKD", "SimKD"):
        torch.save(layouts[layout], tmp_path / "file.pth")
        for value in network.state_dict().values():
            value.zero_()
        loaded = load_weights(network, tmp_path / "file.pth").state_dict()
        assert set(loaded) == set(state)
        assert [each for each, value in state.items() if not torch.equal(loaded[each], value)] == [], layout


@pytest.mark.parametrize("prefix", ["", "module.", "student.", "model.", "module.student."])
def test_safetensors_of_other_codes_load_whatever_the_suffix(prefix, tmp_path):
    save_file(prefixed(prefix, SOURCE), tmp_path / "weights.bin")
    assert_same(load_weights(resnet8(10), tmp_path / "weights.bin"), SOURCE)


def test_builders_take_a_file(tmp_path):
    save_weights(SOURCE, tmp_path / "resnet.safetensors")
    assert_same(resnet8(10, weights=str(tmp_path / "resnet.safetensors")), SOURCE)
    wide, flat = scrambled(wrn_16_1(10, 1)), scrambled(mlp(8, [4], 2))
    save_weights(wide, tmp_path / "wide.safetensors")
    save_weights(flat, tmp_path / "flat.safetensors")
    assert_same(wrn_16_1(10, 1, str(tmp_path / "wide.safetensors")), wide)
    assert_same(mlp(8, [4], 2, weights=str(tmp_path / "flat.safetensors")), flat)
    assert_same(with_weights(resnet8(10), str(tmp_path / "resnet.safetensors")), SOURCE)


def test_files_without_batch_counters_keep_the_counters(tmp_path):
    torch.save({k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    network = resnet8(10)
    network.bn1.num_batches_tracked.fill_(17)
    load_weights(network, tmp_path / "old.pth")
    assert network.bn1.num_batches_tracked == 17
    assert torch.equal(network.bn1.running_var, SOURCE.bn1.running_var)
    assert torch.equal(network.fc.weight, SOURCE.fc.weight)


def test_a_prefix_says_which_of_several_networks(tmp_path):
    torch.save(
        {"state_dict": prefixed("networks.a.", SOURCE) | prefixed("networks.b.", RIVAL)}, tmp_path / "peers.ckpt"
    )
    assert_same(load_weights(resnet8(10), tmp_path / "peers.ckpt", prefix="networks.a"), SOURCE)
    assert_same(with_weights(resnet8(10), str(tmp_path / "peers.ckpt"), "networks.b."), RIVAL)


def test_dtype_and_training_mode_of_the_network_stay(tmp_path):
    torch.save({name: v.double() if v.is_floating_point() else v for name, v in STATE.items()}, tmp_path / "double.pt")
    network = load_weights(resnet8(10).half().eval(), tmp_path / "double.pt")
    assert network.fc.weight.dtype == torch.float16
    assert torch.equal(network.fc.weight, SOURCE.fc.weight.half())
    assert not network.training


def test_lazy_layers_take_the_shapes_of_the_file(tmp_path):
    save_file({"weight": torch.ones(3, 5), "bias": torch.ones(3)}, tmp_path / "lazy.safetensors")
    layer = load_weights(nn.LazyLinear(3), tmp_path / "lazy.safetensors")
    assert torch.equal(layer.weight, torch.ones(3, 5))


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_lightning_wrote_loads(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = scrambled(resnet8(10), 3), scrambled(resnet8(10), 4)

        def training_step(self, batch):
            return self.student(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.student.parameters(), 1e-3, momentum=0.9)

    module = Module()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 3, 8, 8)), 4)
    saver = lightning.callbacks.ModelCheckpoint(tmp_path, filename="run", save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    lightning.Trainer(max_steps=1, callbacks=[saver], **quiet).fit(module, data)
    assert_same(load_weights(resnet8(10), tmp_path / "last.ckpt"), module.student)


def test_saving_keeps_names_values_dtypes_and_metadata(tmp_path):
    path = tmp_path / "new folder" / "net.safetensors"
    save_weights(SOURCE, path, {"commit": "abc", "accuracy": "71.2"})
    written = load_file(path)
    assert set(written) == set(STATE)
    assert all(
        torch.equal(written[name], value) and written[name].dtype == value.dtype for name, value in STATE.items()
    )
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "commit": "abc", "accuracy": "71.2"}
    assert os.listdir(path.parent) == ["net.safetensors"]


def test_saving_handles_shared_and_strided_tensors(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.register_buffer("strided", torch.randn(3, 5).t())
            self.register_buffer("view", self.a.bias.detach()[1:])
            self.image = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)

    network = Tied()
    save_weights(network, tmp_path / "tied.safetensors")
    assert network.a.weight is network.b.weight
    assert not network.strided.is_contiguous()
    assert_same(load_weights(Tied(), tmp_path / "tied.safetensors"), network)


@pytest.mark.full
def test_a_compiled_network_uses_the_original_names(tmp_path):
    compiled = torch.compile(scrambled(resnet8(10), 6))
    save_weights(compiled, tmp_path / "compiled.safetensors")
    assert set(load_file(tmp_path / "compiled.safetensors")) == set(STATE)
    assert_same(load_weights(torch.compile(resnet8(10)), tmp_path / "compiled.safetensors"), compiled)


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_weights(SOURCE, path)
    before = path.read_bytes()

    def breaks(tensors, metadata):
        raise OSError("No space left on device")

    monkeypatch.setattr("kdlab.models.weights.save", breaks)
    with pytest.raises(InputError, match="No space"):
        save_weights(RIVAL, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_saving_over_a_file_does_not_change_it_under_a_reader(tmp_path):
    save_weights(SOURCE, tmp_path / "net.safetensors")
    before = (tmp_path / "net.safetensors").read_bytes()
    with (tmp_path / "net.safetensors").open("rb") as reader:
        save_weights(RIVAL, tmp_path / "net.safetensors")
        assert reader.read() == before
    assert_same(load_weights(resnet8(10), tmp_path / "net.safetensors"), RIVAL)
