"""``monolora configs``: the configurations that come with the project, usable by name from any folder.

monolora configs
monolora sft --config sst2-smollm2 --adapter lora
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monolora.cli.flags import FlagParser

_PACKAGE = Path(__file__).parent.parent
FOLDERS = {
    "monolora sft": "recipes/configs",
    "monolora dpo": "recipes/configs/preferences",
    "monolora eval run": "eval/configs",
    "monolora study": "recipes/study",
    "monolora vision all": "recipes/vision/configs",
    "accelerate launch --config_file": "recipes/accelerate",  # read by accelerate, which takes paths alone
}


def main(argv: Sequence[str]) -> int:
    """Print name and purpose of each packaged configuration, by the program that takes it."""
    FlagParser("monolora configs", __doc__).parse(argv)
    for program, folder in FOLDERS.items():
        by_name = program.startswith("monolora")
        print(f"{program} --config NAME" if by_name else f"{program} FILE")
        for path in sorted((_PACKAGE / folder).glob("*.yaml")):
            purpose = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            print(f"  {path.stem:24}{purpose}" if by_name else f"  {path}\n  {'':24}{purpose}")
        print()
    return 0


def resolved(path: Path) -> Path:
    """The packaged file of that name, with or without ``.yaml``; ``path`` itself if it is a file or there is none."""
    if path.is_file() or path.parent != Path():
        return path
    packaged = (_PACKAGE / folder / f"{path.name.removesuffix('.yaml')}.yaml" for folder in FOLDERS.values())
    return next((file for file in packaged if file.is_file()), path)
