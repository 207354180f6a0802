"""Tiny random models, tokens and a tokenizer for the tests; nothing here is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from llmrank.text import TokenSequences
from tests.llmrank.families import FAMILIES, Family

VOCABULARY, HIDDEN, FFN, POSITIONS = 64, 16, 40, 64
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "max_position_embeddings": POSITIONS,
    **HEADS,
    **SPECIAL,
}
# Families that differ in what pruning meets: gated or plain FFNs, fused or transposed matrices, biases, norms behind the FFN,
# FFNs beside the attention, encoders, two stacks, and other layers than attention.
DISTINCT = {"Llama, SmolLM2", "Gemma 2", "Phi-3", "GPT-2", "Falcon", "T5", "BERT", "Jamba (dense)"}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 40, "n_positions": 64},
    "bloom": {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "falcon": {
        "vocab_size": 64,
        "hidden_size": 16,
        "ffn_hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "opt": {
        "vocab_size": 64,
        "hidden_size": 16,
        "ffn_dim": 40,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "t5": {
        "vocab_size": 64,
        "d_model": 16,
        "d_ff": 40,
        "d_kv": 4,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
}
CONFIGS |= {
    # One layer of each kind.
    "jamba": LLAMA
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1, "mamba_dt_rank": 4},
    "olmo_hybrid": LLAMA
    | {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "mllama_text_model": LLAMA | {"cross_attention_layers": [1]},
}
# Families in which some blocks have no self-attention over the text.
MIXED = ("jamba", "olmo_hybrid", "mllama_text_model")
# The maps of a Llama in the explicit form, as in the paper's code.
STRUCTURE: dict[str, Any] = {
    "path_to_layers": ["model", "layers"],
    "path_to_modules": (("mlp", "up_proj"), ("mlp", "down_proj")),
}
AUTOS = {
    "t5": "AutoModelForSeq2SeqLM",
    "bert": "AutoModelForMaskedLM",
    "roberta": "AutoModelForMaskedLM",
    "modernbert": "AutoModelForMaskedLM",
    "mllama_text_model": "MllamaForCausalLM",
}
TALE = "the cat sat on a mat and saw another one bark at night while stars went over hills"
WORDS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", *(f"w{k}" for k in range(4, VOCABULARY))]


def family_config(family: Family, **changes: Any) -> Any:
    options = {**SPECIAL, **CONFIGS.get(family.model_type, LLAMA), **changes}
    if family.model_type == "t5" and family.kind == "gated":
        options["feed_forward_proj"] = "gated-gelu"
    if family.model_type == "modernbert":
        options |= {"cls_token_id": 1, "sep_token_id": 2}
    return transformers.CONFIG_MAPPING[family.model_type](**options)


def auto_class(family: Family) -> Any:
    return getattr(transformers, AUTOS.get(family.model_type, "AutoModelForCausalLM"))


def family_model(family: Family, seed: int = 0, **changes: Any) -> Any:
    """Make a model of a family with biases that are not zero; the zeros of a new model would hide a forgotten bias."""
    torch.manual_seed(seed)
    auto = auto_class(family)
    build = auto.from_config if hasattr(auto, "from_config") else auto._from_config
    model = build(family_config(family, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual initialisation, so that a difference of 1e-5 in the logits is meaningful.
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def disturbed(model: Any, scale: float = 0.05) -> Any:
    """Return a copy of a model with slightly different parameters."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return twin


def families(*left_out: str, fast: Collection[str] = DISTINCT) -> list[Any]:
    """All families but some, as parameters of a test; all but the fast ones, which differ most, are slow tests."""
    return [
        pytest.param(family, id=family.name, marks=[] if family.name in fast else [pytest.mark.slow])
        for family in FAMILIES
        if family.name not in left_out
    ]


every_family = pytest.mark.parametrize("family", families())


def named_family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    return family_model(named_family("Llama, SmolLM2"), seed, **changes)


def bigram_model(follows: Mapping[int, int], otherwise: int) -> Any:
    """Make a model that writes after each token the one that `follows` it; after others it writes `otherwise`."""
    model = tiny_llama(tie_word_embeddings=False, num_hidden_layers=1, hidden_size=VOCABULARY, head_dim=16)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        model.lm_head.weight.zero_()
        model.lm_head.weight[otherwise] = 1.0
        for here, there in follows.items():
            model.lm_head.weight[there, here] = 2.0
    return model


def tiny_t5(seed: int = 0, **changes: Any) -> Any:
    return family_model(named_family("T5"), seed, **changes)


def token_ids(n: int = 4, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Return random token ids that are not special."""
    return torch.randint(4, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(seed))


def whole_sequences(ids: torch.Tensor, mask: torch.Tensor | None = None) -> TokenSequences:
    """Make sequences of token ids (or features); without a mask none of them is padding."""
    return TokenSequences.of(ids, torch.ones(ids.shape[:2], dtype=torch.bool) if mask is None else mask, "test")


def padded_sequences() -> TokenSequences:
    """Make five sequences of up to 12 tokens; the second has 8 and the fourth 5, and the rest is padding."""
    ids = token_ids(5, 12)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 8:] = mask[3, 5:] = False
    return whole_sequences(torch.where(mask, ids, 0), mask)


def repeated(weight: torch.Tensor) -> torch.Tensor:
    """Repeat the value rows of each group for all heads that share them."""
    width, groups = HEADS["head_dim"], HEADS["num_key_value_heads"]
    heads = [weight[k * width : (k + 1) * width] for k in range(groups)]
    return torch.cat([head for head in heads for _ in range(HEADS["num_attention_heads"] // groups)])


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    """Make a sequence of Linears with activation functions between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for position in range(len(sizes) - 1):
        layers += [activation()] if position else []
        layers.append(nn.Linear(sizes[position], sizes[position + 1]))
    return nn.Sequential(*layers)


def features(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def tokenizer(*, special: bool = True, pad: bool = True) -> Any:
    """Make a tokenizer for the words w4 .. w63; with `special`, a text becomes [BOS] text [EOS]."""
    backend = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        backend.post_processor = processors.TemplateProcessing(
            single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]" if pad else None,
    )


def write_vocabulary(path: Path, tokens: list[str] = WORDS) -> Path:
    """Write a GGUF file that holds a tokenizer and no weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["w 4"])
    writer.add_token_types([1] * len(tokens))
    writer.add_add_bos_token(value=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def spelling_tokenizer(*, across: bool = False, front: bool = False, back: bool = False) -> Any:
    """Train byte pairs on few words: short words are one token, others several; `across` merges over spaces too."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    # Without pre-tokenisation, the alphabet would be that of the training text.
    backend.pre_tokenizer = None if across else pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=special, show_progress=False)
    backend.train_from_iterator(["the cat sat on the mat", "the cat sat on a mat", TALE] * 3, trainer)
    if front or back:
        pattern = f"{'[BOS] ' if front else ''}$A{' [EOS]' if back else ''}"
        backend.post_processor = processors.TemplateProcessing(
            single=pattern, special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )


def text(n: int, seed: int = 0) -> str:
    """Return `n` words of one token each."""
    return " ".join(f"w{int(k)}" for k in token_ids(1, n, seed)[0])


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    if not hasattr(model, "config"):
        result: torch.Tensor = model(ids)
        return result
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    if model.config.model_type == "mllama_text_model":
        # Without an image, the model skips its cross-attention layers.
        states = torch.randn(len(ids), 3, HIDDEN, generator=torch.Generator().manual_seed(3))
        more = {"cross_attention_states": states.to(model.dtype)}
    output: torch.Tensor = model(input_ids=ids, **more).logits
    return output


class Snapshot:
    """Everything that a transaction must restore: parameters (bits, identity, order), buffers, hooks, modes, attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = [(name, parameter) for name, parameter in model.named_parameters()]
        self.bits = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.order = list(model.state_dict())
        self.attributes = {name: self._of(module) for name, module in model.named_modules()}
        self.config = self._config()

    @staticmethod
    def _of(module: nn.Module) -> dict[str, Any]:
        hooks = {name: len(value) for name, value in vars(module).items() if name.endswith("_hooks")}
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str))}
        return {**hooks, **plain, "all": sorted(vars(module))}

    def _config(self) -> Mapping[str, Any] | None:
        config = getattr(self.model, "config", None)
        return None if config is None else copy.deepcopy(config.to_dict())

    def assert_restored(self) -> None:
        model = self.model
        assert list(model.state_dict()) == self.order
        for name, value in model.state_dict().items():
            assert value.dtype == self.bits[name].dtype
            assert torch.equal(value, self.bits[name]), f"{name} differs"
        for (name, parameter), (old_name, old) in zip(model.named_parameters(), self.parameters, strict=True):
            assert name == old_name
            assert parameter is old, f"{name} is another Parameter"
        for name, module in model.named_modules():
            assert self._of(module) == self.attributes[name], name
        assert self._config() == self.config
