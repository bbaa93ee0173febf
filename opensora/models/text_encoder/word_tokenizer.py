"""A word-level tokenizer for models trained on a small vocabulary, in the Hugging Face layout."""
from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5


def build_word_tokenizer(words: Iterable[str], model_max_length: int = 120) -> PreTrainedTokenizerFast:
    """Tokenizer with one id per word, `</s>` at the end, then `<pad>` (id 0), and `<unk>` for other words.

    words: lower-case words and punctuation marks; their order gives the ids 3, 4, ..., repeats count once. 
    Captions are lower-cased and split at spaces and around punctuation.  `save_pretrained(folder)` writes
    what `AutoTokenizer.from_pretrained(folder)` reads.
    Raises ValueError for no words, and for a word that no caption can yield.
    """
    words = list(dict.fromkeys(words))
    splitter, lower = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    whole = [[piece for piece, _ in splitter.pre_tokenize_str(lower.normalize_str(w))] == [w] for w in words]
    unreachable = [w for w, ok in zip(words, whole, strict=True) if not ok]
    if not words or unreachable:
        raise ValueError(f"words={unreachable[:5]}; allowed: one or more, "
                         "each a lower-case word or a run of punctuation")

    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = lower
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, vocabulary[EOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN,
        model_max_length=model_max_length, padding_side="right")
