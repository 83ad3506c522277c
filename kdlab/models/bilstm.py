"""The BiLSTM student of Tang et al. for single sentences and pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kdlab.errors import InputError
from kdlab.models.surgery import positive
from kdlab.models.weights import load_weights


class BiLSTM(nn.Module):
    """A bidirectional LSTM over token embeddings, whose last states of both directions are classified.

    Paper: R. Tang, Y. Lu, L. Liu, L. Mou, O. Vechtomova, J. Lin, "Distilling Task-Specific Knowledge from BERT into
    Simple Neural Networks", 2019, arXiv 1903.12136: one layer, a rectified linear layer and a linear classifier, about
    1 million parameters besides the embeddings, which are word2vec vectors there and trained here. A pair goes in as
    one text of two sentences, not through two networks as in the paper.

    Args:
        vocabulary: number of tokens.
        num_classes: number of logits.
        width: size of the token embeddings.
        hidden: size of the LSTM's state in each direction.
        inner: size of the layer before the classifier; the embedding.
        dropout: probability that an entry of the embeddings and of the last states is dropped.
        pad: the id of padding.
    """

    def __init__(
        self,
        vocabulary: int,
        num_classes: int,
        width: int = 300,
        hidden: int = 150,
        inner: int = 200,
        dropout: float = 0.1,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(positive("vocabulary", vocabulary), width, padding_idx=pad)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.inner = nn.Linear(2 * hidden, inner)
        self.classifier = nn.Linear(inner, positive("num_classes", num_classes))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        """Return ``logits`` (B, K) and ``hidden_states``: the embeddings (B, L, width) and the states (B, L, 2 hidden).

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 at the tokens of a text, which come before its padding; all if not given. A text
                without any token is read as one token of padding.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.dim() != 2:
            raise InputError("A BiLSTM reads one text in each row: set data.packing=false.")
        words = self.embeddings(input_ids)
        lengths = mask.bool().sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(self.dropout(words), lengths, batch_first=True, enforce_sorted=False)
        states, (last, _) = self.lstm(packed)
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=input_ids.shape[1])
        text = self.dropout(torch.cat([last[0], last[1]], 1))
        return {"logits": self.classifier(torch.relu(self.inner(text))), "hidden_states": (words, states)}


def bilstm(
    vocabulary: int,
    num_classes: int,
    width: int = 300,
    hidden: int = 150,
    inner: int = 200,
    dropout: float = 0.1,
    pad: int = 0,
    weights: str | None = None,
) -> BiLSTM:
    """Build a :class:`BiLSTM`.

    Args:
        vocabulary: number of tokens of the tokenizer.
        num_classes: number of logits.
        width: size of the token embeddings.
        hidden: size of the LSTM's state in each direction.
        inner: size of the layer before the classifier.
        dropout: probability that an entry of the embeddings and of the last states is dropped.
        pad: the id of padding.
        weights: a weights file, see :func:`kdlab.models.load_weights`.

    Raises:
        InputError: a size is below 1, or the weights do not fit.
    """
    network = BiLSTM(vocabulary, num_classes, width, hidden, inner, dropout, pad)
    return network if weights is None else load_weights(network, weights)
