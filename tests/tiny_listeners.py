"""Tiny random models of real classes that look and listen, each in a folder with its processor, as downloaded."""

from __future__ import annotations

from pathlib import Path

import torch

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} Answer: {% endif %}"
)
WHISPER_MARKS = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>", "<|0.00|>")


def _alphabet(marks):
    from tokenizers.pre_tokenizers import ByteLevel

    return {token: number for number, token in enumerate([*sorted(ByteLevel.alphabet()), *marks])}


def make_describer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A LLaVA of two layers whose tokens are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    marks = ("<s>", "</s>", "<pad>", "<image>")
    words = Tokenizer(models.BPE(vocab=_alphabet(marks), merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=16),
        text_config=LlamaConfig(
            **sizes, vocab_size=len(tokenizer), bos_token_id=256, eos_token_id=257, pad_token_id=258
        ),
        image_token_id=259,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


def make_whisper(folder: Path) -> Path:
    """A Whisper of one layer whose tokens are bytes."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    tokenizer = WhisperTokenizer(
        vocab=_alphabet(WHISPER_MARKS),
        merges=[],
        unk_token=WHISPER_MARKS[0],
        bos_token=WHISPER_MARKS[0],
        eos_token=WHISPER_MARKS[0],
        pad_token=WHISPER_MARKS[0],
        additional_special_tokens=list(WHISPER_MARKS),
    )
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(folder)
    # Whatever is behind <|notimestamps|> is a time to it.
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256, "decoder_start_token_id": 257}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=40,
        **ends,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **ends,
        max_length=24,
        is_multilingual=True,
        lang_to_id={"<|en|>": 258},
        task_to_id={"transcribe": 259},
        no_timestamps_token_id=260,
        suppress_tokens=[],
        begin_suppress_tokens=[256],
    )
    model.save_pretrained(folder)
    return folder
