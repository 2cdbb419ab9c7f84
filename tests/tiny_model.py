"""A tiny random Llama with a tiny tokenizer, saved as a Hugging Face folder."""

from pathlib import Path

CORPUS = [
    "The cat sat on the mat and looked at the rain.",
    "A film about a small town, told with patience and good humour.",
    "It was terrible. It was great. Yes or no?",
    "Numbers such as 0 1 2 3 4 5 6 7 8 9 stand here too.",
]


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tiny_llama(folder: Path) -> Path:
    """Two blocks, hidden 32, vocabulary 300; the weights are the same at every call."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", chat_template=CHAT
    ).save_pretrained(folder)

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    # The default initial weights are so small that every probability is nearly uniform.
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.ndim == 2 else None
    model.save_pretrained(folder)
    return folder
