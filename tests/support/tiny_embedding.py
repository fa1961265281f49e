"""Files and overrides that make the embedding a task of the small training configuration."""

from __future__ import annotations

from pathlib import Path

from .tiny_tokenizers import SENTENCES
from .tiny_training import write_jsonl

# One source for each loss; the source of pairs has steps larger than the batch size, so that gradients are cached.
SOURCES = {
    "cosent": "{files='scored.jsonl', kind='scored_pairs', name='cosent', score_range=[0, 5]}",
    "cosine": "{files='scored.jsonl', kind='scored_pairs', loss='cosine', name='cosine', weight=0.5}",
    "pairs": "{files='pairs.jsonl', kind='pairs', batch_size=6, prompts=['query', '']}",
    "triplets": "{files='triplets.jsonl', kind='triplets'}",
}
RETRIEVAL = "{corpus='small_corpus.jsonl', queries='small_queries.jsonl', qrels='small_qrels.jsonl', split='dev'}"


def write_embedding_data(folder: Path) -> list[str]:
    """Writes the files beside a configuration; returns the overrides that name them."""
    texts = [f"{text} {'Truly. ' * repeats}" for repeats in range(2) for text in SENTENCES]
    following = [texts[(number + 1) % 12] for number in range(12)]
    scored = [{"a": a, "b": b, "score": number % 6} for number, (a, b) in enumerate(zip(texts, following, strict=True))]
    write_jsonl(folder / "scored.jsonl", scored)
    write_jsonl(folder / "pairs.jsonl", [{"a": row["a"], "b": row["b"]} for row in scored])
    triplets = [{"anchor": texts[n], "positive": following[n], "negative": texts[(n + 5) % 12]} for n in range(12)]
    write_jsonl(folder / "triplets.jsonl", triplets)
    write_jsonl(folder / "similarity.jsonl", scored[:6])
    write_jsonl(folder / "small_corpus.jsonl", [{"id": n, "title": "", "text": text} for n, text in enumerate(texts)])
    queries = [{"id": n, "text": f"{text} Why?", "split": "dev" if n % 2 else "train"} for n, text in enumerate(texts)]
    write_jsonl(folder / "small_queries.jsonl", queries)
    write_jsonl(folder / "small_qrels.jsonl", [{"query": n, "doc": str(n), "score": 1} for n in range(12)])
    return [
        f"data.embedding=[{', '.join(SOURCES.values())}]",
        f"data.retrieval=[{RETRIEVAL}]",
        "data.similarity=similarity.jsonl",
        "model.prompts={query='query: '}",
        "training.matryoshka=[16, 8]",
    ]
