"""Text data: tokenized once, padded or packed, in an order that is a function of (seed, epoch, index)."""

from kdlab.data.text.text_data import TextData
from kdlab.data.text.text_tasks import Texts

__all__ = ["TextData", "Texts"]
