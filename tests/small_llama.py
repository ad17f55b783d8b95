"""Random Llamas small enough to train and to run whole benchmarks in seconds; a tokenizer of 1,000 tokens, ChatML."""

from iris.poetry.verses import first_exchange, read_verses


def make_tokenizer():
    """Byte-level BPE trained on the bundled verses, with ChatML as its template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text for row in read_verses("train") for text in first_exchange(row)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    )


def make_model(folder, tokenizer, seed=0, dtype="float32", shards="50GB", **config):
    """The model with its tokenizer as a Hugging Face folder, which is returned: one layer, 32 wide, unless `config`
    says otherwise."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    whole = LlamaConfig(**{"initializer_range": 0.2} | sizes | tokens | config)
    AutoModelForCausalLM.from_config(whole, dtype=dtype).save_pretrained(folder, max_shard_size=shards)
    tokenizer.save_pretrained(folder)
    return folder
