"""Registration with PEFT and transformers, all or nothing: :func:`register`. vLLM has its own plugin."""

from __future__ import annotations

from monolora import patching


def register() -> None:
    """Register the PEFT method ``MONOLORA`` and the exact checkpoints; a second call does nothing.

    Raises:
        InputError: if the installed PEFT or transformers is not supported; with the line that installs one that is.
            Nothing has been changed then.
    """
    patching.check_version("peft")
    patching.check_version("transformers")
    with patching.naming_versions():
        from monolora.integrations import peft, transformers

    if peft.is_registered():
        return
    patching.wrap_all(peft.WRAPPERS | transformers.WRAPPERS)
    peft.add_method()
    transformers.add_exact_checkpoints()
