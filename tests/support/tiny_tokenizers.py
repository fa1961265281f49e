"""Small tokenizers of each kind, for a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "The parcel came two days late and the box was wet.",
    "Lovely soup, my children asked for more!",
    "I cannot log in, the password page is broken again.",
    "What a kind person on the phone, thank you so much.",
    "The second invoice charges me twice for one month.",
    "Great update, the search is quick and finds everything.",
]


def bert(sentences: Sequence[str], special: Sequence[str]) -> Tokenizer:
    """Returns an uncased WordPiece tokenizer that knows the words and the characters of some sentences.

    A trained one would number its tokens anew in every process: random weights would see other inputs each time.
    """
    tokenizer = Tokenizer(models.WordPiece())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = _words(tokenizer, sentences)
    letters = sorted(set("".join(words)))
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer


def _words(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[str]:
    normalized = map(tokenizer.normalizer.normalize_str, sentences)
    return sorted({word for line in normalized for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(line)})


def wordpiece() -> Tokenizer:
    """Returns an uncased WordPiece tokenizer, as in BERT, MPNet and ELECTRA."""
    return bert(SENTENCES, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])


def byte_pairs() -> Tokenizer:
    """Returns a byte-level BPE tokenizer, as in RoBERTa and ModernBERT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Tokenizer:
    """Returns a tokenizer as SentencePiece's unigram models are converted, with BERT's special tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    words = _words(tokenizer, SENTENCES)
    # Log probabilities: a word is likelier than its letters.
    scores = {**dict.fromkeys(special, 0.0), **dict.fromkeys(words, -4.0)}
    scores |= {letter: -6.0 for letter in sorted(set("".join(words))) if letter not in scores}
    tokenizer.model = models.Unigram(list(scores.items()), unk_id=special.index("<unk>"))
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    return tokenizer


TOKENIZERS = {"WordPiece": wordpiece, "BPE": byte_pairs, "Unigram": unigram}
