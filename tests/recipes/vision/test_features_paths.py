"""Where results lie."""

from __future__ import annotations

from pathlib import Path

from monolora.recipes.vision.features import consistency_file, encoder_folder, finetune_file, probe_file


def test_places(tmp_path: Path) -> None:
    """Every step and seed has a place of its own, below the folder of the runs."""
    paths = [encoder_folder(tmp_path, name, seed) for name in ("simclr", "ncl", "sae") for seed in (0, 1)]
    for seed in (0, 1):
        paths += [probe_file(tmp_path, name, seed) for name in ("simclr", "ncl", "sae")]
        paths += [consistency_file(tmp_path, name, seed) for name in ("simclr", "ncl", "sae")]
        paths.append(finetune_file(tmp_path, seed))
    assert len(set(paths)) == len(paths)
    assert all(tmp_path in path.parents for path in paths)
    assert finetune_file("out", 3) == Path("out/finetune/3.json")
    assert encoder_folder("out", "ncl", 2) == Path("out/ncl-2")
