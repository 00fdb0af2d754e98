"""Tiny language models for tests: random weights from a configuration, tokenizers made from a few lines."""

import functools

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from girsanov.language import Encoder, LanguageModel, LanguageNet

LINES = ["<|user|> how are you", "<|assistant|> fine, thank you", "take the red pill", "the quick brown fox"] * 4
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def letters(alphabet: str = "ab"):
    """A tokenizer of single characters: 0 is the end, then the alphabet."""
    vocabulary = {"</s>": 0, **{c: i for i, c in enumerate(alphabet, 1)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>")


def chat():
    """A byte-pair tokenizer trained on a few lines, with a chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE)


def llama(vocabulary: int, *, width: int = 16, layers: int = 2, seed: int = 0, places: int = 64, scale: float = 1.0):
    """A Llama with random weights, float64; ``scale`` makes its laws less flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=places,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    lm = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for p in lm.parameters():
            if p.ndim == 2:
                p.mul_(scale)
    return lm


def gpt2(vocabulary: int, *, width: int = 16, layers: int = 2, seed: int = 0, places: int = 64, scale: float = 1.0):
    """A GPT-2 (learned places, Conv1D layers, tied head) with random weights, float64."""
    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": places}
    config = GPT2Config(vocab_size=vocabulary, eos_token_id=0, bos_token_id=0, **sizes)
    lm = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in lm.parameters():
            if p.ndim == 2:
                p.mul_(scale)
    return lm


KINDS = {"llama": llama, "gpt2": gpt2}


@functools.lru_cache
def steady(alphabet: str = "ab", kind: str = "llama", **sizes):
    """The same, built once: for tests that do not train it."""
    return model(alphabet, kind, **sizes)


def model(
    alphabet: str = "ab", kind: str = "llama", *, max_length: int = 16, chunk: int | None = 4, packed=None, **sizes
):
    """A language model over letters."""
    net = LanguageNet(KINDS[kind](len(alphabet) + 1, **sizes), chunk, packed)
    return LanguageModel(net, Encoder(letters(alphabet), max_length))
