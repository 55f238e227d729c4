"""transformers' Trainer, with our page and our way to the Hub."""

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import nn
from transformers.utils import logging

from clip_hf.hub.failures import PushError, checked_token, explained, retry
from clip_hf.hub.models import push_folder
from clip_hf.hub.push import Destination, require_private
from clip_hf.model_card.facts import facts_of_options
from clip_hf.model_card.page import page_of_folder
from clip_hf.training.resumable_trainer import ResumableTrainer
from clip_hf.training.training_args import ClipTrainingArguments

logger = logging.get_logger(__name__)


class PushingTrainer(ResumableTrainer):
    """A Trainer that pushes what `scripts/push_to_hub.py` pushes, with the same retries and errors.

    The pushes of a `hub_strategy` while it trains are transformers' own, in the background: one that fails is told of
    in a warning, and the next brings the model, though not a checkpoint that was to be kept.

    Args:
        model: as for `transformers.Trainer`.
        args: `ClipTrainingArguments`.
        other_args: the other arguments of `transformers.Trainer`.
        other_options: the same, by name.

    Raises:
        ValueError: `hub_token` can be no token.
        PushError: `push_to_hub` is set, and the repository cannot be made.
    """

    def __init__(
        self, model: nn.Module | None, args: ClipTrainingArguments, *other_args: Any, **other_options: Any
    ) -> None:
        args.hub_token = checked_token(args.hub_token)
        super().__init__(model, args, *other_args, **other_options)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, where it is missing; as `Trainer.init_hf_repo`, with retries and plain errors.

        Args:
            token: that may write; by default `hub_token`, or else the one of this machine.
            private: whether it is to be private; by default, as `hub_private_repo` says.

        Raises:
            PushError: it cannot be made; or it is to be private, and is there and public.
        """
        token = checked_token(token) or self.args.hub_token
        private = self.args.hub_private_repo if private is None else private
        with explained(self.args.hub_model_id or Path(self.args.output_dir).absolute().name, token):
            retry(partial(super().init_hf_repo, token, private))
        if private and self.is_world_process_zero():
            require_private(Destination(self.hub_model_id, private=True, token=token))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **facts: Any,
    ) -> Any:
        """Saves the model, and pushes it with its processor, code, results and page; returns the address.

        Args:
            commit_message: of the commit.
            blocking: False returns a future of the address.
            token: that may write; by default `hub_token`, or else the one of this machine.
            revision: the branch; by default `hub_revision`, or else "main".
            private: make the repository private, if it is new; by default, as `hub_private_repo` says.
            facts: as in `create_model_card`.

        Raises:
            PushError: it did not succeed, or is to be private and there is a public one; the model is saved all the
                same.
            ValueError: a fact is none.
        """
        facts = facts_of_options(facts)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = checked_token(token) or self.args.hub_token
        self.save_model(_internal_call=True)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**facts)
        self._finish_current_push()
        private = bool(self.args.hub_private_repo if private is None else private)
        destination = Destination(self.hub_model_id, revision or self.args.hub_revision, private, token=token)
        push = partial(_push, Path(self.args.output_dir), destination, commit_message or "End of training", **facts)
        return push() if blocking else HfApi().run_as_future(push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        before = self._push_jobs()
        super()._push_from_checkpoint(checkpoint_folder)
        for job in self._push_jobs():
            if job not in before:
                job.add_done_callback(partial(_tell_of_failure, self.hub_model_id, self.state.global_step))

    def _push_jobs(self) -> list[Future]:
        progress = getattr(self, "push_in_progress", None)  # the first process alone has it
        return [] if progress is None else list(progress.jobs)

    def create_model_card(self, **facts: Any) -> None:
        """Writes README.md into the output folder, unless one was written by hand; `push_to_hub` calls it.

        Args:
            facts: of `ModelCardFacts`, such as `license` or `base_model`, or under transformers' names for them;
                card.json in the folder has the last word.

        Raises:
            ValueError: a fact is none.
        """
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            page = page_of_folder(folder, self.hub_model_id or str(folder), **facts_of_options(facts))
            (folder / "README.md").write_text(page, encoding="utf-8")


def _tell_of_failure(repo_id: str, step: int, job: Future) -> None:
    if not job.cancelled() and (error := job.exception()) is not None:
        reason = f"{type(error).__name__}: {error}"
        logger.warning(f"step {step} did not get to {repo_id}, and the training goes on: {reason}")


def _push(folder: Path, destination: Destination, message: str, **facts: Any) -> str:
    try:
        return push_folder(folder, destination, message, **facts).url
    except PushError as error:
        command = f"python scripts/push_to_hub.py {folder} {destination.repo_id} --with_code"
        raise PushError(f"{error}. The trained model is in {folder}; later, `{command}`") from error
