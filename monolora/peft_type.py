"""``PeftType.MONOLORA``: PEFT has no public registration for a new type, and its enum is plain."""

from __future__ import annotations

from peft import PeftType

NAME = "MONOLORA"


def extend_peft_type() -> None:
    """Add ``PeftType.MONOLORA``: a true member, so that ``.value``, pickle, deepcopy and JSON work."""
    if NAME in PeftType.__members__:
        return
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    setattr(PeftType, NAME, member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
