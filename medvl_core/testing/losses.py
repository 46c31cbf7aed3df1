"""Contract checks of losses: a loss sees the gathered batch, row i of every modality is pair i."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medvl_core.protocols import AlignmentBatch, LossOutput
from medvl_core.testing import modules
from medvl_core.testing.harness import Subject, as_module, require, require_close

__all__ = ["CHECKS"]

_PAIRS, _WIDTH = 8, 16
_TEMPERATURES = (1.0, 0.07, 0.01)
_MODALITIES = ("ct", "cxr", "mri", "report")
_EXTRAS: Mapping[str, Any] = {"text_group": torch.arange}


def _embeddings(subject: Subject, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Unit rows, drawn in float32 so that every dtype sees the same values."""
    generator = torch.Generator().manual_seed(0)
    names = subject.spec.modalities or _MODALITIES
    rows = {name: F.normalize(torch.randn(_PAIRS, _WIDTH, generator=generator), dim=1) for name in names}
    return {name: value.to(dtype).requires_grad_() for name, value in rows.items()}


def _extras(subject: Subject) -> dict[str, Any]:
    makers = {**_EXTRAS, **subject.extras}
    for name in subject.spec.needs:
        require(name in makers, subject, f"give contract_cases(..., extras={{{name!r}: lambda n: ...}})")
    return {name: makers[name](_PAIRS) for name in subject.spec.needs}


def _loss(
    loss: Any,
    subject: Subject,
    embeddings: dict[str, Tensor],
    temperature: float = 0.07,
    extras: dict[str, Any] | None = None,
) -> LossOutput:
    scale = torch.tensor(1 / temperature, dtype=next(iter(embeddings.values())).dtype)
    return loss(AlignmentBatch(embeddings, scale, _extras(subject) if extras is None else extras))  # type: ignore[no-any-return]


def _runner(subject: Subject) -> modules.Run:
    return lambda loss: [_loss(loss, subject, _embeddings(subject)).total]


def output(subject: Subject) -> None:
    """A 0-d total with graph and named 0-d terms."""
    out = _loss(subject.build(), subject, _embeddings(subject))
    require(isinstance(out, LossOutput), subject, f"forward gave {type(out).__name__}, not LossOutput")
    require(out.total.ndim == 0, subject, f"total has shape {tuple(out.total.shape)}; it must be 0-d")
    require(out.total.requires_grad, subject, "total has no graph")
    require(bool(out.terms), subject, "terms is empty; name at least the loss itself for the log")
    for name, term in out.terms.items():
        require(term.ndim == 0, subject, f"term {name!r} has shape {tuple(term.shape)}; it must be 0-d")


def finite_in_half_precision(subject: Subject) -> None:
    """Total and gradients are finite in float32, float16 and bfloat16 at temperatures down to 0.01."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for temperature in _TEMPERATURES:
            embeddings = _embeddings(subject, dtype)
            total = _loss(subject.build(), subject, embeddings, temperature).total
            where = f"at temperature {temperature} in {str(dtype).removeprefix('torch.')}"
            require(bool(total.isfinite()), subject, f"total is {total.item()} {where}")
            total.backward()
            for name, value in embeddings.items():
                finite = value.grad is None or bool(value.grad.isfinite().all())
                require(finite, subject, f"the gradient of {name} is not finite {where}")


def gradients(subject: Subject) -> None:
    """A gradient reaches every trainable parameter, and at least one modality or extra entry (logits)."""
    modules.gradients(subject, _runner(subject))
    embeddings, extras = _embeddings(subject), _extras(subject)
    _loss(subject.build(), subject, embeddings, extras=extras).total.backward()
    tensors = [value for entry in extras.values() for value in (entry if isinstance(entry, tuple) else (entry,))]
    inputs = [*embeddings.values(), *(value for value in tensors if isinstance(value, Tensor))]
    reached = [value for value in inputs if value.grad is not None and bool(value.grad.any())]
    require(bool(reached), subject, "no gradient reaches any embedding or extra entry")
    for name in subject.spec.modalities:
        gradient = embeddings[name].grad
        require(
            gradient is not None and bool(gradient.any()),
            subject,
            f"no gradient reaches {name!r}, which the spec lists",
        )


def order_of_pairs(subject: Subject) -> None:
    """Permuting the pairs leaves the total as it is and permutes the gradients."""
    loss = subject.build()
    order = torch.randperm(_PAIRS, generator=torch.Generator().manual_seed(1))
    plain = _embeddings(subject)
    extras = _extras(subject)
    shuffled = {name: value.detach()[order].requires_grad_() for name, value in plain.items()}
    scale = torch.tensor(1 / 0.07)
    first = loss(AlignmentBatch(plain, scale, extras)).total
    second = loss(
        AlignmentBatch(shuffled, scale, {name: _permuted(value, order) for name, value in extras.items()})
    ).total
    require_close(second, first, subject, "permuting the pairs changes the total", tolerance=1e-5)
    first.backward()
    second.backward()
    for name, value in plain.items():
        gradient, moved = value.grad, shuffled[name].grad
        if gradient is not None and moved is not None:
            require_close(moved, gradient[order], subject, f"permuting the pairs changes d total / d {name}")


def _permuted(value: Any, order: Tensor) -> Any:
    """Per-pair entries follow the pairs; anything else stays."""
    if isinstance(value, Tensor) and value.ndim and len(value) == _PAIRS:
        return value[order]
    if isinstance(value, list | tuple) and len(value) == _PAIRS:
        return type(value)(value[index] for index in order.tolist())
    return value


def float64(subject: Subject) -> None:
    """The float32 total equals the loss evaluated in float64."""
    for temperature in _TEMPERATURES:
        single = _loss(subject.build(), subject, _embeddings(subject), temperature).total
        double_loss = as_module(subject.build(), subject).double()
        doubled = {name: value.detach().double() for name, value in _embeddings(subject).items()}
        double = _loss(double_loss, subject, doubled, temperature).total
        require_close(
            single, double, subject, f"float32 and float64 differ at temperature {temperature}", tolerance=1e-5
        )


class _Watched(dict[str, Any]):
    """Extras of a batch that offers what other losses need; it remembers what was asked for."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As of any mapping."""
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def reads_what_it_needs(subject: Subject) -> None:
    """Of the extras it reads those alone that the spec ``needs``, besides ``text_group`` and ``labels``."""
    extras = _Watched(_extras(subject))
    with suppress(KeyError):
        _loss(subject.build(), subject, _embeddings(subject), extras=extras)
    stray = sorted(extras.asked - {*subject.spec.needs, "text_group", "labels"})
    require(not stray, subject, f"it reads the extras {stray}, which the spec does not name in needs")


def state_dict(subject: Subject) -> None:
    """The state dict holds everything the total depends on."""
    modules.state_dict_round_trip(subject, _runner(subject))


def global_rng(subject: Subject) -> None:
    """The global random states stay as they are."""
    modules.global_rng(subject, _runner(subject))


CHECKS = (
    output,
    reads_what_it_needs,
    finite_in_half_precision,
    gradients,
    order_of_pairs,
    float64,
    state_dict,
    global_rng,
)
