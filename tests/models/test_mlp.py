"""The MLP: sizes, taps, dropout and the error for inputs of another size."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.models import mlp
from kdlab.outputs import observe


@pytest.mark.parametrize(
    ("hidden", "parameters"),
    [((1200, 1200), 2_395_210), ((800, 800), 1_276_810), ((), 7_850)],
)
def test_the_networks_of_hinton_have_their_sizes(hidden, parameters):
    assert sum(p.numel() for p in mlp(hidden=hidden).parameters()) == parameters


def test_it_is_a_relu_network_with_its_hidden_layers_as_taps():
    network = mlp(in_features=12, hidden=[7, 5], num_classes=3).eval()
    weights = dict(network.named_parameters())
    x = torch.randn(4, 3, 2, 2)
    first = x.reshape(4, 12) @ weights["hidden.0.linear.weight"].T + weights["hidden.0.linear.bias"]
    second = first.clamp(min=0) @ weights["hidden.1.linear.weight"].T + weights["hidden.1.linear.bias"]
    logits = second.clamp(min=0) @ weights["fc.weight"].T + weights["fc.bias"]

    seen = observe(network, x, ["hidden.0.linear", "hidden.0", "hidden.1"])
    torch.testing.assert_close(seen.layers[0], first)
    torch.testing.assert_close(seen.layers[1], first.clamp(min=0))
    torch.testing.assert_close(seen.layers[2], second.clamp(min=0))
    torch.testing.assert_close(seen.logits, logits)
    torch.testing.assert_close(seen.embedding, second.clamp(min=0))


def test_dropout_acts_in_training_on_the_right_layers():
    x = torch.ones(200, 50)
    network = mlp(50, [40], 10, dropout=0.5, input_dropout=0.2)
    seen = observe(network.train(), x, ["input_dropout", "hidden.0"])
    assert 0.1 < (seen.layers[0] == 0).float().mean() < 0.3
    kept = seen.layers[1] > 0
    dropped = seen.embedding == 0
    assert 0.4 < dropped[kept].float().mean() < 0.6  # the tap is before dropout, the embedding after it
    assert torch.equal(network.eval()(x), network(x))


def test_an_input_of_another_size_is_named():
    with pytest.raises(InputError, match="takes 784 features per sample, not 64: set in_features"):
        mlp()(torch.zeros(2, 1, 8, 8))
