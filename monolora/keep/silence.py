"""Silence: units that are off on the anchors, and on for the task.

Where all units of a MonoLoRA adapter are zero, the model is the base, exactly. A unit is off where ``a·x <= 0``, a half
space, so two steps keep the anchors in it:

1. A *contrastive initialisation* of A (:func:`contrastive_rows`): random features of the task's tokens that are
   negative on the anchors' tokens. B stays zero.
2. A *penalty* on the units' distance from silence on anchor tokens, beside the task's loss
   (:meth:`Silence.loss`). Units that are silent leave the base as it is, so the recorded inputs stay right, and the
   penalty is one product a module and step.

Without a one-sided activation (LoRA, ``identity``, tanh, GELU) a unit is off only where ``a·x = 0``. The two-sided
form, the control of every claim about the half space, takes the directions with the most energy on the task for their
energy on the anchors (:func:`quiet_rows`) and a squared penalty: it can be quiet, never silent.

Shapes: N anchor tokens, M task tokens, I inputs, R units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from monolora.activations import activation_named
from monolora.data.chat_template import answer_spans
from monolora.errors import InputError
from monolora.inference import MAX_POSITIONS, adapter_off
from monolora.keep.activations import Activations, TokenChoice, choose_tokens, plan_store, record
from monolora.keep.cache import Tensors, cached
from monolora.keep.keeper import Keeper, Preparation
from monolora.layer import MonoLoraLayer
from monolora.shared_prefix import common_length
from monolora.units import adapted_layers, input_device

MARGIN = 0.3  # of the penalty, in sizes of A x on the task
TWO_SIDED = 1 / 30  # of the squared penalty, which no token escapes, for one that half of the space does
ANCHOR_WEIGHT = 1000.0  # of the anchors in the initialisation, for a penalty of weight 1
RIDGE = 1e-3  # of the mean energy of each input
ORDER = 0  # seed of the anchors' tokens, so that runs of all seeds share what is recorded
BATCH_TOKENS = 1024  # anchor tokens a step
OVERLAP = 0.5  # of the share of units on for the task, above which anchors count as the task
OVERLAP_PROMPTS = 64
STEPS = 20  # of the initialisation
LARGEST_WEIGHT = 30.0  # of a task token in it
TASK_TOKENS = 16_384  # of the rows of the task that it reads, with their gradients


def contrastive_rows(
    anchor_NI: torch.Tensor,
    task_MI: torch.Tensor,
    task_weight_M: torch.Tensor,
    rank: int,
    generator: torch.Generator,
    anchor_weight: float,
) -> torch.Tensor:
    """Rows of A that are off on anchors and follow random features of the task.

    The minimum over A of the strictly convex::

        weighted mean over task tokens of ‖A x − t‖²
            +  anchor_weight · mean over anchor tokens of ‖max(0, A x + 1)‖²  +  Σ_i ridge_i ‖A_i‖²
        t = max(0, 1 + standardised G x),  G standard normal

    It is found by majorisation: an anchor that is below −1 has its value as its target, all others have −1. That is a
    least-squares problem with the same matrix in every step, and Nesterov's acceleration makes the steps few: the
    :data:`STEPS` taken here come within 2 % of the smallest objective.

    Args:
        anchor_NI, task_MI: inputs of a module.
        task_weight_M: of the task's tokens, with mean 1 (:func:`token_weights`).
        rank: R.
        generator: of G, on the CPU.
        anchor_weight: of the anchors.

    Returns:
        ``(R, I)``, float32.
    """
    anchor_NI, task_MI, weight_M1 = anchor_NI.float(), task_MI.float(), task_weight_M[:, None]
    G_RI = torch.randn(rank, task_MI.shape[1], generator=generator).to(task_MI.device)
    z_MR = task_MI @ G_RI.T
    z_MR = z_MR - (weight_M1 * z_MR).mean(0)
    t_MR = (1 + z_MR / (weight_M1 * z_MR.square()).mean(0).sqrt().clamp(min=1e-12)).clamp(min=0)
    weighted_MI = weight_M1 * task_MI
    S_II = anchor_weight * moment(anchor_NI) + task_MI.T @ weighted_MI / len(task_MI)
    L_II = torch.linalg.cholesky(S_II + torch.diag(ridge(anchor_NI, task_MI)))
    task_IR = weighted_MI.T @ t_MR / len(task_MI)

    def minimum(target_NR: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(task_IR + anchor_weight * anchor_NI.T @ target_NR / len(anchor_NI), L_II)

    A_IR = before_IR = minimum(torch.full((len(anchor_NI), rank), -1.0).to(anchor_NI))
    momentum = 1.0
    for _ in range(STEPS):
        last, momentum = momentum, (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead_IR = A_IR + (last - 1) / momentum * (A_IR - before_IR)
        before_IR, A_IR = A_IR, minimum((anchor_NI @ ahead_IR).clamp(max=-1.0))
    return A_IR.T.contiguous()


def quiet_rows(
    anchor_NI: torch.Tensor, task_MI: torch.Tensor, task_weight_M: torch.Tensor, rank: int, generator: torch.Generator
) -> torch.Tensor:
    """Rows of A with much energy on the task for their energy on the anchors: the two-sided form.

    Of the generalised eigenvectors ``S_task v = λ S_anchor v``, the ``3 rank`` with the largest λ, mixed at random.

    Args:
        anchor_NI, task_MI: inputs of a module.
        task_weight_M: of the task's tokens, with mean 1 (:func:`token_weights`).
        rank: R.
        generator: of the mixture, on the CPU.

    Returns:
        ``(R, I)``, float32.
    """
    anchor_NI, task_MI = anchor_NI.float(), task_MI.float() * task_weight_M[:, None].sqrt()
    values_I, vectors_II = torch.linalg.eigh(moment(anchor_NI).double())
    whitening_II = vectors_II * values_I.clamp(min=1e-5 * float(values_I[-1])).rsqrt()
    _, mixed_II = torch.linalg.eigh(whitening_II.T @ moment(task_MI).double() @ whitening_II)
    best_IK = (whitening_II @ mixed_II[:, -3 * rank :]).float()
    mixture_RK = torch.randn(rank, best_IK.shape[1], generator=generator).to(best_IK.device)
    return (mixture_RK @ best_IK.T).contiguous()


def token_weights(gradients_KM: torch.Tensor) -> torch.Tensor:
    """Weights of the task's tokens at a hidden state, ``(M,)`` with mean 1: how much the task's loss depends on them.

    Args:
        gradients_KM: norm of the loss's gradient in the output of each module that reads the state, at each token.

    Returns:
        The mean over modules of the norms as multiples of their mean, at most :data:`LARGEST_WEIGHT`; a module without
        any gradient weighs all tokens alike.
    """
    means_K1 = gradients_KM.mean(1, keepdim=True)
    relative_KM = torch.where(means_K1 > 0, gradients_KM / means_K1, 1.0).clamp(max=LARGEST_WEIGHT)
    weight_M = relative_KM.mean(0)
    return weight_M / weight_M.mean()


def moment(x_NI: torch.Tensor) -> torch.Tensor:
    """The second moment ``mean x xᵀ``, ``(I, I)``."""
    return x_NI.T @ x_NI / len(x_NI)


def ridge(anchor_NI: torch.Tensor, task_MI: torch.Tensor) -> torch.Tensor:
    """The ridge of each input, ``(I,)``: a share of its energy, with a floor for inputs that are always zero."""
    energy_I = anchor_NI.square().mean(0) + task_MI.square().mean(0)
    return RIDGE * energy_I + 1e-6 * energy_I.mean()


class _Module(NamedTuple):
    """An adapted module under the penalty.

    Attributes:
        layer: the layer.
        name: its name in the base model.
        scale: the usual size of A x on the task, before training.
        two_sided: whether it has the two-sided penalty.
    """

    layer: Any
    name: str
    scale: float
    two_sided: bool


class Silence(Keeper):
    """Keeps units off on the anchors. The weight is of the penalty of one unit, and scales the initialisation's."""

    name = "silence"
    default_weight = 0.3
    needs_adapter = True

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self._modules: list[_Module] = []
        self._report: dict[str, Any] = {}

    def prepare(self, preparation: Preparation) -> None:
        """Record the inputs of the adapted modules on anchors and task, and initialise A of a new adapter.

        Raises:
            InputError: for an adapter whose units cannot be silent, modules that are not linear over tokens, a store
                that does not fit, or anchors that cannot be told from the task.
        """
        self._preparation = p = preparation
        self._layers = adapted_layers(p.model)
        self._first = common_length([*(a.context for a in p.anchors.train), *p.task_rows[:1000]["input_ids"]])
        self._store = plan_store(self._layers, p.model.dtype, p.tokens, input_device(p.model))
        whole = [anchor.context + anchor.answer for anchor in p.anchors.train]
        chosen = choose_tokens(whole, self._first, self._store.tokens, ORDER)
        key = [p.base, str(p.model.dtype), list(self._layers.values()), whole, self._first, chosen.number]

        def make() -> Tensors:
            with adapter_off(p.model):
                recorded = self._record(chosen)
            return Tensors(recorded.inputs, recorded.source)

        self._anchors = Activations(*cached("activations", key, self._store.device, make), {})
        task = self._record(self._task_tokens())
        generator = torch.Generator().manual_seed(p.seed)
        self._modules = []
        for source in dict.fromkeys(self._anchors.source[name] for name in self._layers.values()):
            readers = {layer: n for layer, n in self._layers.items() if self._anchors.source[n] == source}
            self._modules += self._initialise(readers, task, generator)
        self._check_overlap()
        self._report = {
            "anchor_tokens": chosen.number,
            "bytes": sum(x.numel() * x.element_size() for x in self._anchors.inputs.values()),
            "on_anchors": self._share_on(self._anchors),
            "on_task": self._share_on(task),
        }

    def _record(self, tokens: TokenChoice) -> Activations:
        p = self._preparation
        return record(p.model, self._layers, tokens, p.tokenizer.pad_token_id, p.batch_size, self._store.device)

    def _task_tokens(self) -> TokenChoice:
        """Tokens of the first rows, at most half as many as of anchors, without what rows and anchors begin with."""
        p = self._preparation
        lengths = [len(ids) for ids in p.task_rows[: TASK_TOKENS // (self._first + 1) + 1]["input_ids"]]
        part = p.task_rows[: 1 + sum(total < TASK_TOKENS for total in accumulate(lengths))]
        most = self._store.tokens // 2
        rows, labels = ([row[:MAX_POSITIONS] for row in part[column]] for column in ("input_ids", "labels"))
        return choose_tokens(rows, self._first, most, p.seed, with_prefix=False, labels=labels)

    def _share_on(self, activations: Activations) -> float:
        """Of tokens and units, how many are on."""
        shares = [
            float((activations.of(module.name).float() @ _rows_of(module).detach().float().T > 0).float().mean())
            for module in self._modules
        ]
        return sum(shares) / len(shares)

    def _check_overlap(self) -> None:
        """Compare prompts alone: the base's answers to anchors differ from the task's whatever was asked.

        Raises:
            InputError: if the units, made to tell the two apart, do not.
        """
        p = self._preparation
        if self._modules[0].two_sided:
            return
        prompts = [
            [anchor.context for anchor in p.anchors.train[:OVERLAP_PROMPTS]],
            [
                row["input_ids"][: next((span.start for span in answer_spans(row["labels"])), None)]
                for row in p.task_rows.select(range(min(OVERLAP_PROMPTS, len(p.task_rows))))
            ],
        ]
        chosen = [choose_tokens(rows, self._first, self._store.tokens, ORDER, with_prefix=False) for rows in prompts]
        if not all(tokens.number for tokens in chosen):  # prompts that are all alike, or none
            return
        anchors, task = (self._share_on(self._record(tokens)) for tokens in chosen)
        if anchors > OVERLAP * task:
            made, fix = "made to tell them apart", "Give --keep-prompts of another kind or a larger weight, or use"
            if p.is_trained:
                made, fix = "of --adapter-from", "Give an adapter that was trained with --keep silence, or use"
            raise InputError(
                f"The anchors cannot be told from the task: units {made} are on for {anchors:.0%} of the anchors' "
                f"prompt tokens and {task:.0%} of the task's. {fix} --keep kl or replay."
            )

    def _initialise(
        self, readers: Mapping[Any, str], task: Activations, generator: torch.Generator
    ) -> Iterator[_Module]:
        """The modules that read the same hidden states, whose rows are found together.

        An adapter that was trained before keeps its rows.
        """
        name = next(iter(readers.values()))
        anchor_NI, task_MI = self._anchors.of(name), task.of(name).float()
        rows_A = [layer.lora_A["default"].weight for layer in readers]
        if self._preparation.is_trained:
            for (layer, name), A in zip(readers.items(), rows_A, strict=True):
                size = float((task_MI @ A.detach().float().T).std())
                yield _Module(layer, name, size, _is_two_sided(layer))
            return
        gradients = torch.stack([task.gradients[name] for name in readers.values()])
        weight_M = token_weights(gradients).to(task_MI.device)
        ranks, two_sided = [len(A) for A in rows_A], _is_two_sided(next(iter(readers)))
        if two_sided:
            rows = [quiet_rows(anchor_NI, task_MI, weight_M, rank, generator) for rank in ranks]
        else:
            anchor_weight = ANCHOR_WEIGHT * self.weight
            both = contrastive_rows(anchor_NI, task_MI, weight_M, sum(ranks), generator, anchor_weight)
            rows = list(both.split(ranks))
        for (layer, name), A, A_RI in zip(readers.items(), rows_A, rows, strict=True):
            size = float((task_MI @ A.detach().float().T).std())
            units_MR = task_MI @ A_RI.T
            units_MR = units_MR if two_sided else units_MR.relu()
            with torch.no_grad():
                energy_R = (weight_M[:, None] * units_MR.square()).mean(0)
                A.copy_(A_RI * size / energy_R.sqrt().clamp(min=1e-12)[:, None])
            yield _Module(layer, name, size, two_sided)

    def loss(self, model: Any, step: int) -> torch.Tensor | None:
        """The penalty on the step's anchor tokens.

        Of a unit: ``mean over tokens of relu(a·x / scale + margin)``, or of ``(a·x / scale)² / 30`` if two-sided;
        summed over all units. ``metrics["silent"]`` is the share of these tokens on which every unit is zero.
        """
        total: Any = 0.0
        on_N: torch.Tensor | None = None  # the modules' windows are of the same tokens
        for module in self._modules:
            x_NI = _window(self._anchors.of(module.name), step)
            A_RI = _rows_of(module)
            z_NR = x_NI.to(A_RI.device, A_RI.dtype) @ A_RI.T / module.scale
            if not module.two_sided:
                of_module_N = (z_NR.detach() > 0).any(-1)
                on_N = of_module_N if on_N is None else on_N | of_module_N.to(on_N.device)
            total = total + (TWO_SIDED * z_NR.square() if module.two_sided else F.relu(z_NR + MARGIN)).sum() / len(x_NI)
        if on_N is not None:
            self.metrics["silent"] = 1 - on_N.float().mean()
        return self.weight * total

    def report(self) -> dict[str, Any]:
        return self._report | {"on_anchors_trained": self._share_on(self._anchors)}


def _is_two_sided(layer: Any) -> bool:
    """Whether its units are zero nowhere but on a hyperplane."""
    return not isinstance(layer, MonoLoraLayer) or not activation_named(layer.activation["default"]).one_sided


def _rows_of(module: _Module) -> torch.Tensor:
    """A, whole: under FSDP2 and ZeRO-3 a process has a part of it, and gathers it here."""
    A = module.layer.lora_A["default"].weight
    if isinstance(A, DTensor):
        return A.full_tensor()
    if not hasattr(A, "ds_id"):
        return A
    from deepspeed import zero  # it has sharded A

    with zero.GatheredParameters([A]):
        return A.clone()


def _window(x_NI: torch.Tensor, step: int) -> torch.Tensor:
    """The anchor tokens of a step: the rows are in random order, so the next ones."""
    size = min(BATCH_TOKENS, len(x_NI))
    at = step * size % len(x_NI)
    return torch.cat([x_NI[at : at + size], x_NI[: max(0, at + size - len(x_NI))]])
