"""Which adapter is meant: vLLM keeps adapters by number, a batch's requests by name, cached prefixes by name and path.

Nothing of it looks at the content. Two adapters that share one of these would be answered through the first of them.
Where only plain LoRA adapters are concerned, vLLM's behaviour stays what it is.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

from monolora.errors import InputError
from monolora.fingerprints import fingerprint_files
from monolora.serving.folders import files_state, served_config


class Identity(NamedTuple):
    """An adapter in a local folder, as a request names it.

    Attributes:
        name: of the request.
        number: the request's ``lora_int_id``.
        folder: an absolute path without links.
        content: a hash of its files.
        is_monolora: whether it is one of ours.
    """

    name: str
    number: int
    folder: str
    content: str
    is_monolora: bool

    @classmethod
    def of(cls, lora_request: Any) -> Identity:
        """As its files are now.

        Raises:
            AdapterFileError: if they are damaged.
        """
        folder = os.path.realpath(lora_request.lora_path)
        content = _content(folder, files_state(folder))
        is_monolora = served_config(folder) is not None
        return cls(lora_request.lora_name, lora_request.lora_int_id, folder, content, is_monolora)

    def check_unchanged(self, before: Identity) -> None:
        """Raises: InputError, if the same name and folder had other files before; not among plain LoRA adapters."""
        if not (self.is_monolora or before.is_monolora):
            return
        if self.folder == before.folder and self.name == before.name and self.content != before.content:
            raise InputError(
                f"{self.folder} does not hold the files that were loaded from there. Put those back, or load the new "
                "ones from another folder: vLLM keeps what it has computed by name and path."
            )

    def check_distinct(self, other: Identity) -> None:
        """Raises: InputError, if this is not ``other`` and shares its name or number."""
        if not (self.is_monolora or other.is_monolora):
            return
        same_name, same_number = self.name == other.name, self.number == other.number
        if (same_name or same_number) and not (same_name and same_number and self.content == other.content):
            changed = "other weights of " if self.folder == other.folder and self.content != other.content else ""
            raise InputError(
                f"LoRARequest({self.name!r}, {self.number}) for {self.folder}: this engine already answers "
                f"LoRARequest({other.name!r}, {other.number}) through {changed}{other.folder}. Give every adapter a "
                "name and a number of its own."
            )


@functools.lru_cache(maxsize=1024)
def _content(folder: str, state: object) -> str:
    """Read once for each state of the files."""
    return fingerprint_files(folder) + fingerprint_files(folder, ".json")
