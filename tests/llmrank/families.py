"""The families of models that tests build tiny models of."""

from __future__ import annotations

from dataclasses import dataclass

from llmrank.models.ffn import FFNKind

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes
    ----------
    name : str
        Common name.
    model_type : str
        Name in transformers (``config.model_type``).
    kind : {"plain", "gated", "fused"}
        See :class:`llmrank.models.FFN`.
    width_attribute : str or None
        Configuration attribute that holds the width of the FFNs, if there is one.
    """

    name: str
    model_type: str
    kind: FFNKind
    width_attribute: str | None = "intermediate_size"


FAMILIES: tuple[Family, ...] = (
    Family("Llama, SmolLM2", "llama", "gated"),
    Family("Mistral", "mistral", "gated"),
    Family("Qwen2", "qwen2", "gated"),
    Family("Qwen3", "qwen3", "gated"),
    Family("Gemma", "gemma", "gated"),
    Family("Gemma 2", "gemma2", "gated"),
    Family("Gemma 3 (text)", "gemma3_text", "gated"),
    Family("Phi", "phi", "plain"),
    Family("Phi-3", "phi3", "fused"),
    Family("GLM", "glm", "fused"),
    Family("StableLM", "stablelm", "gated"),
    Family("Granite", "granite", "gated"),
    Family("OLMo 2", "olmo2", "gated"),
    Family("SmolLM3", "smollm3", "gated"),
    Family("Cohere", "cohere", "gated"),
    Family("Jamba (dense)", "jamba", "gated"),
    Family("OLMo Hybrid", "olmo_hybrid", "gated"),
    Family("Llama 3.2 Vision (text)", "mllama_text_model", "gated"),
    Family("GPT-2", "gpt2", "plain", "n_inner"),
    Family("GPT-NeoX, Pythia", "gpt_neox", "plain"),
    Family("OPT", "opt", "plain", "ffn_dim"),
    Family("BLOOM", "bloom", "plain", None),
    Family("Falcon", "falcon", "plain", "ffn_hidden_size"),
    Family("T5", "t5", "plain", "d_ff"),
    Family("T5 v1.1, Flan-T5", "t5", "gated", "d_ff"),
    Family("BERT", "bert", "plain"),
    Family("RoBERTa", "roberta", "plain"),
    Family("ModernBERT", "modernbert", "fused"),
)
