"""Makes a tiny, seeded HumanOmni with tokenizers of its own, in the native format, for the toy world and for tests.

    python scripts/make_tiny_model.py --corpus data/toy/sft_train.jsonl --output models/tiny

Every part of the real model is there (SigLIP, Whisper, BERT gate, three-branch projector, Qwen2), a few layers thin.
Its tokenizers are trained on the corpus, so that a word is about one token.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import (
    BertConfig,
    BertTokenizer,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    set_seed,
)

from humanomni.configuration import HumanOmniConfig
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import PLACEHOLDERS, HumanOmniProcessor
from humanomni.prompts import user_content
from humanomni.records import Record, read_records

logger = logging.getLogger("make_tiny_model")

END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IMAGE_SIZE, PATCH_SIZE = 48, 8
SOUND_SECONDS, MEL_BINS = 4, 64
GATE_VOCAB_SIZE = 512
INIT_STD = 0.06  # narrow layers want larger weights than the 0.02 of wide ones


def corpus_texts(path: Path) -> Iterator[str]:
    """What the model will read and write: each record's prompt and target."""
    for record in read_records(path):
        assert isinstance(record, Record)  # read_records raises at a line that is none
        yield user_content(record.question)
        yield record.target or ""


def train_tokenizer(texts: list[str], vocab_size: int) -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE, its merges learnt from ``texts``, with its chat marks as special tokens."""
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts,
        vocab_size - len(PLACEHOLDERS),
        new_special_tokens=["<|im_start|>", END_OF_TURN],
        show_progress=False,
    )
    tokenizer.eos_token, tokenizer.pad_token = END_OF_TURN, END_OF_TEXT
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train_gate_tokenizer(texts: list[str], vocab_size: int) -> BertTokenizer:
    """BERT's WordPiece with the corpus's characters and its most frequent words as pieces.

    The trainer of the tokenizers library breaks ties by the order of a hash table, so that two runs of it differ.
    """
    stock = BertTokenizer()
    backend = stock.backend_tokenizer
    normalised = (backend.normalizer.normalize_str(text) for text in texts)
    words = Counter(word for text in normalised for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    characters = sorted(set("".join(words)))
    ranked = sorted(words, key=lambda word: (-words[word], word))
    special = sorted(stock.get_vocab(), key=stock.get_vocab().__getitem__)
    pieces = [*special, *characters, *(f"##{character}" for character in characters), *ranked]
    vocab = {piece: index for index, piece in enumerate(list(dict.fromkeys(pieces))[:vocab_size])}
    return BertTokenizer(vocab=vocab, model_max_length=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="SFT records whose words the tokenizer learns")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab_size", type=int, default=768)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")

    texts = list(corpus_texts(args.corpus))
    tokenizer = train_tokenizer(texts, args.vocab_size)
    gate_tokenizer = train_gate_tokenizer(texts, GATE_VOCAB_SIZE)
    config = HumanOmniConfig(
        text_config=Qwen2Config(
            vocab_size=args.vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=INIT_STD,
        ).to_dict(),
        vision_config=SiglipVisionConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ).to_dict(),
        audio_config=WhisperConfig(
            d_model=96,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=192,
            num_mel_bins=MEL_BINS,
            max_source_positions=SOUND_SECONDS * 50,
            init_std=INIT_STD,
        ).to_dict(),
        bert_config=BertConfig(
            vocab_size=len(gate_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=256,
        ).to_dict(),
        gate_hidden_size=64,
        initializer_range=INIT_STD,
        audio_pool=5,  # 40 audio tokens for 4 s
    )
    processor = HumanOmniProcessor.for_config(
        config,
        image_processor=SiglipImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        feature_extractor=WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=SOUND_SECONDS),
        tokenizer=tokenizer,
        gate_tokenizer=gate_tokenizer,
    )
    set_seed(args.seed)
    model = HumanOmniForConditionalGeneration(config)
    model.float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = processor.placeholder_ids
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    logger.info(
        "%s: %.2f M parameters, %d + %d media tokens a clip, %d words and pieces",
        args.output,
        model.num_parameters() / 1e6,
        config.num_video_tokens,
        config.num_audio_tokens,
        len(tokenizer),
    )


if __name__ == "__main__":
    main()
