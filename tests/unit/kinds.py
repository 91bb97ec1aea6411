"""Tokenizers and chat templates of the kinds that models come with, and what each template says is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.example import Conversation, Segments, Turn
from peftctl.text.tokens import Encoded
from tests import tiny

LLAMA3 = (
    "{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
# Drops what an earlier turn thought, as the templates of reasoning models do.
FORGETFUL = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and not loop.last and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The answer follows a space of the prompt's, which byte-level merges like to take with the word after it.
SPACED = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SPECIAL = [
    "<|end|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "</s>",
]  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A chat template with, by formula, the text of a conversation and what is learned of an assistant's turn."""

    name: str
    jinja: str
    write: Callable[[Turn], str]
    learned: Callable[[str], str]
    system: bool = True
    alternates: bool = False


def _chatml(turn: Turn) -> str:
    return f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n"


def _llama3(turn: Turn) -> str:
    return f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n{turn.content.strip()}<|eot_id|>"


def _gemma(turn: Turn) -> str:
    role = "model" if turn.role == "assistant" else turn.role
    return f"<start_of_turn>{role}\n{turn.content.strip()}<end_of_turn>\n"


def _mistral(turn: Turn) -> str:
    return f"[INST] {turn.content} [/INST]" if turn.role == "user" else f" {turn.content}</s>"


def _spaced(turn: Turn) -> str:
    return f"{turn.role}: {turn.content}<|end|>\n"


TEMPLATES = (
    Template("chatml", tiny.CHATML, _chatml, lambda text: f"{text}<|im_end|>"),
    Template("llama3", LLAMA3, _llama3, lambda text: f"{text.strip()}<|eot_id|>"),
    Template("gemma", GEMMA, _gemma, lambda text: f"{text.strip()}<end_of_turn>", system=False),
    Template("mistral", MISTRAL, _mistral, lambda text: f" {text}</s>", system=False, alternates=True),
    Template("spaced", SPACED, _spaced, lambda text: f"{text}<|end|>"),
)


def user(text: str) -> Turn:
    return Turn("user", text)


def system(text: str) -> Turn:
    return Turn("system", text)


def assistant(text: str, weight: float = 1.0) -> Turn:
    return Turn("assistant", text, weight)


def chat(*turns: Turn) -> Conversation:
    return Conversation(turns)


def only(rows: Sequence[Segments]) -> Segments:
    """The one row that a conversation became."""
    (row,) = rows
    return row


def _wrapped(core: Any, template: str | None = None, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    made.chat_template = template
    return made


def merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-level merges that make a token of each ASCII word, from its left; spaces and newlines as Ġ and Ċ."""
    made: list[tuple[str, str]] = []
    for word in words:
        letters = word.replace(" ", "Ġ").replace("\n", "Ċ")
        for end in range(1, len(letters)):
            pair = (letters[:end], letters[end])
            if pair not in made:
                made.append(pair)
    return made


def byte_level(
    template: str | None = None, words: Sequence[str] = (), *, trim_offsets: bool | None = None, regex: bool = False
) -> Any:
    """Byte-level BPE with a token for each of ``words``; it gives every text back as it was."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pairs = merges(words)
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in pairs)]
    core = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(vocabulary)}, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    core.decoder = decoders.ByteLevel()
    if trim_offsets is not None:
        core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    core.add_special_tokens(SPECIAL)
    return _wrapped(core, template, eos_token="<|end|>", pad_token="<|end|>")


def bytes_are_ids(
    special: Sequence[str], template: str | None = None, *, begin: str | None = None, **names: str | None
) -> Any:
    """Byte-level with a byte's value for its id, and ``special`` from 256 on: what it makes can be read by hand.

    ``begin``: the special token that it puts before text by itself.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes whose letter is their own
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(b for b in range(256) if b not in letters)}
    core = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in letters.items()}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(special))
    if begin:
        placed = [(begin, core.token_to_id(begin))]
        core.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=placed)
    return _wrapped(core, template, **{name: token for name, token in names.items() if token})


def sentencepiece(template: str | None = None, *, prefix: bool, begins: bool = False) -> Any:
    """BPE over letters with byte fallback and ▁ for a space, as Llama 2's (``prefix``) and Mistral's tokenizers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    letters = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    pairs = [("▁", letter) for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"] + [("▁", "▁")]
    words = ["<unk>", "<s>", "</s>", *fallback, *letters, *("".join(pair) for pair in pairs)]
    vocabulary = {word: index for index, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    core.add_special_tokens(["<s>", *SPECIAL])
    if begins:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(core, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace(template: str | None = None, scheme: str = "first") -> Any:
    """Unigram over letters behind a Metaspace pre-tokenizer, as T5's and XLM-R's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = [chr(code) for code in range(33, 127)] + ["\n"]
    scores = [("<unk>", 0.0), ("▁", -3.0), *((letter, -4.0) for letter in letters)]
    scores += [(f"▁{letter}", -3.5) for letter in letters[:94]]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.add_special_tokens(SPECIAL)
    return _wrapped(core, template, eos_token="</s>", unk_token="<unk>")


def wordpiece(template: str | None = None) -> Any:
    """WordPiece over lower-cased letters, as BERT's: capitals, accents and spacing do not come back."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = ["[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    core = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.add_special_tokens(SPECIAL)
    return _wrapped(core, template, eos_token="<|end|>", unk_token="[UNK]")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def learned_texts(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The texts of the runs of learned ids, each as what it adds to the text before it."""
    texts = []
    start = 0
    while start < len(encoded.ids):
        end = start + 1
        while end < len(encoded.ids) and (encoded.weights[end] != 0) == (encoded.weights[start] != 0):
            end += 1
        if encoded.weights[start] != 0:
            before, through = decode(tokenizer, encoded.ids[:start]), decode(tokenizer, encoded.ids[:end])
            assert through.startswith(before)
            texts.append(through[len(before) :])
        start = end
    return texts
