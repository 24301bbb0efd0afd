"""The second stage: every judge judges every response to a safety prompt."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from monolora.data.prompt_sets import Prompt, PromptSet, content_key
from monolora.errors import InputError, RunError
from monolora.eval import judges
from monolora.eval.judges import Judge, JudgeOptions
from monolora.eval.plan import Plan
from monolora.eval.process import results_of, rows_of
from monolora.eval.records import INVALID, Judgement, Response
from monolora.eval.settings import Settings
from monolora.eval.store import Store
from monolora.terminal import kept, tracked


def make_judges(settings: Settings) -> list[Judge]:
    """The judges of a run, ``refusal`` always among them: it costs nothing, and XSTest needs it.

    No model is loaded yet.

    Raises:
        InputError: if one is unknown or cannot be had; with ``--keep-going`` such a one is warned of and left out, as
            long as a judge of harm is left.
    """
    options = JudgeOptions(
        engine=settings.judge_engine,
        dtype=settings.judge_dtype,
        batch_size=settings.judge_batch_size,
        device=settings.judge_device,
        beaverdam_max_length=settings.beaverdam_max_length,
        max_model_len=settings.judge_max_model_len,
        unsafe_labels=settings.unsafe_labels,
        text=settings.judge_text,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        tensor_parallel_size=settings.judge_tensor_parallel_size,
        endpoints=settings.judge_endpoint,
        concurrency=settings.concurrency,
        retries=settings.retries,
        timeout_s=settings.timeout,
        api_key_env=settings.api_key_env,
    )
    made: dict[str, Judge] = {}
    refusals = []
    always = () if judges.REFUSAL in settings.judges else (judges.REFUSAL,)
    for word in (*settings.judges, *always):
        try:
            judge = judges.make(word, options)
        except InputError as error:
            if not settings.keep_going:
                raise InputError(
                    f"The judge {word}: {error} Other judges are --judges classifier:PATH, as `monolora judge` trains; "
                    "--keep-going leaves out those that cannot be had."
                ) from error
            warnings.warn(f"Going on without the judge {word}: {error}", stacklevel=2)
            refusals.append(error)
            continue
        if judge.name in made:
            raise InputError(f"Two judges are named {judge.name!r}. Rename the folder of one, or leave it out.")
        made[judge.name] = judge
    if refusals and all(judge.kind == "refusal" for judge in made.values()):
        raise refusals[0]
    _check_labels_are_read(settings, made.values())
    return list(made.values())


def _check_labels_are_read(settings: Settings, panel: Iterable[Judge]) -> None:
    own_labels = any("unsafe" in judge.settings for judge in panel)
    for flag, given in (("--unsafe-labels", settings.unsafe_labels), ("--judge-text", settings.judge_text)):
        if given and not own_labels:
            raise InputError(f"{flag} is for classifiers with labels of their own, and none of the judges is one.")


def judge_identity(judge: Judge) -> str:
    """What records know a judge by."""
    return content_key("judge", judge.identity)


def judged_by(judge: Judge, prompts: PromptSet) -> bool:
    """Whether a judge judges the responses to a set: harm on safety prompts; refusal on those for over-refusal too."""
    return prompts.purpose == "safety" or (prompts.purpose == "over-refusal" and judge.kind == "refusal")


def judgement_key(judge: Judge, response: Response) -> str:
    """The key of what a judge says of a response: of its very text, which may be another when it is asked for again."""
    return content_key("judgement", response.key, response.status, response.text, judge.identity)


def score(settings: Settings, store: Store, plan: Plan, panel: Sequence[Judge]) -> None:
    """Judge what has no judgement yet.

    Raises:
        RunError, InputError: if a judge fails; with ``--keep-going`` it is warned of, and the others go on.
    """
    for judge in panel:
        try:
            _judge(settings, store, judge, [*_pairs(plan, store, judge)])
        except (RunError, InputError) as error:
            if not settings.keep_going:
                raise
            warnings.warn(f"Going on without the rest of {judge.name}'s judgements: {error}", stacklevel=2)


def _pairs(plan: Plan, store: Store, judge: Judge) -> Iterator[tuple[Prompt, Response]]:
    """What the judge judges; a response that several models share (they cannot) or that is missing is not there."""
    for prompts, _, prompt, key in plan.responses():
        if key in store.responses and judged_by(judge, prompts):
            yield prompt, store.responses[key]


def _judge(settings: Settings, store: Store, judge: Judge, pairs: Sequence[tuple[Prompt, Response]]) -> None:
    identity = judge_identity(judge)
    for _, response in pairs:
        if response.status == INVALID:
            key = judgement_key(judge, response)
            store.judgements.add(
                Judgement(key, response.key, identity, status=INVALID, reason=f"no response: {response.reason}")
            )
    by_key = {judgement_key(judge, response): (prompt, response) for prompt, response in pairs}
    items = [
        {"key": key, "prompt": question(prompt), "response": response.text}
        for key, (prompt, response) in by_key.items()
        if response.status != INVALID
    ]
    done = [item["key"] for item in items if item["key"] in store.judgements]
    what = f"Judgements by {judge.name}"
    kept(what, len(done), len(items))
    if len(done) == len(items):
        return
    job = {"settings": judge.settings, "items": items, "done": done}
    log = Path(settings.out) / "logs" / f"judge-{re.sub('[^A-Za-z0-9.-]', '_', judge.name)}.log"
    rows = rows_of(judge.target, job) if judge.in_process else results_of(judge.target, job, log)
    with tracked(what, len(items) - len(done)) as step:
        for row in rows:
            store.judgements.add(Judgement(**row | {"response": by_key[row["key"]][1].key, "judge": identity}))
            step()


def question(prompt: Prompt) -> str:
    """What was asked, as one text."""
    return "\n\n".join(filter(None, (prompt.instruction, prompt.context)))
