"""The padding token of a classifier, by which its class finds the last token of a text."""

from __future__ import annotations

from transformers import PreTrainedConfig

from monolora.hub import load_tokenizer


def padding_token(folder: str, config: PreTrainedConfig) -> int | None:
    """The tokenizer's, as beaver-dam's own code takes it, or else the config's; None if the model has neither.

    Ids that are no row of the embedding are none: some old configs have -1, some tokenizers one more than the model.
    """
    known = (load_tokenizer(folder).pad_token_id, config.pad_token_id)
    return next((token for token in known if token is not None and 0 <= token < config.vocab_size), None)


def unpadded(token_ids: list[int], pad: int | None) -> list[int]:
    """Without padding tokens at the end, where the padding token is one that texts end with, such as EOS.

    Classes of transformers pool the last token that is not the padding token; vLLM pools the last token.
    """
    end = len(token_ids)
    while end > 1 and token_ids[end - 1] == pad:
        end -= 1
    return token_ids[:end]
