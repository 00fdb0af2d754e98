"""The words inside scikit-learn: every distinct word of its data sets' descriptions, and a tokenizer of letters.

Words are 3 to 12 letters long, lower case. A prompt is a word's first letter, a completion the rest of it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from girsanov.errors import GirsanovError
from girsanov.language.tokens import Encoder

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST, LONGEST = 3, 12
ROW = LONGEST + 4  # letters of a row at most, with its end; longer ones are cut


@dataclass(frozen=True)
class Words:
    """Distinct words, sorted."""

    words: tuple[str, ...]

    def __contains__(self, word: object) -> bool:
        return word in self.known

    @property
    def known(self) -> frozenset[str]:
        """As a set."""
        return _known(self)

    def pairs(self) -> list[tuple[str, list[str]]]:
        """First letters and what follows them."""
        return [(w[0], [w[1:]]) for w in self.words]


@lru_cache(maxsize=4)
def _known(words: Words) -> frozenset[str]:
    return frozenset(words.words)


@lru_cache(maxsize=1)
def load_words() -> Words:
    """Reads the descriptions (no network). Raises GirsanovError if this scikit-learn has none."""
    folder = resources.files("sklearn.datasets").joinpath("descr")
    found: set[str] = set()
    if folder.is_dir():
        for file in sorted(folder.iterdir(), key=lambda f: f.name):
            if file.name.endswith(".rst"):
                found |= set(re.findall(r"[a-z]+", file.read_text(encoding="utf-8").lower()))
    words = tuple(sorted(w for w in found if SHORTEST <= len(w) <= LONGEST))
    if len(words) < 100:
        raise GirsanovError("this scikit-learn comes without its descriptions of data sets: install it from PyPI")
    return Words(words)


@lru_cache(maxsize=1)
def letters() -> Any:
    """A tokenizer of single letters. Raises GirsanovError without the extra."""
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise GirsanovError("language models need transformers: pip install 'girsanov[llm]'") from None
    vocabulary = {"</s>": 0, **{c: i for i, c in enumerate(LETTERS, 1)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")


def word_encoder() -> Encoder:
    """Rows of single words."""
    return Encoder(letters(), ROW, template=False)
