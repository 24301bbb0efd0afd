"""A pass over texts against counting every token of every text by hand, one text at a time."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from monolora import MonoLoraConfig
from monolora.adapters import load_adapted
from monolora.errors import InputError
from monolora.explain import Collected, Layout, Text, collect
from monolora.explain import unit_statistics as token_means
from monolora.explain.contexts import AFTER, BEFORE, NO_TOKEN, Contexts
from monolora.explain.histograms import Bins
from monolora.explain.unit_statistics import PARTNERS, STRONGEST, Collector
from monolora.units import adapted_layers
from tests.support.evaluated import Evaluated

Make = Callable[..., LlamaForCausalLM]

collect_module = importlib.import_module("monolora.explain.collector")  # the package has a function of this name

GROUPS, CONTEXTS, BATCH = 3, 4, 4


def _texts() -> list[Text]:
    """Thirty texts of 3 to 30 tokens, some without a label, of which beginnings and endings may not count.

    No two begin alike: activations of the same token after the same ones are equal, and rounding would order them.
    """
    random = np.random.default_rng(3)
    return [
        Text(
            number,
            [3 + number, *random.integers(3, 40, int(random.integers(2, 30))).tolist()],
            start=int(random.integers(0, 3)),
            stop=int(random.integers(3, 40)),
            group=int(random.integers(-1, GROUPS)),
        )
        for number in range(30)
    ]


@pytest.fixture(scope="module", params=["mono", "lora", "softplus", "head"])
def model(request: pytest.FixtureRequest, make_llama: Make, adapt: Any, fill: Any) -> PeftModel:
    if request.param == "lora":
        config = LoraConfig(target_modules=["up_proj", "down_proj"], r=4, task_type="CAUSAL_LM")
        return fill(get_peft_model(make_llama(), config)).eval()
    targets = ["down_proj", "lm_head"] if request.param == "head" else ["up_proj", "down_proj"]
    activation = "softplus" if request.param == "softplus" else "relu"
    return adapt(make_llama(), activation=activation, target_modules=targets)


@pytest.fixture(scope="module")
def found(model: PeftModel) -> Collected:
    with torch.no_grad():
        return collect(model, iter(_texts()), groups=GROUPS, pad_token_id=0, batch_size=BATCH, contexts=CONTEXTS)


@pytest.fixture(scope="module")
def by_hand(model: PeftModel) -> list[np.ndarray]:
    """Activations of each text, ``(L, U)``, from the inputs of the layers."""
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for layer, name in adapted_layers(model).items():
        assert isinstance(layer, nn.Module)

        def hook(module: Any, args: Any, output: Any, name: str = name) -> None:
            z = args[0] @ module.lora_A["default"].weight.T
            activation = vars(module).get("activation", {"default": "identity"})["default"]
            seen[name] = {"relu": torch.relu, "softplus": nn.functional.softplus, "identity": lambda z: z}[activation](
                z
            )

        handles.append(layer.register_forward_hook(hook))
    rows = []
    for text in _texts():
        with torch.no_grad():
            model(input_ids=torch.tensor([text.ids]))
        rows.append(torch.cat([h[0] for h in seen.values()], -1).double().numpy())
    for handle in handles:
        handle.remove()
    return rows


@pytest.fixture(scope="module")
def all_tokens(by_hand: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([h[text.start : text.stop] for h, text in zip(by_hand, _texts(), strict=True)])


def test_sums_over_tokens(found: Collected, all_tokens: np.ndarray) -> None:
    assert found.tokens == len(all_tokens)
    assert found.firing == pytest.approx((all_tokens != 0).mean(0))
    assert found.mean == pytest.approx(all_tokens.mean(0), rel=1e-5, abs=1e-7)
    assert found.std == pytest.approx(all_tokens.std(0), rel=1e-4, abs=1e-5)
    assert found.max == pytest.approx(all_tokens.max(0), rel=1e-5)
    assert found.min == pytest.approx(all_tokens.min(0), rel=1e-5, abs=1e-7)


def test_histograms_have_every_token_in_its_bin(model: PeftModel, found: Collected, all_tokens: np.ndarray) -> None:
    bins = Bins(Layout.of(model).signed, 2)
    places = bins.of(torch.tensor(all_tokens, dtype=torch.float32)).numpy()
    expected = np.stack([np.bincount(unit, minlength=bins.number) for unit in places.T])
    # a value on an edge may fall to either side of it by rounding
    assert np.abs(found.histogram_UE - expected).sum() <= 4
    assert found.histogram_UE.sum(1).tolist() == [len(all_tokens)] * len(expected)


def test_effect_is_the_mean_norm_of_a_units_part_of_the_output(
    model: PeftModel, found: Collected, all_tokens: np.ndarray
) -> None:
    """Recomputed from columns of B and the outputs of the base layers."""
    norms: dict[str, list[torch.Tensor]] = defaultdict(list)
    columns, handles = [], []
    for layer, name in adapted_layers(model).items():
        part: Any = layer
        columns.append((part.lora_B["default"].weight * part.scaling["default"]).norm(dim=0))
        handles.append(part.base_layer.register_forward_hook(lambda m, a, y, name=name: norms[name].append(y[0])))
    for text in _texts():
        with torch.no_grad():
            model(input_ids=torch.tensor([text.ids]))
        for rows in norms.values():
            rows[-1] = rows[-1][text.start : text.stop].norm(dim=-1)
    for handle in handles:
        handle.remove()
    base = torch.cat([torch.cat(rows).mean().expand(4) for rows in norms.values()])
    expected = torch.cat(columns).detach() * torch.tensor(np.abs(all_tokens).mean(0)) / base
    assert found.effect == pytest.approx(expected.numpy(), rel=1e-4)


def test_correlations(found: Collected, all_tokens: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        r = np.corrcoef(all_tokens.T)
    np.fill_diagonal(r, 0)
    r = np.nan_to_num(r)  # of units that are never active
    assert r.any()
    order = np.argsort(-np.abs(r), axis=1)
    for unit, (places, values) in enumerate(zip(found.partner_UP, found.correlation_UP, strict=True)):
        there = places >= 0
        assert there.sum() == min(PARTNERS, np.count_nonzero(r[unit]))
        assert not values[~there].any()
        assert places[there].tolist() == order[unit][: there.sum()].tolist()
        assert values[there] == pytest.approx(r[unit][places[there]], abs=1e-4)


def _ends(contexts: Contexts, by_hand: list[np.ndarray], unit: int) -> Iterator[tuple[float, int, int]]:
    """Peaks above 0 of each text: value, number, position; strongest first."""
    peaks = []
    for h, text in zip(by_hand, _texts(), strict=True):
        counted = contexts.sign * h[text.start : text.stop, unit]
        peaks.append((float(counted.max()), text.number, int(counted.argmax()) + text.start))
    yield from sorted((peak for peak in peaks if peak[0] > 0), key=lambda peak: (-peak[0], peak[1]))


def test_the_strongest_contexts_are_exact(found: Collected, by_hand: list[np.ndarray]) -> None:
    texts = _texts()
    for contexts in found.contexts:
        for unit in range(len(found.firing)):
            expected = list(_ends(contexts, by_hand, unit))[:CONTEXTS]
            assert contexts.number_UK[unit].tolist() == [number for _, number, _ in expected] + [-1] * (
                CONTEXTS - len(expected)
            )
            for slot, (value, number, position) in enumerate(expected):
                assert float(contexts.value_UK[unit, slot]) == pytest.approx(value, rel=1e-5)
                assert int(contexts.position_UK[unit, slot]) == position
                assert int(contexts.length_UK[unit, slot]) == len(texts[number].ids)
                for w, place in enumerate(range(position - BEFORE, position + AFTER + 1)):
                    is_there = 0 <= place < len(texts[number].ids)
                    token = int(contexts.ids_UKW[unit, slot, w])
                    activation = float(contexts.activation_UKW[unit, slot, w])
                    assert token == (texts[number].ids[place] if is_there else NO_TOKEN)
                    if is_there and texts[number].start <= place < texts[number].stop:
                        assert activation == pytest.approx(by_hand[number][place, unit], rel=1e-4, abs=1e-5)
                    else:
                        assert np.isnan(activation)


def test_texts_by_label(model: PeftModel, found: Collected, by_hand: list[np.ndarray]) -> None:
    texts = _texts()
    means = np.stack([h[text.start : text.stop].mean(0) for h, text in zip(by_hand, texts, strict=True)])
    groups = np.array([GROUPS if text.group < 0 else text.group for text in texts])
    assert found.texts_G.tolist() == np.bincount(groups, minlength=GROUPS + 1).tolist()
    for group in range(GROUPS + 1):
        of_group = means[groups == group]
        assert found.fired_UG[:, group].tolist() == (np.abs(of_group) > 1e-5).sum(0).tolist()
        bins = Bins(Layout.of(model).signed, 6)
        places = bins.of(torch.tensor(of_group, dtype=torch.float32)).numpy()
        expected = np.stack([np.bincount(unit, minlength=bins.number) for unit in places.T])
        assert np.abs(found.text_histogram_UGE[:, group] - expected).sum() <= 2


def test_labels_of_the_strongest_texts(found: Collected, by_hand: list[np.ndarray]) -> None:
    texts = [text for text in _texts() if text.group >= 0]
    for end, sign in enumerate((1, -1)[: len(found.strongest_SUM)]):
        for unit in range(len(found.firing)):
            means = [(sign * by_hand[text.number][text.start : text.stop, unit].mean(), text) for text in texts]
            ordered = sorted((each for each in means if each[0] > 0), key=lambda each: (-each[0], each[1].number))
            assert len(ordered) <= STRONGEST
            labels = found.strongest_SUM[end, unit].tolist()
            assert labels[len(ordered) :] == [-1] * (STRONGEST - len(ordered))
            start = 0
            for place, (mean, _) in enumerate(ordered, start=1):
                # those that float32 cannot tell apart come in any order
                if place == len(ordered) or mean - ordered[place][0] > 1e-6 * mean:
                    expected = [text.group for _, text in ordered[start:place]]
                    assert sorted(labels[start:place]) == sorted(expected)
                    start = place


def test_tokens_with_the_highest_means(found: Collected, by_hand: list[np.ndarray]) -> None:
    seen: dict[int, list[np.ndarray]] = defaultdict(list)
    for h, text in zip(by_hand, _texts(), strict=True):
        for place in range(text.start, min(text.stop, len(text.ids))):
            seen[text.ids[place]].append(h[place])
    often = {token: np.stack(rows) for token, rows in seen.items() if len(rows) >= token_means.FEWEST}
    for top, sign in zip(found.tokens_by_end, (1, -1), strict=False):
        for unit in range(len(found.firing)):
            expected = sorted(((sign * rows[:, unit].mean(), token) for token, rows in often.items()), reverse=True)
            expected = [each for each in expected if each[0] > 0][: top.ids_UN.shape[1]]
            ids = top.ids_UN[unit].tolist()
            assert sorted(ids[: len(expected)]) == sorted(token for _, token in expected)
            assert set(ids[len(expected) :]) <= {-1}
            for place, (mean, _) in enumerate(expected):
                assert float(top.mean_UN[unit, place]) == pytest.approx(sign * mean, rel=1e-4, abs=1e-6)
                assert int(top.count_UN[unit, place]) == len(often[ids[place]])


def test_batches_do_not_matter(model: PeftModel, found: Collected) -> None:
    alone = collect(model, _texts(), groups=GROUPS, pad_token_id=0, batch_size=1, contexts=CONTEXTS)
    assert alone.mean == pytest.approx(found.mean, rel=1e-5, abs=1e-7)
    assert (alone.strongest_SUM == found.strongest_SUM).all()
    for one, other in zip(alone.contexts, found.contexts, strict=True):
        assert torch.equal(one.number_UK, other.number_UK)
        assert torch.equal(one.position_UK, other.position_UK)


def test_more_units_than_a_block_are_correlated_within_theirs(
    model: PeftModel, found: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monolora.explain.unit_statistics.BLOCK", 5)
    blocks = collect(model, _texts(), groups=GROUPS, pad_token_id=0, batch_size=BATCH)
    for unit, places in enumerate(blocks.partner_UP):
        assert {place // 5 for place in places.tolist() if place >= 0} <= {unit // 5}
    assert blocks.std == pytest.approx(found.std)


def test_tokens_without_room_are_passed_over(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_means, "ROOM", len(Layout.of(model).units) * 7)
    few = collect(model, _texts(), groups=GROUPS, pad_token_id=0, batch_size=BATCH)
    assert len({token for top in few.tokens_by_end for token in top.ids_UN.flatten().tolist()} - {-1}) <= 7


@pytest.mark.parametrize("config_class", [MonoLoraConfig, LoraConfig])
def test_units_of_an_embedding(make_llama: Make, fill: Any, config_class: type) -> None:
    model = fill(get_peft_model(make_llama(), config_class(target_modules=["embed_tokens"], r=3))).eval()
    found = collect(model, _texts(), groups=GROUPS, pad_token_id=0, batch_size=BATCH)
    layer = model.get_base_model().model.embed_tokens
    ids = [token for text in _texts() for token in text.ids[text.start : text.stop]]
    z_TU = layer.lora_embedding_A["default"].detach().T[ids].double()
    h_TU = z_TU.relu() if config_class is MonoLoraConfig else z_TU
    assert found.mean == pytest.approx(h_TU.mean(0).numpy())
    columns = (layer.lora_embedding_B["default"].detach() * layer.scaling["default"]).norm(dim=0)
    norm = layer.base_layer.weight.detach()[ids].norm(dim=-1).mean()
    assert found.effect == pytest.approx((columns * h_TU.abs().mean(0) / norm).numpy(), rel=1e-5)


def test_nothing_is_left_on_the_model(model: PeftModel, found: Collected) -> None:
    for layer in adapted_layers(model):
        part: Any = layer
        assert vars(part).get("unit_observer") is None
        assert not part.base_layer._forward_hooks
        assert not part.lora_A["default"]._forward_hooks


def test_what_cannot_be_explained_is_refused(make_llama: Make, adapt: Any) -> None:
    with pytest.raises(InputError, match="neither MonoLoRA nor LoRA"):
        collect(make_llama(), _texts(), pad_token_id=0)
    model = adapt(make_llama())
    with pytest.raises(InputError, match="no texts"):
        collect(model, [], pad_token_id=0)
    with model.disable_adapter(), pytest.raises(InputError, match="was not run"):
        collect(model, _texts(), pad_token_id=0)
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    layer.lora_A["default"].weight.data[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.q_proj are not finite"):
        collect(model, _texts(), pad_token_id=0)


@pytest.mark.parametrize(
    "text", [Text(7, [3, 4], start=2), Text(7, [3, 4], start=1, stop=1), Text(7, [], stop=4), Text(7, [], start=-1)]
)
@pytest.mark.parametrize("others", [0, 5])
def test_a_text_of_which_nothing_counts_is_refused(model: PeftModel, text: Text, others: int) -> None:
    with pytest.raises(InputError, match="Text 7 has no token that counts"):
        collect(model, [*_texts()[:others], text], groups=GROUPS, pad_token_id=0)


def test_units_that_are_never_computed_are_refused() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, pad_token_id=0,
    )  # fmt: skip
    experts = "model.layers.0.mlp.experts"
    lora = LoraConfig(target_modules=["q_proj"], target_parameters=[f"{experts}.down_proj"], r=2)
    with pytest.raises(InputError, match=rf"units of {experts} are never computed.*ParamWrapper"):
        Layout.of(get_peft_model(MixtralForCausalLM(config), lora))


class _Expert(nn.Module):
    """Stands for an MLP whose expert sees some of the tokens, or none."""

    def __init__(self, down_proj: nn.Module, tokens: int) -> None:
        super().__init__()
        self.down_proj, self.tokens = down_proj, tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = x.flatten(0, 1)[: self.tokens]
        if len(chosen):
            self.down_proj(torch.cat([chosen, chosen[:, :8]], 1))
        return x


@pytest.mark.parametrize("enough", [4096, 0], ids=["with norms", "without"])
@pytest.mark.parametrize(("tokens", "why"), [(2, "sees rows of its own"), (0, "was not run")])
def test_routed_experts_are_refused(
    make_llama: Make, adapt: Any, monkeypatch: pytest.MonkeyPatch, enough: int, tokens: int, why: str
) -> None:
    monkeypatch.setattr("monolora.explain.collector.TOKENS", enough)
    model = adapt(make_llama())
    layer = model.get_base_model().model.layers[1]
    layer.mlp = _Expert(layer.mlp.down_proj, tokens)
    with pytest.raises(InputError, match=rf"model\.layers\.1\.mlp\.down_proj {why}"):
        collect(model, _texts(), groups=GROUPS, pad_token_id=0)


def test_tokens_that_do_not_count_may_be_infinite(model: PeftModel) -> None:
    """As the first token's activations may be in float16."""
    layout = Layout.of(model)
    texts = [Text(number, [5, 6, 7, 8, 9], start=2, group=0) for number in range(3)]
    h_BLU, counted_BL = torch.rand(3, 5, len(layout.units)), torch.arange(5).expand(3, 5) >= 2

    def counted(uncounted: float) -> Collected:
        collector = Collector(layout, 1, 64, CONTEXTS, torch.device("cpu"))
        h_BLU[:, :2] = uncounted
        collector.add(h_BLU, torch.tensor([text.ids for text in texts]), counted_BL, torch.full((3,), 5), texts)
        return collector.finish(torch.ones(len(layout.units)))

    expected = counted(1.0)
    for uncounted in (torch.inf, -torch.inf, torch.nan):
        found = counted(uncounted)
        assert (found.mean == expected.mean).all()
        assert (found.text_histogram_UGE == expected.text_histogram_UGE).all()
        assert (found.strongest_SUM == expected.strongest_SUM).all()
        for one, other in zip(found.contexts, expected.contexts, strict=True):
            assert torch.equal(one.value_UK, other.value_UK)
            torch.testing.assert_close(one.activation_UKW, other.activation_UKW, rtol=0, atol=0, equal_nan=True)


def test_weights_on_disk(evaluated: Evaluated, tmp_path: Path) -> None:
    def found(**options: Any) -> Collected:
        model, _ = load_adapted(str(evaluated.mono), dtype=torch.float32, **options)
        assert (model.device.type == "meta") == bool(options)
        return collect(model, _texts(), groups=GROUPS, pad_token_id=0)

    on_disk = found(device_map="auto", max_memory={"cpu": "200KB"}, offload_folder=str(tmp_path))
    in_memory = found()
    assert (on_disk.mean == in_memory.mean).all()
    assert (on_disk.effect == in_memory.effect).all()


def test_units_come_to_where_the_ids_are(model: PeftModel) -> None:
    """Of modules on several devices; for another one stands that without memory."""
    layout = Layout.of(model)
    seen = collect_module._Seen(layout)
    for place, layer in enumerate(layout.layers.values()):
        seen._see(layer, "default", torch.zeros(2, 3, 4, device="meta" if place % 2 else "cpu"))
    units_BLU = seen.take(torch.zeros(2, 3, dtype=torch.int64, device="meta"))
    assert units_BLU.device.type == "meta"
    assert units_BLU.shape == (2, 3, len(layout.units))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All that a collector keeps."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif type(value).__module__.startswith("monolora.explain") and not isinstance(value, Layout):
        yield from _tensors(list(vars(value).values()))


def test_memory_does_not_grow_with_the_texts(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, finish = [], Collector.finish

    def measured(collector: Collector, norm_U: torch.Tensor) -> Collected:
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in _tensors(collector)))
        return finish(collector, norm_U)

    monkeypatch.setattr(Collector, "finish", measured)
    for times in (1, 10):
        collect(model, _texts() * times, groups=GROUPS, pad_token_id=0)
    assert sizes[0] == sizes[1]
    assert sizes[0] > 4 * len(Layout.of(model).units) * (GROUPS + 1) * Bins(False, 6).number


def test_texts_are_read_no_further_ahead_than_a_window(model: PeftModel) -> None:
    """Texts are asked for as they are read: never more than a window ahead of the last batch that was counted."""
    asked = counted = 0

    def stream() -> Iterator[Text]:
        nonlocal asked
        for number in range(100):
            asked += 1
            yield Text(number, [3 + number % 9, 4, 5], group=0)

    def step(texts: int) -> None:
        nonlocal counted
        counted += texts
        assert asked - counted <= 32

    collect(model, stream(), groups=1, pad_token_id=0, batch_size=1, step=step)
    assert counted == 100
