"""The model every bundle trains: one tower per modality, one shared embedding space, one temperature."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.engine.distributed import gather_objects, gather_rows
from medvl_core.protocols import AlignmentBatch, EncoderOutput, LossOutput, TokenBatch

__all__ = ["AlignmentLoss", "AlignmentModel", "Tower", "keep_input"]


class Tower(nn.Module):
    """Encoder → pooling → projection → L2 norm: any input of one modality becomes a point on the unit sphere.

    Its ``state_dict`` holds the digest of the encoder's preprocessing, checked on loading; weights without one load.

    Args:
        encoder: Built by ``build_encoder``.
        pooling: Built by ``build_pooling``; ``None`` takes the encoder's own ``pooled`` vector.
        embed_dim: Width E of the shared space. ``None`` leaves the pooled vector unprojected.
        frozen: No gradients, and eval mode even under ``.train()``: buffers of a frozen tower must not drift.
    """

    def __init__(
        self, encoder: nn.Module, pooling: nn.Module | None = None, embed_dim: int | None = 512, frozen: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.made_of = {"encoder": encoder, "pooling": pooling, "embed_dim": embed_dim}
        width = int(encoder.embed_dim)  # type: ignore[arg-type]
        self.projection = nn.Identity() if embed_dim is None else nn.Linear(width, embed_dim, bias=False)
        self.embed_dim = width if embed_dim is None else embed_dim
        self.row_shape: tuple[int, ...] = (self.embed_dim,)
        self.frozen = frozen
        keep_input(self)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> Tower:
        """As usual, but a frozen tower stays in eval mode."""
        return super().train(mode and not self.frozen)

    def project(self, x: Tensor | TokenBatch | Sequence[str]) -> Tensor:
        """The embedding before normalisation.

        Args:
            x: Images, tokens, or texts when the encoder has a tokeniser.

        Returns:
            ``B E`` in fp32.
        """
        if isinstance(x, (list, tuple)):
            x = self.encoder.tokenize(x)  # type: ignore[operator]
        if isinstance(x, TokenBatch):
            x = x.to(next(self.encoder.parameters()).device)
        output = self.encoder(x)
        if getattr(self.pooling, "order_sensitive", False) and len(output.grid) > 1:
            _require_summary(self, output)
        pooled = output.pooled if self.pooling is None else self.pooling(output.tokens, output.mask)
        if pooled is None:
            raise ValueError(f"{type(self.encoder).__name__} has no pooled vector of its own; give the tower a pooling")
        embedding: Tensor = self.projection(pooled).float()
        return embedding

    def forward(self, x: Tensor | TokenBatch | Sequence[str]) -> Tensor:
        """Unit vectors ``B E`` in fp32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return functional.normalize(self.project(x), dim=-1)

    def pool(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Unit vectors of stored tokens: the encoder does not run.

        Args:
            tokens: ``B N F``, as its encoder gives them.
            mask: Valid tokens ``B N`` (bool), or ``None`` when all are.

        Returns:
            ``B E`` in fp32.
        """
        if self.pooling is None:
            raise ValueError(f"{type(self.encoder).__name__}: stored tokens need a pooling; give the tower one")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return functional.normalize(self.projection(self.pooling(tokens, mask)).float(), dim=-1)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str], normalise: bool = True) -> Tensor:
        """Embeddings of texts in eval mode, ``len(texts) E``, on the CPU."""
        training = self.training
        self.eval()
        try:
            rows = [self.project(list(texts[i : i + 64])) for i in range(0, len(texts), 64)]
        finally:
            self.train(training)
        embedding = torch.cat(rows).cpu()
        return functional.normalize(embedding, dim=-1) if normalise else embedding


def _require_summary(tower: Tower, output: EncoderOutput) -> None:
    """An order-sensitive pooling over nothing but the cells of an image would take one of them for a summary."""
    if output.tokens.shape[1] == math.prod(output.grid):
        pooling, encoder = (getattr(one, "component", type(one).__name__) for one in (tower.pooling, tower.encoder))
        raise ValueError(
            f"{pooling} takes the top-left patch: the {output.tokens.shape[1]} tokens of {encoder} are the cells of "
            f"its grid {tuple(output.grid)}, no class token comes first; choose another pooling, e.g. baseline/mean"
        )


def keep_input(tower: nn.Module, any_size: bool = False) -> None:
    """Put the digest of the preprocessing of ``tower.encoder`` into the tower's ``state_dict``, checked on loading.

    With ``any_size`` the digest leaves out the size: windows may be larger than the patches of training.
    """
    if (input := getattr(tower.encoder, "input", None)) is not None:
        if any_size:
            input = dataclasses.replace(input, size=(1,) * len(input.size))
        digest = list(bytes.fromhex(input.digest()))
        tower.register_buffer("input_sha256", torch.tensor(digest, dtype=torch.uint8, device="cpu"))
        tower.register_load_state_dict_pre_hook(_check_input)


def _check_input(tower: Any, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """A hook before loading: weights that were trained with another preprocessing are refused."""
    own = tower.input_sha256
    theirs = state_dict.setdefault(f"{prefix}input_sha256", own)
    if not torch.equal(theirs.cpu(), own.cpu()):
        old, new = (bytes(one.tolist()).hex()[:12] for one in (theirs, own))
        raise ValueError(
            f"these weights were trained with preprocessing {old}, this tower has {new} ({tower.encoder.input}); "
            "build its encoder with the constants that they were trained with"
        )


class AlignmentModel(nn.Module):
    r"""Towers and the temperature they share.

    The logit scale $s = 1/\tau$ is stored as $\log s$ and clamped to ``max_logit_scale`` (arXiv:2103.00020, 2.5).

    Args:
        towers: Modality → tower.
        temperature: Initial τ.
        learn_temperature: Whether τ is trained.
        max_logit_scale: Upper bound of 1/τ.
        frozen_towers: Further towers that only give targets. They run in eval mode without gradients and are no part of
            the model: not of its parameters, not of its state dict.
    """

    def __init__(
        self,
        towers: Mapping[str, nn.Module],
        temperature: float = 0.07,
        learn_temperature: bool = True,
        max_logit_scale: float = 100.0,
        frozen_towers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be positive")
        self.towers = nn.ModuleDict(dict(towers))
        self.frozen_towers = dict(frozen_towers or {})  # a plain dict keeps them out of parameters() and state_dict()
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)), requires_grad=learn_temperature)
        self.max_log_logit_scale = math.log(max_logit_scale)

    @property
    def embed_text(self) -> Callable[..., Tensor] | None:
        """``Tower.embed_text`` of the model's own ``"report"`` tower, if it has one."""
        return self.towers["report"].embed_text if "report" in self.towers else None  # type: ignore[return-value]

    @property
    def logit_scale(self) -> Tensor:
        """1/τ, clamped."""
        return self.log_logit_scale.clamp(max=self.max_log_logit_scale).exp()

    def forward(self, batch: Mapping[str, Any]) -> AlignmentBatch:
        """Embed what the batch holds.

        Args:
            batch: Modality → input; or ``<modality>_embedding`` → stored ``B E`` rows, which skip the tower; or
                ``<modality>_tokens`` ``B N F`` with ``<modality>_mask`` ``B N``, which skip its encoder.

        Returns:
            Embeddings of every modality found, and everything that no tower read as ``extras``.

        Raises:
            ValueError: If the batch holds nothing for any tower.
        """
        embeddings: dict[str, Tensor] = {}
        read: set[str] = set()
        for modality, tower in self.towers.items():
            own = [modality, f"{modality}_embedding", f"{modality}_tokens", f"{modality}_mask"]
            read.update(own)
            if (stored := batch.get(own[1])) is not None:
                embeddings[modality] = stored.float()
            elif (tokens := batch.get(own[2])) is not None:
                embeddings[modality] = tower.pool(tokens, batch[own[3]])  # type: ignore[operator]
            elif modality in batch:
                embeddings[modality] = tower(batch[modality])
        for modality, tower in self.frozen_towers.items():
            read.add(modality)
            if modality in batch and f"{modality}_embedding" not in batch:
                with torch.no_grad():
                    embeddings[modality] = tower.eval()(batch[modality])
        for key, stored in batch.items():
            if key.endswith("_embedding"):
                read.add(key)
                embeddings.setdefault(key.removesuffix("_embedding"), stored.float())
        if not embeddings:
            raise ValueError(
                f"the batch holds {sorted(batch)}, the model has towers for {sorted(self.towers)}: none fits"
            )
        extras = {key: value for key, value in batch.items() if key not in read}
        return AlignmentBatch(embeddings=embeddings, logit_scale=self.logit_scale, extras=extras)


class AlignmentLoss(nn.Module):
    """Weighted sum of named losses over the gathered batch.

    A loss reads the embeddings, and of the ``extras`` what its ``needs`` name; ``text_group`` and ``labels`` come along
    where they are there.

    Args:
        losses: Name → loss plugin.
        weights: Name → factor; 1 where absent. A loss of weight 0 is not computed.
        gather: ``"all"`` contrasts with the rows of every process, ``"none"`` with this process's own.
    """

    def __init__(
        self,
        losses: Mapping[str, nn.Module],
        weights: Mapping[str, float] | None = None,
        gather: Literal["all", "none"] = "all",
    ) -> None:
        super().__init__()
        if unknown := set(weights or {}) - set(losses):
            raise ValueError(f"weights name {sorted(unknown)}, the losses are {sorted(losses)}")
        self.losses = nn.ModuleDict(dict(losses))
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in losses}
        if not any(self.weights.values()):
            raise ValueError(f"every loss has weight 0 ({self.weights}); give at least one a positive weight")
        self.gather = gather
        needs = [key for loss in self.losses.values() for key in getattr(loss, "needs", ())]
        self._wanted = {"text_group", "labels", *needs}
        self._checked = False

    def without_gathering(self) -> AlignmentLoss:
        """The same losses over this process's own rows: for validation, where batches are uneven."""
        return AlignmentLoss(self.losses, self.weights, "none")  # type: ignore[arg-type]

    def check(self, batch: AlignmentBatch) -> None:
        """Compare what the losses need with what there is.

        Raises:
            ValueError: One line for every loss that lacks an entry.
        """
        lacking = []
        for name, loss in self.losses.items():
            needed = [key for key in getattr(loss, "needs", ()) if self.weights[name] and key not in batch.extras]
            lacking += [
                f"loss {name} ({getattr(loss, 'component', type(loss).__name__)}) needs {key!r}" for key in needed
            ]
        if lacking:
            have = ", ".join(sorted(batch.extras)) or "none"
            raise ValueError(f"{'; '.join(lacking)}; the batch has {have}: choose a dataset that offers it as a field")
        self._checked = True

    def forward(self, batch: AlignmentBatch, target: object = None) -> Tensor:
        """The 0-d sum with graph; its parts go to ``batch.terms``. ``target`` is unused: MONAI's trainer passes one."""
        if not self._checked:
            self.check(batch)
        gathered = self._gathered(batch) if self.gather == "all" else batch
        total = gathered.logit_scale.new_zeros(())
        for name, loss in self.losses.items():
            if self.weights[name] == 0:
                continue
            output: LossOutput = loss(gathered)
            total = total + self.weights[name] * output.total
            parts = {f"{name}/{term}" if len(output.terms) > 1 else name: value for term, value in output.terms.items()}
            batch.terms.update({key: value.detach() for key, value in parts.items()})
        return total

    def _gathered(self, batch: AlignmentBatch) -> AlignmentBatch:
        return AlignmentBatch(
            embeddings={modality: gather_rows(rows) for modality, rows in batch.embeddings.items()},
            logit_scale=batch.logit_scale,
            extras={key: _gathered(value) for key, value in batch.extras.items() if key in self._wanted},
        )


def _gathered(value: Any) -> Any:
    """Rows of all processes; of a list, its items."""
    if isinstance(value, Tensor):
        return gather_rows(value)
    return [item for part in gather_objects(value) for item in part] if isinstance(value, list) else value
