"""Weights files whose names differ from the network's: tied weights, wrappers inside a name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from kdlab.errors import InputError
from kdlab.models import load_weights, resnet8


class Tied(nn.Module):
    def __init__(self, fill: float = 0.0) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        if fill:
            nn.init.constant_(self.head.weight, fill)


def test_tied_weights_written_once_load(tmp_path: Path) -> None:
    save_model(Tied(3.0), str(tmp_path / "tied.safetensors"))
    network = load_weights(Tied(), tmp_path / "tied.safetensors")
    assert (network.embed.weight == 3).all()
    assert network.head.weight is network.embed.weight
    for name in ("embed.weight", "head.weight"):  # either name may be the one that stays
        save_file({name: torch.full((7, 5), 2.0)}, tmp_path / "one.safetensors")
        assert (load_weights(Tied(), tmp_path / "one.safetensors").head.weight == 2).all()


def test_views_of_one_memory_load(tmp_path: Path) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.Parameter(torch.zeros(6))
            self.register_buffer("first", self.all.data[:2])

    save_file({"all": torch.arange(6.0)}, tmp_path / "all.safetensors")
    network = load_weights(Parts(), tmp_path / "all.safetensors")
    assert network.first.tolist() == [0, 1]
    save_file({"first": torch.arange(2.0)}, tmp_path / "first.safetensors")
    with pytest.raises(InputError, match=r"1 missing in the file \('all'\)"):
        load_weights(Parts(), tmp_path / "first.safetensors")


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    save_file({"embed.weight": torch.ones(7, 5), "head.weight": torch.zeros(7, 5)}, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="has different values for"):
        load_weights(Tied(), tmp_path / "two.safetensors")


def test_untied_networks_need_both(tmp_path: Path) -> None:
    class Untied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)

    save_model(Tied(3.0), str(tmp_path / "tied.safetensors"))
    with pytest.raises(InputError, match="1 missing in the file"):
        load_weights(Untied(), tmp_path / "tied.safetensors")


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_orig_mod.module", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("prefix", ["", "module.", "student.", "_orig_mod."])
def test_names_of_wrappers_inside_a_name(wrapper: str, prefix: str, tmp_path: Path) -> None:
    source = resnet8(10)
    state = {f"{prefix}{n.replace('layer1.', f'layer1.{wrapper}.')}": v for n, v in source.state_dict().items()}
    torch.save(state, tmp_path / "file.pt")
    network = load_weights(resnet8(10), tmp_path / "file.pt")
    for name, value in network.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


@pytest.mark.full  # imports the compiler
def test_wrapped_parts_of_the_network(tmp_path: Path) -> None:
    source, target = resnet8(10), resnet8(10)
    torch.save(source.state_dict(), tmp_path / "file.pt")
    target.layer2 = nn.DataParallel(target.layer2)
    target.layer3 = torch.compile(target.layer3)
    load_weights(target, tmp_path / "file.pt")
    assert torch.equal(target.layer2.module[0].conv1.weight, source.layer2[0].conv1.weight)
    assert torch.equal(target.layer3._orig_mod[0].conv1.weight, source.layer3[0].conv1.weight)


def test_averaged_models_of_torch(tmp_path: Path) -> None:
    """AveragedModel has a counter beside ``module.``; a compiled stage inside changes nothing."""
    source = resnet8(10)
    averaged = torch.optim.swa_utils.AveragedModel(source)
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    assert torch.equal(load_weights(resnet8(10), tmp_path / "swa.pt").fc.weight, source.fc.weight)


def test_two_networks_that_a_wrapper_tells_apart_are_not_mixed(tmp_path: Path) -> None:
    state = {f"a.{n}": v for n, v in resnet8(10).state_dict().items()}
    state |= {f"a.module.{n}": v for n, v in resnet8(10).state_dict().items()}
    torch.save(state, tmp_path / "two.pt")
    with pytest.raises(InputError, match=r"fit under 'a.*choose one with the prefix"):
        load_weights(resnet8(10), tmp_path / "two.pt")
