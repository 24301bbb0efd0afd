"""What PEFT's tests must do under MonoLoRA: the failures that are right, those that are waived, and how many pass.

Every entry is strict: a listed test that passes, or fails in another way, is a failure of the suite.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest


class Failure(NamedTuple):
    """An expected failure.

    Attributes:
        tests: regular expression, matched against the whole test name with its ``[parameters]``.
        error: type of the error.
        message: regular expression, searched in the error's message.
        reason: why this is right, or why it is waived.
    """

    tests: str
    error: type[BaseException] | tuple[type[BaseException], ...]
    message: str
    reason: str


NOT_MERGEABLE = "there is no weight to merge it into"
NOT_SUPPORTED = "MonoLoRA does not support"

# A row that asks for one of LoRA's variants, or for this model of PEFT's, cannot run at all: its first test must
# raise, the others are dropped.
REFUSED_ROW = Failure(".*", ValueError, NOT_SUPPORTED, "an option or a module that MonoLoRA refuses by name")
REFUSED_MODEL = "MHA"

MUST_RAISE = (
    Failure(
        r"test_(merge_layers|safe_merge|delete_merged_adapter|merge_with_lora_bias|lora_safe_merge"
        r"|sequential_merge_matches|unmerge_after_sequential_merge|multiple_active_adapters_merge_and_unmerge"
        r"|mixed_adapter_batches_merged_raises|disable_adapters_with_merging)\w*(\[.*\])?",
        (ValueError, NotImplementedError),
        NOT_MERGEABLE,
        "merges",
    ),
    Failure(
        r"test_(forward_(b?float16)(_no_autocast)?\[.*\]|lora_embed_scale_is_applied\[False\])",
        ValueError,
        NOT_MERGEABLE,
        "merges after its forward passes",
    ),
    Failure(
        r"test_(weighted_combination_of_adapters|add_weighted_adapter_with_different_scaling)\[.*\]"
        r"|test_add_weighted_adapter_(negative_weight_negates_adapter|subtraction_with_negative_weights)"
        r"|test_multiple_adapters_mixed_modules_to_save_merging_adapters",
        ValueError,
        "can only be combined with combination_type='cat'|Cannot combine adapters that train more than A and B",
        "adds up adapters other than by units side by side, or with saved modules",
    ),
    Failure(
        r"test_multiple_adapters_(same|seq_cls_mixed)_modules_to_save_merging_adapters\w*",
        AssertionError,
        r"Regex pattern did not match[\s\S]*Cannot combine adapters that train more than A and B",
        "adds up adapters with saved modules; refused in our words where the test expects PEFT's",
    ),
    Failure(
        r"test_save_pretrained(_selected_adapters)?_pickle\[.*\]",
        ValueError,
        "is a pickle; MonoLoRA adapters are read from adapter_model.safetensors only",
        "loads a pickle",
    ),
    Failure(
        r"test_load_resized_embedding_ignore_mismatched_sizes",
        ValueError,
        r"Tensor '.*' has shape \(\d+, 100\) in the file",
        "loads a tensor of another shape",
    ),
    Failure(
        # All but those of the one model whose adapted layer, an embedding, has no bias.
        r"test_save_load_roundtrip_fsdp_wrapped_learnable_bias"
        r"\[(bias_all-.*|bias_peft_method_only-(?!Embedding \+ transformers Conv1D 2 ).*)\]",
        ValueError,
        r"has the foreign tensor '.*bias'",
        "loads biases of the base into an adapter whose config has bias='none'",
    ),
    Failure(
        "test_load_does_not_overwrite_similarly_named_sibling",
        ValueError,
        "has the foreign tensor 'base_model.model.embed_tokens.weight'",
        "loads an embedding over that of another base, which the adapter's config does not name",
    ),
    Failure(
        r"test_(lora_layer_replication|lora_embed_scale_is_applied\[True\]|mha_gradients_set_correctly\[.*\]"
        r"|mixed_adapter_batches_mha_raises\[.*\]|unload_adapter_multihead_attention|repr_lora_paramwrapper"
        r"|monteclora_variational_loss_computation\w*|\w*dora_\w+(\[.*\])?)",
        ValueError,
        NOT_SUPPORTED,
        "an option or a module that MonoLoRA refuses by name",
    ),
)

WAIVED = (
    Failure(
        r"test_repr_lora_(linear|embedding|conv1d|conv2d)",
        AssertionError,
        "startswith",
        "our layers call themselves monolora.Linear and so on, so that a printed model shows which method it has",
    ),
    Failure(
        r"test_merge_and_unload_fixes_tie_word_embeddings_config",
        pytest.fail.Exception,
        "DID NOT WARN",
        "merges inside pytest.warns, which reports the missing warning in the place of our refusal",
    ),
    Failure(
        r"test_add_adapter_rejects_duplicate_name_without_mutation\[True\]",
        ValueError,
        "'MONOLORA' is not compatible with the `PeftMixedModel`",
        "PeftMixedModel takes the methods of a fixed list in PEFT; a method from outside cannot be on it",
    ),
    Failure(
        r"test_only_params_are_updated\[Embedding \+ transformers Conv1D 2 LoRA-.*\]",
        AssertionError,
        "allclose",
        "an embedding's B starts at zero (LoRA's zero A has no gradient under ReLU), and on this model, which PEFT "
        "trains at lr=100 for DoRA, A's gradient is below 1e-4 in the three steps at lr=0.5",
    ),
    Failure(
        r"test_disable_adapters\[Conv2d Groups2 LoRA-.*\]",
        AssertionError,
        "allclose",
        "inputs up to 57,600 and gradients of 200,000: within three steps all eight ReLU units die",
    ),
)


class Counts(NamedTuple):
    """Fewest tests that must pass, and fewest that must raise as they should, in a group."""

    passed: int
    must_raise: int


class Group(NamedTuple):
    """Test files that run in one process.

    Attributes:
        files: names of PEFT's test files.
        least: below these counts the group fails, so that a suite that skips or drops everything cannot pass.
    """

    files: tuple[str, ...]
    least: Counts


# All that passed and raised under PEFT 0.21.2: every test is seeded, so no fewer will elsewhere.
GROUPS = {
    "custom models": Group(("test_custom_models.py",), Counts(passed=877, must_raise=413)),
    "decoder models": Group(("test_decoder_models.py",), Counts(passed=319, must_raise=77)),
    "other transformers": Group(
        (
            "test_encoder_decoder_models.py",
            "test_seq_classifier.py",
            "test_feature_extraction_models.py",
            "test_token_classification_qa.py",
        ),
        Counts(passed=272, must_raise=44),
    ),
}
