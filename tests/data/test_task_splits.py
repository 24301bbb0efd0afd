"""Any data set in one of the three formats as a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from monolora.data.task import Source, dataset_task, load_prompts
from monolora.data.tasks import Example, load_task
from monolora.errors import InputError


def test_a_data_set_of_the_mirror_by_its_id(mirror: Path) -> None:
    assert len(load_prompts("walledai/XSTest")) == 450
    task = load_task("databricks/databricks-dolly-15k", Source())
    assert task.counts is not None
    assert len(task.train) + len(task.test) + task.counts["held_out_questions"] == 15011
    with pytest.raises(InputError, match=r"choose one of train, validation, test\. Did you mean train\?"):
        load_task("stanfordnlp/sst2", Source(train_split="trian"))


def test_held_out_rows_are_fixed(write_rows: Callable[..., str]) -> None:
    path = write_rows([{"instruction": f"i{k}", "output": f"o{k}"} for k in range(40)])
    task = load_task(path, Source())
    assert (len(task.train), len(task.test)) == (36, 4)
    assert load_task(path, Source()) == task
    assert len({example.instruction for example in task.train + task.test}) == 40


@pytest.mark.filterwarnings("ignore:1 of 3 rows")
def test_instruction_format(write_rows: Callable[..., str]) -> None:
    rows = [
        {"instruction": "i", "input": None, "response": "r"},
        {"instruction": "i", "input": "c", "response": ""},
    ] * 2
    task = load_task(write_rows(rows), Source(allow_empty_answers=True))
    assert set(task.train + task.test) == {Example("i", "r"), Example("i", "", context="c")}


def test_prompt_completion_format(write_rows: Callable[..., str]) -> None:
    task = load_task(write_rows([{"prompt": "p", "completion": " c"}] * 2), Source())
    assert task.train == [Example("p", " c", verbatim=True)]
    user, system = {"role": "user", "content": "u"}, {"role": "system", "content": "s"}
    rows = [{"prompt": [system, user], "completion": [{"role": "assistant", "content": "a"}]}] * 2
    task = load_task(write_rows(rows), Source())
    assert task.train == [Example("u", "a", history=(system,))]


def test_every_assistant_turn_is_an_example(write_rows: Callable[..., str]) -> None:
    roles = ["user", "assistant", "user", "assistant"]
    chat = [{"role": role, "content": str(k)} for k, role in enumerate(roles)]
    task = load_task(write_rows([{"messages": chat}] * 2), Source())
    for examples in (task.train, task.test):
        assert list(map(str, examples)) == [str(Example("0", "1")), str(Example("2", "3", history=tuple(chat[:2])))]


def test_cells_of_a_csv_file_stay_texts(tmp_path: Path) -> None:
    """pandas would read "NA" and the empty cell as missing, 4.50 as 4.5 and yes as it is."""
    (tmp_path / "rows.csv").write_text('instruction,input,output\nNA,,4.50\n"a, b",None,007\n')
    task = load_task(str(tmp_path / "rows.csv"), Source())
    assert set(task.train + task.test) == {Example("NA", "4.50"), Example("a, b", "007", context="None")}


def test_prompts_alone_are_enough_to_measure_on(write_rows: Callable[..., str]) -> None:
    assert load_prompts(write_rows([{"prompt": "p"}, {"prompt": "q"}])) == [Example("p", ""), Example("q", "")]
    assert load_prompts(write_rows([{"prompt": "p", "response": "r"}])) == [Example("p", "")]
    assert load_prompts(write_rows([{"instruction": "i", "output": "o"}])) == [Example("i", "o")]
    with pytest.raises(InputError, match="row 2: 'prompt' must be a text"):
        load_prompts(write_rows([{"prompt": "p"}, {"prompt": None}]))
    with pytest.raises(InputError, match="choose one of train"):
        load_prompts(write_rows([{"prompt": "p"}]), split="test")


def test_plain_text_where_no_answers_are_needed(write_rows: Callable[..., str]) -> None:
    rows = write_rows([{"text": "a"}, {"text": "b"}])
    task = dataset_task(rows, Source(), answers=False)
    assert set(task.train + task.test) == {Example(text, "", verbatim=True) for text in "ab"}
    rows = write_rows([{"prompt": "a"}, {"prompt": "b"}], name="prompts.jsonl")
    task = dataset_task(rows, Source(), answers=False)
    assert set(task.train + task.test) == {Example(text, "") for text in "ab"}
    with pytest.raises(InputError, match=r"has the columns prompt; needed are .*'answer', or 'text'\. Rename"):
        dataset_task(rows, Source())  # nothing to train on


def test_answers_are_kept_where_there_are_any(write_rows: Callable[..., str]) -> None:
    rows = write_rows([{"prompt": "p", "completion": " c", "text": "p c"}] * 2)
    assert dataset_task(rows, Source(), answers=False) == dataset_task(rows, Source())


def test_rows_without_text(write_rows: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="row 2: 'text' must be a text, found nothing"):
        dataset_task(write_rows([{"text": "a"}, {"text": ""}]), Source(), answers=False)
    with pytest.raises(InputError, match="or 'text'; 'prompt' alone will do here"):
        dataset_task(write_rows([{"words": "a"}, {"words": "b"}]), Source(), answers=False)
