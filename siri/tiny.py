"""The tiny policy: a Llama of under 2 M parameters and a tokenizer whose tokens are the words of the household games.

Small enough that two CPU cores roll out and train it, standard enough that vLLM and transformers load it as they load
any model. `siri warmstart` makes it; the result is shipped in `siri/policies/tiny`.
"""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, ACT, END, PAD = "<|begin|>", "<|act|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first %}" + BEGIN + "{% endif %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'user' %}" + ACT + "{% else %}" + END + "{% endif %}"
    "{% endfor %}"
)


def train_tokenizer(corpus: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text can be written, and each frequent word is one token wherever it stands.

    A space is put before each text, so that a word has one token at the start of a message and inside it alike: copying
    `mug` from the task into an action is then the copy of one token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BEGIN, ACT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[ACT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int, heads: int, intermediate: int, seed: int
) -> LlamaForCausalLM:
    """A freshly initialised model; equal arguments give equal weights."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    torch.random.set_rng_state(generator_state)
    return model
