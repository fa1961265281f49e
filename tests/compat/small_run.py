"""The golden bundle of a format version: the smallest model that has everything a bundle can have."""

from __future__ import annotations

import subprocess
from pathlib import Path

from transformers import BertConfig, BertModel

from tests.support import every_kind
from tests.support.demo import BIN
from tests.support.tiny_tokenizers import wordpiece
from tests.support.tiny_training import write_jsonl

# Enough rows for the novelty of texts, which requires 50 of validation.
_ROWS = 240
_CONFIG = """
name = "golden"

[model]
backbone = "backbone"
max_tokens = 24
prompts = { query = "query: " }

[data]
train = "train.jsonl"
validation_fraction = 0.25

[training]
batch_size = 32

[training.heads.abstain]
accuracy = 0.5
certainty = 0.9

[training.heads.prediction_sets]
coverage = 0.8

[[training.stages]]
name = "heads"
train = ["heads"]
learning_rate = 0.05
"""


def write_golden_bundle(destination: Path, work: Path) -> None:
    """Writes a bundle of the current format version.

    Args:
        destination: Folder of the bundle; it does not exist.
        work: Folder for the backbone, the rows and the run.

    Raises:
        subprocess.CalledProcessError: Training or export failed.
    """
    (work / "backbone").mkdir(parents=True)
    tokenizer = wordpiece()
    tokenizer.save(str(work / "backbone/tokenizer.json"))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vocabulary = tokenizer.get_vocab_size()
    BertModel(BertConfig(vocab_size=vocabulary, max_position_embeddings=24, **sizes)).save_pretrained(work / "backbone")
    rows = every_kind.rows()
    numbered = [{**row, "text": f"{row['text']} {number}"} for number in range(_ROWS // len(rows)) for row in rows]
    write_jsonl(work / "train.jsonl", numbered)
    (work / "config.toml").write_text(_CONFIG, encoding="utf-8")
    run = ["polyhead-train", "config.toml", "--output-dir", "run", "--set", every_kind.OVERRIDE]
    for program, *arguments in (run, ["polyhead-export", "run", str(destination.absolute()), "--variant", "fp32"]):
        subprocess.run([BIN / program, *arguments], cwd=work, check=True)
