"""Minuscule models for tests: real architectures, random weights, a tokenizer that can write anything."""

from functools import cache
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from siri.engine import attention
from siri.engine.policy import Policy
from siri.tiny import train_tokenizer

CORPUS = ("Task: put a mug in desk.", "go to desk 1", "take mug 2 from desk 1", "mug 2, pen 1", "closed", "done")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CORPUS * 20, vocab_size=320)


def llama(*, seed: int = 0, dtype: torch.dtype = torch.float32, hidden: int = 32, layers: int = 2) -> LlamaForCausalLM:
    """Grouped-query attention, tied head. Weights large enough that log-probabilities differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer()),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * hidden,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.2,
            bos_token_id=tokenizer().bos_token_id,
            eos_token_id=tokenizer().eos_token_id,
            pad_token_id=tokenizer().pad_token_id,
        )
        return LlamaForCausalLM._from_config(config, attn_implementation=attention.register()).to(dtype).eval()


def policy(**kwargs) -> Policy:
    return Policy(model=llama(**kwargs), tokenizer=tokenizer(), source="")


def model_directory(path: Path, **kwargs) -> Path:
    """The model and tokenizer as a directory in transformers format."""
    llama(**kwargs).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
