"""Make models/t5-sounds: a small T5 with random weights, and a tokenizer of letters and sounds. It has learned nothing.

No pretrained model that reads one text and writes another comes in a package, so recipes that need one begin with this
one. Its weights follow from a fixed seed. A token is a lower-case letter or a word in capitals (a sound of the CMU
Pronouncing Dictionary), so "cat" is three tokens and "K AE T" too.

    python scripts/model_t5_small.py
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

MODELS = Path(__file__).resolve().parent.parent / "models"
SEED = 0
LONGEST = 64  # tokens
SPECIAL = ["<pad>", "</s>", "<unk>"]
SOUNDS = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"  # ARPAbet
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=MODELS, help="the folder to put it in (default: models)")
    folder = parser.parse_args().into / "t5-sounds"
    words = tokenizer()
    torch.manual_seed(SEED)
    model = T5ForConditionalGeneration(config(len(words)))
    model.generation_config = GenerationConfig(
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, max_new_tokens=LONGEST
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    print(f"{folder}: {model.num_parameters():,} parameters, none of them trained; {len(words)} tokens")


def tokenizer() -> PreTrainedTokenizerFast:
    """Splits letters from one another and keeps words in capitals; ends every text with </s>."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *string.ascii_lowercase, *SOUNDS.split()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[A-Z]+|[^A-Z]"), "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def config(vocabulary: int) -> T5Config:
    return T5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_layers=3,
        num_decoder_layers=3,
        num_heads=4,
        relative_attention_max_distance=32,
        dropout_rate=0.0,  # in ten minutes it sees each word a few times: it learns too little, not too much
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


if __name__ == "__main__":
    main()
