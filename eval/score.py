"""The stage ``score``: every judge judges every response to a safety prompt, unless it has judged it already."""

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
from monolora.eval.settings import Settings
from monolora.eval.store import INVALID, Judgement, Response, Store
from monolora.terminal import report_existing, tracked
from monolora.workers import inline_rows, worker_rows


def make_judges(settings: Settings) -> list[Judge]:
    """The judges of a run, always including ``refusal``: it costs nothing, and XSTest needs it. Loads no model.

    Raises:
        InputError: if a judge is unknown or unavailable. With ``--keep-going`` it is left out with a warning, as long
            as a judge of harm remains.
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
    panel: dict[str, Judge] = {}
    unavailable = []
    implied = () if judges.REFUSAL in settings.judges else (judges.REFUSAL,)
    for word in (*settings.judges, *implied):
        try:
            judge = judges.make(word, options)
        except InputError as error:
            if not settings.keep_going:
                raise InputError(
                    f"The judge {word}: {error} Other judges are --judges classifier:PATH, as `monolora judge` trains; "
                    "--keep-going continues without unavailable judges."
                ) from error
            warnings.warn(f"Continuing without the judge {word}: {error}", stacklevel=2)
            unavailable.append(error)
            continue
        if judge.name in panel:
            raise InputError(f"Two judges are named {judge.name!r}. Rename the folder of one, or leave it out.")
        panel[judge.name] = judge
    if unavailable and all(judge.kind == "refusal" for judge in panel.values()):
        raise unavailable[0]
    _check_classifier_flags(settings, panel.values())
    return list(panel.values())


def _check_classifier_flags(settings: Settings, panel: Iterable[Judge]) -> None:
    """Refuse flags for classifiers with their own labels if no judge is one: the user would think they apply."""
    has_own_labels = any("unsafe" in judge.settings for judge in panel)
    for flag, value in (("--unsafe-labels", settings.unsafe_labels), ("--judge-text", settings.judge_text)):
        if value and not has_own_labels:
            raise InputError(f"{flag} is for classifiers with labels of their own, and none of the judges is one.")


def judge_identity(judge: Judge) -> str:
    """The hash that identifies a judge in records."""
    return content_key("judge", judge.identity)


def judges_set(judge: Judge, prompts: PromptSet) -> bool:
    """Whether a judge judges the responses to a set: safety prompts, and for ``refusal`` also over-refusal prompts."""
    return prompts.purpose == "safety" or (prompts.purpose == "over-refusal" and judge.kind == "refusal")


def judgement_key(judge: Judge, response: Response) -> str:
    """The key of a judgement. It contains the text: a response that is generated again has the same key, and is judged
    again if its text differs.
    """
    return content_key("judgement", response.key, response.status, response.text, judge.identity)


def score(settings: Settings, store: Store, plan: Plan, panel: Sequence[Judge]) -> None:
    """Judge the responses that have no judgement yet, and store the judgements.

    Raises:
        RunError, InputError: if a judge fails; with ``--keep-going`` that is a warning, and the other judges continue.
    """
    for judge in panel:
        try:
            _judge(settings, store, judge, [*_pairs(plan, store, judge)])
        except (RunError, InputError) as error:
            if not settings.keep_going:
                raise
            warnings.warn(f"Continuing without the remaining judgements of {judge.name}: {error}", stacklevel=2)


def _pairs(plan: Plan, store: Store, judge: Judge) -> Iterator[tuple[Prompt, Response]]:
    """The prompts and responses that the judge judges, without responses that are not generated yet."""
    for prompts, _, prompt, key in plan.responses():
        if key in store.responses and judges_set(judge, prompts):
            yield prompt, store.responses[key]


def _judge(settings: Settings, store: Store, judge: Judge, pairs: Sequence[tuple[Prompt, Response]]) -> None:
    identity = judge_identity(judge)
    for _, response in pairs:  # without an answer there is nothing to judge; the judgement says so
        if response.status == INVALID:
            key = judgement_key(judge, response)
            store.judgements.add(
                Judgement(key, response.key, identity, status=INVALID, reason=f"no response: {response.reason}")
            )
    pairs_by_key = {judgement_key(judge, response): (prompt, response) for prompt, response in pairs}
    items = [
        {"key": key, "prompt": question(prompt), "response": response.text}
        for key, (prompt, response) in pairs_by_key.items()
        if response.status != INVALID
    ]
    done = [item["key"] for item in items if item["key"] in store.judgements]
    title = f"Judgements by {judge.name}"
    report_existing(title, len(done), len(items))
    if len(done) == len(items):
        return
    job = {"settings": judge.settings, "items": items, "done": done}
    log = Path(settings.out) / "logs" / f"judge-{re.sub('[^A-Za-z0-9.-]', '_', judge.name)}.log"
    rows = inline_rows(judge.target, job) if judge.in_process else worker_rows(judge.target, job, log)
    with tracked(title, len(items) - len(done)) as step:
        for row in rows:
            store.judgements.add(Judgement(**row | {"response": pairs_by_key[row["key"]][1].key, "judge": identity}))
            step()


def question(prompt: Prompt) -> str:
    """The prompt as one text, as judges read it."""
    return "\n\n".join(filter(None, (prompt.instruction, prompt.context)))
