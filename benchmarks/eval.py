"""The cost of the evaluation suite relative to bare loops, in one run each.

    python benchmarks/eval.py --judge runs/judge --out eval.json        (MONOLORA_DATA or the hub for BeaverTails)

    generate  seconds of the generate stage ÷ seconds of vLLM's ``LLM.generate`` for the same prompts through the same
              engine: base, LoRA and MonoLoRA rows in mixed batches. The stage's rows go through JSON and into a store.
    score     rows a second of the judge ÷ of a bare loop over batches sorted by length; both load the model
    report    seconds for statistics and report of 10 models × 1,000 prompts

Sides take turns, in the reverse order every second round; printed are the median ratio, the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rounds import Seconds, in_turns, spread
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from monolora import MonoLoraConfig, beaverdam
from monolora.data.chat_template import prompt_ids
from monolora.data.datasets import load_dataset
from monolora.data.prompt_sets import content_key, load
from monolora.data.tasks import Example
from monolora.eval import judges, report
from monolora.eval.engines import vllm as engine
from monolora.eval.judges import JudgeOptions
from monolora.eval.measures.details import prompt_entries
from monolora.eval.measures.records import RunRecords
from monolora.eval.measures.results import build
from monolora.eval.measures.table import Model
from monolora.eval.store import Judgement, Response, opened
from monolora.hub import SMOLLM2, load_causal_lm, load_tokenizer, resolve_model
from monolora.run_record import provenance
from monolora.workers import inline_rows

MODELS = ("base", "lora", "mono")


def main() -> None:
    flags = _flags()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if "generate" in flags.parts:
            found["generate"] = generating(flags, Path(scratch))
        if "score" in flags.parts:
            found["score"] = scoring(flags)
        if "report" in flags.parts:
            found["report"] = reporting(flags, Path(scratch))
    print(json.dumps(found, indent=2))
    if flags.out:
        Path(flags.out).write_text(json.dumps(found | {"flags": vars(flags), **provenance()}, indent=2) + "\n")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["generate", "score", "report"])
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--prompts", type=int, default=64, help="of each of the three models (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="generated for each at most (default: %(default)s)")
    parser.add_argument("--judge", default="runs/judge", help="a classifier of monolora judge (default: %(default)s)")
    parser.add_argument("--responses", type=int, default=1000, help="judged (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="of the judge (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="write all numbers here, in JSON")
    return parser.parse_args()


def of_both(seconds: Seconds) -> dict[str, Any]:
    """Our seconds ÷ the bare ones by round, and both."""
    ratios = [mine / theirs for mine, theirs in zip(seconds["ours"], seconds["bare"], strict=True)]
    return {"ratio": spread(ratios), "seconds": {name: spread(values) for name, values in seconds.items()}}


def generating(flags: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from vllm import SamplingParams

    base = resolve_model(flags.model)
    folders = {name: make_adapter(base, scratch / name) for name in MODELS[1:]}
    tokenizer = load_tokenizer(base)
    prompts = [
        prompt_ids(Example(each.instruction, ""), tokenizer) for each in load("beavertails", flags.prompts).prompts
    ]
    items = [
        {
            "key": content_key(name, ids),
            "adapter": None if name == "base" else name,
            "token_ids": ids,
            "max_new_tokens": flags.tokens,
        }
        for name in MODELS
        for ids in prompts
    ]
    settings = {
        "dtype": "bfloat16", "seed": 0, "temperature": 0.0, "top_p": 1.0, "max_model_len": 1024, "max_num_seqs": 256,
        "gpu_memory_utilization": None, "tensor_parallel_size": 1, "batch_invariant": False,
    }  # fmt: skip
    engine.prepare_environment()
    requests = engine.lora_requests(folders)
    llm = engine.start(base, requests, settings)

    def ours() -> float:
        llm.reset_prefix_cache()
        folder = Path(tempfile.mkdtemp(dir=scratch))
        start = time.perf_counter()
        with opened(folder) as store:
            for row in engine.generate(llm, items, requests, settings):
                content = json.loads(json.dumps(row))
                store.responses.add(Response(**content | {"prompt": "p", "model": "m"}))
        return time.perf_counter() - start

    def bare() -> float:
        llm.reset_prefix_cache()
        start = time.perf_counter()
        llm.generate(
            [{"prompt_token_ids": item["token_ids"]} for item in items],
            SamplingParams(max_tokens=flags.tokens, temperature=0),
            lora_request=[requests.get(item["adapter"]) for item in items],
            use_tqdm=False,
        )
        return time.perf_counter() - start

    return of_both(in_turns({"ours": ours, "bare": bare}, flags.rounds))


def make_adapter(base: str, folder: Path) -> str:
    """Random; speed does not depend on values."""
    config = LoraConfig if folder.name == "lora" else MonoLoraConfig
    adapted = get_peft_model(
        load_causal_lm(base, dtype=torch.bfloat16),
        config(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)
    return str(folder)


def scoring(flags: argparse.Namespace) -> dict[str, Any]:
    rows = load_dataset("PKU-Alignment/BeaverTails")["30k_test"].select(range(flags.responses))
    pairs = [(row["prompt"], row["response"]) for row in rows]
    judge = judges.make(f"classifier:{flags.judge}", JudgeOptions(engine="hf", batch_size=flags.batch_size))
    items = [{"key": str(number), "prompt": p, "response": r} for number, (p, r) in enumerate(pairs)]

    def ours() -> None:
        judged = list(inline_rows(judge.target, {"settings": judge.settings, "items": items, "done": []}))
        assert len(judged) == len(items)

    def bare() -> None:
        for _ in bare_loop(flags, pairs):
            pass

    found = of_both(in_turns({"ours": ours, "bare": bare}, flags.rounds, warmup=0))
    return found | {"throughput": {name: 1 / value for name, value in found["ratio"].items()}}


@torch.inference_mode()
def bare_loop(flags: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> Iterator[list[list[float]]]:
    """The judge's scores by a loop as one would write it by hand."""
    tokenizer = AutoTokenizer.from_pretrained(flags.judge)
    model = AutoModelForSequenceClassification.from_pretrained(flags.judge).eval()
    texts = [beaverdam.text(prompt, response, tokenizer.eos_token) for prompt, response in pairs]
    ids = tokenizer(texts, truncation=True, max_length=beaverdam.MAX_LENGTH)["input_ids"]
    ordered = sorted(ids, key=len, reverse=True)
    for start in range(0, len(ordered), flags.batch_size):
        batch = tokenizer.pad({"input_ids": ordered[start : start + flags.batch_size]}, return_tensors="pt")
        yield model(**batch).logits.sigmoid().tolist()


def reporting(flags: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Answers are BeaverTails' own, in another order for each model, and the judgements drawn."""
    rows = load_dataset("PKU-Alignment/BeaverTails")["30k_test"].select(range(1000))["response"]
    prompts = load("beavertails")
    panel = [
        judges.make(f"classifier:{flags.judge}", JudgeOptions(engine="hf")),
        judges.make("refusal", JudgeOptions()),
    ]
    names = ["base", *(f"model {number}" for number in range(1, 10))]
    models = [Model(name, "base" if name == "base" else "adapter") for name in names]
    drawn = torch.Generator().manual_seed(0)
    responses: dict[str, dict[str, Response]] = {name: {} for name in names}
    judged: dict[str, dict[str, Judgement]] = {judge.name: {} for judge in panel}
    for shift, name in enumerate(names):
        for number, prompt in enumerate(prompts.prompts):
            key = content_key(name, prompt.key)
            text = rows[(number + shift) % len(rows)]
            responses[name][prompt.key] = Response(key, prompt.key, name, text, len(text.split()), "stop")
            for judge in panel:
                values = torch.rand(len(judge.scores), generator=drawn).pow(6).tolist()
                scores = dict(zip(judge.scores, values, strict=True))
                judged[judge.name][key] = Judgement(content_key(judge.name, key), key, judge.name, scores)
    seconds = []
    for _ in range(flags.rounds):
        start = time.perf_counter()
        records = RunRecords(models, [prompts], panel, {prompts.name: responses}, judged, {}, {})
        results = build({}, records)
        listed = list(prompt_entries(records))
        report.write(scratch, results, listed)
        seconds.append(time.perf_counter() - start)
    return {"seconds": spread(seconds), "page_mb": round((scratch / report.PAGE).stat().st_size / 1e6, 1)}


if __name__ == "__main__":
    main()
