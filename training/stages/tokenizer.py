"""A tokenizer for small experiments: whole words of the given texts as tokens, in T5's manner.

Real runs use the tokenizer of their T5 checkpoint. This one is trained in a moment, makes short sequences, and loses
nothing: a word outside the vocabulary is spelled with characters, a character outside it with its UTF-8 bytes.
"""

import math
import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_SPACE = "▁"  # sentencepiece's mark for the space before a word
# runs of letters, single digits, single other characters, each with the space before it: tokens never span white
# space, and in "(A)" the letter is a piece of its own whatever the texts were
_PIECES = Regex(rf"{_SPACE}?(?:[\p{{L}}\p{{M}}]+|[^\p{{L}}\p{{M}}{_SPACE}])|{_SPACE}")


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are the words of `texts`.

    The special tokens and their ids are T5's: `<pad>` 0, `</s>` 1, `<unk>` 2; `</s>` is put behind every text.
    `decode(encode(text), skip_special_tokens=True)` gives back any text whose words are parted by single spaces. The
    characters A to Z after "The answer is (" are one token each.

    Args:
        texts: any strings.
        vocab_size: upper bound. 3 special tokens, 256 bytes and the printable ASCII characters (each also with a
            space before it) are always in; the rest goes to the most frequent pieces of `texts`, the earlier on ties.

    Raises:
        ValueError: if `vocab_size` leaves no room for what is always in.
    """
    characters = [c for c in string.printable if not c.isspace()]
    always = ["<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), _SPACE]
    always += [*characters, *(_SPACE + c for c in characters)]
    if vocab_size < len(always):
        raise ValueError(f"vocab_size {vocab_size} is too small: at least {len(always)} are needed")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True),
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
        ]
    )
    counts: Counter[str] = Counter()
    for word, times in Counter(word for text in texts for word in text.split()).items():
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(word):  # which never spans white space
            counts[piece] += times
    known = set(always)
    words = [piece for piece, _ in counts.most_common() if piece not in known][: vocab_size - len(always)]
    total = sum(counts.values()) + 1
    # a Unigram model picks the segmentation with the highest sum: one whole word beats any spelling (every score is
    # negative and a character costs more than any word), a character beats its bytes
    scores = [(piece, -20.0 if piece in known else math.log(counts[piece] / total)) for piece in (*always, *words)]
    tokenizer.model = models.Unigram(scores, unk_id=2, byte_fallback=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
