"""TRL's SFTTrainer, saving so that a full disk or a kill leaves the earlier checkpoints whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer

from monolora.errors import SaveError, is_disk_trouble
from monolora.recipes.record import GO_ON

STAGING = ".saving"


class OwnSteps(TrainerCallback):
    """A resumed run logs and saves at the steps of its own flags; the trainer takes those of the checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)


class SftTrainer(SFTTrainer):
    """Checkpoints are written into a folder aside and renamed when complete."""

    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the recipe writes a card with the measured numbers at the end."""

    def clear_staging(self, folder: Path) -> None:
        """Remove what a killed run may have left aside; all processes come here before they write."""
        if self.args.should_save:
            shutil.rmtree(folder / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        final = Path(self._get_output_dir(trial))
        self.clear_staging(final)
        self._staging = final / STAGING
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._publish(self._staging, final)
        except Exception as error:
            if is_disk_trouble(error):
                raise SaveError.of(final, error, GO_ON) from error
            raise
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(final / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _publish(self, staging: Path, final: Path) -> None:
        for checkpoint in staging.glob("checkpoint-*"):
            target = final / checkpoint.name
            shutil.rmtree(target, ignore_errors=True)
            checkpoint.rename(target)
        rotate_checkpoints(output_dir=str(final), save_total_limit=self.args.save_total_limit, use_mtime=True)
