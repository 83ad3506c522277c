"""Weights files that cannot be loaded: the error says why, no code runs, and the network does not change."""

import argparse
import io
import os
import pathlib
import pickle
import zipfile

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.models import load_weights, resnet8, resnet14, save_weights, with_weights, wrn_16_1

SOURCE = resnet8(10)


def bytes_of(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def safetensors_bytes(folder):
    save_weights(SOURCE, folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def refused(path, network, *patterns):
    """Assert that loading raises a one-line message with every pattern and does not change the network."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(network, path)
    message = str(caught.value)
    for pattern in patterns:
        assert pattern in message, message
    assert "\n" not in message
    assert message.endswith(".")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def write(folder, content):
    path = folder / "weights.pt"
    path.write_bytes(content if isinstance(content, bytes) else bytes_of(content))
    return path


def test_a_missing_file_a_folder_and_an_empty_file(tmp_path):
    refused(tmp_path / "none.pt", resnet8(10), "There is no weights file", "none.pt", str(tmp_path))
    refused(tmp_path, resnet8(10), "is a folder")
    refused(write(tmp_path, b""), resnet8(10), "is empty")
    with pytest.raises(InputError, match="There is no weights file"):
        resnet8(weights="nowhere.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission(tmp_path):
    path = write(tmp_path, SOURCE.state_dict())
    path.chmod(0)
    refused(path, resnet8(10), "cannot be read", "Permission denied")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("part", [0.0002, 0.1, 0.5, 0.99, 0.99999])
def test_truncated_torch_files(zipped, part, tmp_path):
    whole = bytes_of(SOURCE.state_dict(), _use_new_zipfile_serialization=zipped)
    path = write(tmp_path, whole[: int(len(whole) * part)])
    refused(path, resnet8(10), "truncated or damaged", f"{int(len(whole) * part):,} bytes", "copy or download it again")


@pytest.mark.parametrize("part", [0.001, 0.01, 0.5, 0.99999])
def test_truncated_safetensors(part, tmp_path):
    whole = safetensors_bytes(tmp_path)
    refused(write(tmp_path, whole[: int(len(whole) * part)]), resnet8(10), "truncated or damaged", "download it again")


def test_a_flipped_byte_in_a_torch_file(tmp_path):
    content = bytearray(bytes_of(SOURCE.state_dict()))
    at = content.find(SOURCE.fc.weight.detach().numpy().tobytes())
    assert at > 0
    content[at + 100] ^= 0xFF
    refused(write(tmp_path, bytes(content)), resnet8(10), "truncated or damaged", "checksum")


def test_a_torch_file_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path, SOURCE.state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_weights(resnet8(10), path).fc.weight, SOURCE.fc.weight)


def test_damage_at_the_start_of_safetensors(tmp_path):
    whole = safetensors_bytes(tmp_path)
    refused(write(tmp_path, whole[:8] + b"{" + b"\0" * 40 + whole[49:]), resnet8(10), "truncated or damaged")
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"\0" * 8 + whole[8:20].replace(b"{", b"?") + whole[20:])
    refused(path, resnet8(10), "not a safetensors file")


def other_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "text")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>404 not found</html>", "is not a weights file"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "is not a weights file"),
        (other_zip(), "is not a weights file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (bytes_of([1, 2]), "is a list and holds no weights"),
        (bytes_of({}), "a dictionary of nothing and holds no weights"),
        (bytes_of({"epoch": 3, "lr": 0.1}), "a dictionary of 'epoch', 'lr' and holds no weights"),
        (bytes_of(torch.zeros(3)), "is a Tensor and holds no weights"),
    ],
)
def test_files_that_are_no_weights(content, message, tmp_path):
    refused(write(tmp_path, content), resnet8(10), message)


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_code_in_a_torch_file_is_never_run(zipped, tmp_path):
    content = {"model": SOURCE.state_dict(), "extra": Bomb(tmp_path / "ran")}
    path = write(tmp_path, bytes_of(content, _use_new_zipfile_serialization=zipped))
    refused(path, resnet8(10), "refuses to run code", "mkdir", "state_dict()")
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # the file would run code
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_plain_pickle_is_never_run(protocol, tmp_path):
    refused(write(tmp_path, pickle.dumps(Bomb(tmp_path / "ran"), protocol)), resnet8(10))
    assert not (tmp_path / "ran").exists()
    refused(write(tmp_path, pickle.dumps({"a": 1}, 2)), resnet8(10), "plain pickle", "refuses to run code")


def test_reading_options_leaves_torch_load_strict(tmp_path):
    path = write(tmp_path, {"opt": argparse.Namespace(a=1), "model": SOURCE.state_dict()})
    load_weights(resnet8(10), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_other_objects_whole_networks_and_programs(tmp_path):
    with_path = {"model": SOURCE.state_dict(), "folder": pathlib.PurePosixPath("x")}
    refused(write(tmp_path, with_path), resnet8(10), "a pickled pathlib", "refuses to run code")
    refused(write(tmp_path, SOURCE), resnet8(10), "a pickled kdlab.models.resnet.ResNet", "state_dict() alone")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / "program.pt"))
    refused(tmp_path / "program.pt", nn.Linear(2, 2), "TorchScript program")


def test_another_number_of_classes_is_named_as_such(tmp_path):
    path = write(tmp_path, SOURCE.state_dict())
    refused(
        path,
        resnet8(100),
        "is for 10 classes and this ResNet has 100",
        "fc.weight is (10, 64) in the file, (100, 64) in the network",
        "num_classes=10",
    )
    torch.save({"state_dict": {f"student.{k}": v for k, v in SOURCE.state_dict().items()}}, path)
    refused(path, resnet8(100), "is for 10 classes and this ResNet has 100")


def test_another_depth_lists_missing_and_unexpected(tmp_path):
    path = write(tmp_path, SOURCE.state_dict())
    refused(path, resnet14(10), "does not fit this ResNet", "nothing was loaded", "30 missing in the file", "27 more")
    path = write(tmp_path, resnet14(10).state_dict())
    refused(path, resnet8(10), "36 not in the network", "'layer1.1.conv1.weight'", "33 more")


def test_another_architecture_lists_all_three(tmp_path):
    path = write(tmp_path, {"model": {f"module.{k}": v for k, v in SOURCE.state_dict().items()}})
    refused(
        path,
        wrn_16_1(10),
        "does not fit this WideResNet",
        "missing in the file ('block1.layer.0.bn1.weight'",
        "not in the network ('layer1.0.conv1.weight'",
        "4 of another shape ('bn1.weight' is (16,), here (64,)",
        "and 1 more",
    )


def test_other_channels_are_no_class_count(tmp_path):
    path = write(tmp_path, SOURCE.state_dict())
    refused(
        path, resnet8(10, in_channels=1), "1 of another shape ('conv1.weight' is (16, 3, 3, 3), here (16, 1, 3, 3))"
    )


@pytest.mark.parametrize("missing", ["fc.bias", "bn1.running_mean", "layer3.0.bn2.running_var", "conv1.weight"])
def test_a_single_missing_tensor_is_not_tolerated(missing, tmp_path):
    state = {name: value for name, value in SOURCE.state_dict().items() if name != missing}
    refused(write(tmp_path, state), resnet8(10), f"1 missing in the file ('{missing}')")


def test_a_single_tensor_too_many_is_not_tolerated(tmp_path):
    state = dict(SOURCE.state_dict(), extra=torch.ones(1))
    refused(write(tmp_path, state), resnet8(10), "1 not in the network ('extra')")


def test_a_teacher_is_not_taken_for_the_student(tmp_path):
    state = {f"module.teacher.{k}": v for k, v in SOURCE.state_dict().items()}
    path = write(tmp_path, {"model": state | {f"module.student.{k}": v for k, v in resnet14(10).state_dict().items()}})
    refused(path, resnet8(10), "fit under 'module.teacher'", "prefix")


def test_several_networks_that_fit_are_named(tmp_path):
    state = {f"{each}.{k}": v for each in ("networks.a", "networks.b") for k, v in SOURCE.state_dict().items()}
    refused(write(tmp_path, state), resnet8(10), "fit under 'networks.a', 'networks.b'", "prefix")
    state = {f"{each}.{k}": v for each in ("student", "model") for k, v in SOURCE.state_dict().items()}
    refused(write(tmp_path, state), resnet8(10), "fit under 'student', 'model'")
    with pytest.raises(InputError, match=r"nothing under 'networks\.c'; its first names are 'student', 'model'"):
        with_weights(resnet8(10), str(tmp_path / "weights.pt"), prefix="networks.c")


def test_saving_where_it_cannot_be(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        save_weights(SOURCE, tmp_path)
    with pytest.raises(InputError, match="'weight' of LazyLinear is not an initialized tensor"):
        save_weights(nn.LazyLinear(3), tmp_path / "lazy.safetensors")
    assert not os.listdir(tmp_path)
