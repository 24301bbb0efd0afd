"""Scores against values worked out by hand and by one unbatched pass a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from monolora.data.chat_template import prompt_ids
from monolora.data.scoring import (
    Classification,
    CorpusMetric,
    FreeText,
    RowMetric,
    Scorer,
    first_word,
    label_likelihoods,
    score,
    score_and_answers,
    validation_loss,
)
from monolora.data.tasks import Example, demo
from monolora.inference import Inference

ROWS = demo.load().test[:7]


@pytest.fixture(scope="module")
def model(chat_model: Path) -> PreTrainedModel:
    """The tiny Llama in float32."""
    return AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()


@pytest.fixture(params=["chat", "alpaca"])
def inference(
    request: pytest.FixtureRequest,
    model: PreTrainedModel,
    chat_tokenizer: PreTrainedTokenizerBase,
    plain_tokenizer: PreTrainedTokenizerBase,
) -> Inference:
    """With and without a chat template."""
    tokenizer = chat_tokenizer if request.param == "chat" else plain_tokenizer
    return Inference(model=model, tokenizer=tokenizer, batch_size=3)


@torch.no_grad()
def _likelihood(inference: Inference, row: Example, answer: str, end: str = "") -> tuple[float, int]:
    """Log-probability of an answer after its prompt, and its number of tokens; prompt and answer apart."""
    before = prompt_ids(row, inference.tokenizer)
    after = inference.tokenizer(answer + end, add_special_tokens=False)["input_ids"]
    log_probs = torch.log_softmax(inference.model(input_ids=torch.tensor([before + after])).logits[0].double(), -1)
    return sum(float(log_probs[len(before) - 1 + k, token]) for k, token in enumerate(after)), len(after)


@pytest.mark.parametrize(
    ("labels", "tokens"), [(("negative", "positive"), 1), (("awful and dull", "superb", "positive"), 2)]
)
def test_label_likelihoods(inference: Inference, labels: Sequence[str], tokens: int) -> None:
    """Where every label is one token (a single pass answers for all), and where not."""
    longest = max(_likelihood(inference, ROWS[0], label)[1] for label in labels)
    assert (longest == 1) == (tokens == 1)
    for row, found in zip(ROWS, label_likelihoods(inference, ROWS, labels), strict=True):
        assert found == pytest.approx({label: _likelihood(inference, row, label)[0] for label in labels}, abs=1e-4)


def test_both_label_paths_agree(inference: Inference) -> None:
    """A third label of several tokens takes the other two off the quick path."""
    quick = label_likelihoods(inference, ROWS, demo.LABELS)
    slow = label_likelihoods(inference, ROWS, (*demo.LABELS, "awful and dull"))
    for one, other in zip(quick, slow, strict=True):
        assert one == pytest.approx({label: other[label] for label in demo.LABELS}, abs=1e-4)


def test_classification(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unparsed answers count as wrong; the first word decides, whatever its case and punctuation."""
    answers = [
        "Positive.",
        "  negative\nbecause",
        "I think positive",
        "",
        "neutral",
        f"**{ROWS[5].response}**",
        "positively",
    ]
    monkeypatch.setattr(Inference, "generate", lambda self, prompts, length: answers)
    found = score(inference, Classification(demo.LABELS), ROWS, 5)
    right = [ROWS[0].response == "positive", ROWS[1].response == "negative", False, False, False, True, False]
    assert found["n"] == 7
    assert found["accuracy"] == sum(right) / 7
    assert found["unparsed"] == 4
    likelihoods = [{label: _likelihood(inference, row, label)[0] for label in demo.LABELS} for row in ROWS]
    hits = sum(max(each, key=each.__getitem__) == row.response for each, row in zip(likelihoods, ROWS, strict=True))
    assert found["likelihood_accuracy"] == hits / 7


def test_free_text(inference: Inference) -> None:
    rows = [row._replace(response=f"it is {row.response}, not {'so ' * k}dull") for k, row in enumerate(ROWS)]
    found = score(inference, FreeText(), rows, 4)
    assert found.keys() == {"n", "bleu", "rouge1", "rouge2", "rougeL", "perplexity"}
    each = [_likelihood(inference, row, row.response, inference.tokenizer.eos_token) for row in rows]
    nll = -sum(value for value, _ in each) / sum(count for _, count in each)
    assert found["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)


def test_validation_loss_is_over_the_tokens_of_all_answers(inference: Inference) -> None:
    rows = [row._replace(response=f"it is {'so ' * k}{row.response}") for k, row in enumerate(ROWS)]
    each = [_likelihood(inference, row, row.response, inference.tokenizer.eos_token) for row in rows]
    expected = -sum(value for value, _ in each) / sum(count for _, count in each)
    assert validation_loss(inference, rows) == {"n": 7, "loss": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("scorer", [Classification(demo.LABELS), FreeText()])
def test_score_and_answers(inference: Inference, scorer: Scorer) -> None:
    """The answers are those that were scored, in the order of the rows."""
    found, answers = score_and_answers(inference, scorer, ROWS, 3)
    assert found == score(inference, scorer, ROWS, 3)
    prompts = [prompt_ids(row, inference.tokenizer) for row in ROWS]
    assert answers == [inference.generate([prompt], 3)[0] for prompt in prompts]
    assert not inference.model.training


def text_overlap(answers: list[str], references: list[str]) -> dict[str, float]:
    """What free text is scored by, of answers alone."""
    scores = {}
    for metric in FreeText().metrics:
        if isinstance(metric, RowMetric):
            scores[metric.name] = metric.summary(list(map(metric.value, answers, references)))
        elif isinstance(metric, CorpusMetric):
            scores[metric.name] = metric.value(answers, references)
    return scores


def test_text_overlap() -> None:
    same = text_overlap(["the cat sat on the mat"] * 2, ["the cat sat on the mat"] * 2)
    assert same == pytest.approx({"bleu": 100, "rouge1": 100, "rouge2": 100, "rougeL": 100})
    none = text_overlap(["one two three four"], ["five six seven eight"])
    assert none == pytest.approx({"bleu": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0})
    # Unigrams: 4 of 4 and of 5; bigrams: 2 of 3 and of 4 ("cats" is stemmed); longest common sequence: 3.
    some = text_overlap(["the cats sat here"], ["here the cat sat down"])
    assert some["rouge1"] == pytest.approx(100 * 2 * (4 / 4) * (4 / 5) / (4 / 4 + 4 / 5))
    assert some["rouge2"] == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert some["rougeL"] == pytest.approx(100 * 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))


@pytest.mark.parametrize(
    ("answer", "word"),
    [("Positive", "positive"), (" **positive**!", "positive"), ("\n", ""), ("", ""), ("...", ""), ("A b", "a")],
)
def test_first_word(answer: str, word: str) -> None:
    assert first_word(answer) == word


def test_free_text_is_scored_as_rouge_score_and_sacrebleu_do() -> None:
    """To the last bit: numbers of earlier runs stand beside new ones."""
    random = Random(0)
    words = ["runs", "running", "the", "teas", "kettle", "sings", "loudly", "42"]
    answers, references = ([" ".join(random.choices(words, k=random.randint(0, 30))) for _ in range(40)] for _ in "ab")
    kinds = ("rouge1", "rouge2", "rougeL")
    rouge = [RougeScorer(kinds, use_stemmer=True).score(*pair) for pair in zip(references, answers, strict=True)]
    assert text_overlap(answers, references) == {
        "bleu": corpus_bleu(answers, [references]).score,
        **{kind: 100 * sum(row[kind].fmeasure for row in rouge) / 40 for kind in kinds},
    }


@pytest.mark.parametrize("scorer", [Classification(("a", "b")), FreeText()])
def test_a_scorer_is_stored_as_json(scorer: Scorer) -> None:
    assert Scorer.restored(json.loads(json.dumps(scorer.stored()))) == scorer
    with pytest.raises(ValueError, match=r"there is no scorer 'Taste'"):
        Scorer.restored({"kind": "Taste"})
