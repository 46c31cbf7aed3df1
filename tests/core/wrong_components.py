"""Toy components, right ones and ones with a single fault each, to test the contract kit with."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from medvl_core.protocols import AlignmentBatch, EncoderOutput, LossOutput, TokenBatch
from medvl_core.specs import ImageInput, Metric, TextInput
from medvl_core.study import Image, Report, Study

IMAGE = ImageInput(channels=1, size=(8, 8))


def bf16_hole(x):
    """Zero in float32; infinite in bfloat16, where 1.001 rounds to 1."""
    return 0 * (1 / (torch.full_like(x, 1.001) - 1))


class Encoder(nn.Module):
    """Four tokens of an 8 x 8 image."""

    input, embed_dim = IMAGE, 6

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 6)

    def forward(self, x):
        return EncoderOutput(self.tokens(self.layer(x.reshape(len(x), 4, 16))), (2, 2))

    def tokens(self, tokens):
        return tokens


class EncoderOfOtherWidth(Encoder):
    embed_dim = 7


class EncoderMixingRows(Encoder):
    def tokens(self, tokens):
        return tokens - tokens.mean(dim=0)


class EncoderWithIdleParameter(Encoder):
    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))


class EncoderOverflowing(Encoder):
    def tokens(self, tokens):
        return tokens + bf16_hole(tokens)


class EncoderWithHiddenWeights(Encoder):
    def __init__(self):
        super().__init__()
        self.hidden = [nn.Linear(6, 6)]

    def tokens(self, tokens):
        return self.hidden[0](tokens)


class EncoderDrawing(Encoder):
    def tokens(self, tokens):
        return tokens + 1e-9 * torch.randn(tokens.shape)


def encoder_called(name="vit"):
    return Encoder()


def seeding_encoder():
    torch.manual_seed(0)
    return Encoder()


class TextEncoder(nn.Module):
    """Token embeddings; padding is id 0."""

    input, embed_dim = TextInput(max_length=32), 6

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 6)

    def tokenize(self, texts):
        rows = [torch.tensor([1 + len(word) for word in text.split()]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return TokenBatch(ids, ids > 0)

    def forward(self, x):
        tokens, mask = self.table(x.input_ids), x.attention_mask
        pooled = (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return EncoderOutput(tokens, (tokens.shape[1],), pooled=pooled, mask=mask)


class TextEncoderReadingPadding(TextEncoder):
    def forward(self, x):
        tokens = self.table(x.input_ids)
        return EncoderOutput(tokens, (tokens.shape[1],), pooled=tokens.mean(dim=1), mask=x.attention_mask)


class Pooling(nn.Module):
    """Scaled mean over valid tokens."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, tokens, mask):
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        return self.scale * (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def pooling_of_encoder(encoder=None):
    return Pooling()


class PoolingOfOtherShape(Pooling):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask)[:, None]


class PoolingMixingRows(Pooling):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask) - tokens.mean()


class PoolingReadingPadding(Pooling):
    def forward(self, tokens, mask):
        return self.scale * tokens.mean(dim=1)


class PoolingOfFirstToken(Pooling):
    def forward(self, tokens, mask):
        return self.scale * tokens[:, 0]


class PoolingWithIdleParameter(Pooling):
    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))


class PoolingOverflowing(Pooling):
    def forward(self, tokens, mask):
        pooled = super().forward(tokens, mask)
        return pooled + bf16_hole(pooled @ pooled.mT)[:, :1]


class PoolingWithHiddenWeights(Pooling):
    def __init__(self):
        super().__init__()
        self.hidden = torch.rand(())

    def forward(self, tokens, mask):
        return self.hidden * super().forward(tokens, mask)


class PoolingDrawing(Pooling):
    def forward(self, tokens, mask):
        np.random.random()
        return super().forward(tokens, mask)


class RegionPooling(nn.Module):
    """Mean of the features inside each of four regions; empty ones give zeros."""

    first, smallest = 1, 1e-6

    def forward(self, features, regions):
        weights = F.one_hot(regions.flatten(1), 5)[..., self.first :].mT.to(features.dtype)
        return (weights @ features.flatten(2).mT) / weights.sum(dim=2, keepdim=True).clamp(min=self.smallest)


class RegionPoolingDividingByZero(RegionPooling):
    smallest = 0


class RegionPoolingReadingBackground(RegionPooling):
    def forward(self, features, regions):
        return super().forward(features, regions) + features.mean()


class Loss(nn.Module):
    """Symmetric InfoNCE between the radiograph and the report, with a learned factor."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(1 + torch.rand(()))

    def forward(self, batch: AlignmentBatch):
        return self.output(self.total(*self.pair(batch), batch.logit_scale.float()))

    def pair(self, batch):
        return batch.embeddings["cxr"].to(self.dtype(batch)), batch.embeddings["report"].to(self.dtype(batch))

    def dtype(self, batch):
        return torch.promote_types(batch.embeddings["cxr"].dtype, torch.float32)

    def total(self, cxr, report, scale):
        logits = scale * cxr @ report.T
        target = torch.arange(len(logits))
        return self.factor * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    def output(self, total):
        return LossOutput(total, {"loss": total.detach()})


class LossOfOtherShape(Loss):
    def output(self, total):
        return LossOutput(total[None], {"loss": total.detach()})


class LossExponentiating(Loss):
    def dtype(self, batch):
        return batch.embeddings["cxr"].dtype

    def total(self, cxr, report, scale):
        similarities = (scale * cxr @ report.T).to(cxr.dtype).exp()
        return -self.factor * (similarities.diagonal() / similarities.sum(dim=1)).log().mean()


class LossWithoutGradient(Loss):
    def total(self, cxr, report, scale):
        return super().total(cxr.detach(), report.detach(), scale)


class LossOfOneSide(Loss):
    def total(self, cxr, report, scale):
        return super().total(cxr.detach(), report, scale)


class LossOfPairOrder(Loss):
    def total(self, cxr, report, scale):
        weights = torch.arange(len(cxr)) / len(cxr)
        return self.factor * F.cross_entropy(weights[:, None] * scale * cxr @ report.T, torch.arange(len(cxr)))


class LossRounding(Loss):
    def total(self, cxr, report, scale):
        if cxr.dtype == torch.float32:
            cxr = cxr.bfloat16().float()
        return super().total(cxr, report, scale)


class LossWithHiddenWeights(Loss):
    def __init__(self):
        super().__init__()
        self.hidden = torch.rand(())

    def total(self, cxr, report, scale):
        return self.hidden * super().total(cxr, report, scale)


class LossDrawing(Loss):
    def total(self, cxr, report, scale):
        return super().total(cxr, report, scale) + 0 * torch.rand(())


class LossOfExtras(Loss):
    def forward(self, batch):
        return self.output(self.total(*self.pair(batch), batch.logit_scale.float()) * batch.extras["weight"].mean())


class TextSource:
    def texts(self, studies, rng):
        return [f"{study.report.findings} {study.report.impression}" for study in studies]


class TextSourceOfFindings(TextSource):
    def texts(self, studies, rng):
        return [study.report.findings for study in studies]


class TextSourceCounting(TextSource):
    def __init__(self):
        self.calls = itertools.count()

    def texts(self, studies, rng):
        return [f"{text} {next(self.calls)}" for text in super().texts(studies, rng)]


class TextSourceWriting(TextSource):
    def texts(self, studies, rng):
        studies[0].labels["Pleural effusion"] = 0.0
        return super().texts(studies, rng)


class TextSourceDrawing(TextSource):
    def texts(self, studies, rng):
        np.random.shuffle([1, 2, 3])
        return super().texts(studies, rng)


class Reporting:
    """An evaluator's reports, as empty as allowed."""

    names = ("top_1",)

    @property
    def metrics(self):
        return tuple(Metric(name=name) for name in self.names)

    def intervals(self, n_resamples=1000, seed=0, level=0.95):
        return {self.names[0]: (0.0, 1.0)}

    def chance(self):
        return {}

    def tables(self, n_resamples=1000, seed=0, level=0.95):
        return {}

    def figures(self, folder, n_resamples=1000, seed=0, level=0.95):
        path = Path(folder) / "figure.png"
        path.touch()
        return [path]


class Evaluator(Reporting):
    """Share of radiographs whose nearest report is their own."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.batches = []

    def update(self, outputs):
        self.batches.append(outputs["embeddings"])

    def compute(self):
        cxr, report = (torch.cat([batch[name] for batch in self.batches]) for name in ("cxr", "report"))
        hits = (cxr @ report.T).argmax(dim=1) == torch.arange(len(cxr))
        return {"top_1": hits.float().mean().item()}


class EvaluatorOfMore(Evaluator):
    def compute(self):
        return {**super().compute(), "top_one": 1.0}


class EvaluatorOfLess(Evaluator):
    def compute(self):
        return {name: value / 2 for name, value in super().compute().items()}


class EvaluatorOfLastBatch(Evaluator):
    def update(self, outputs):
        self.batches = [outputs["embeddings"]]


class EvaluatorRemembering(Evaluator):
    def __init__(self):
        self.batches = []

    def reset(self):
        pass


class EvaluatorOfOtherNames(Evaluator):
    names = ("top_2",)

    def intervals(self, n_resamples=1000, seed=0, level=0.95):
        return {}


class EvaluatorOfStrayInterval(Evaluator):
    def intervals(self, n_resamples=1000, seed=0, level=0.95):
        return {"top_9": (0.0, 1.0)}


class EvaluatorOfEmptyInterval(Evaluator):
    def intervals(self, n_resamples=1000, seed=0, level=0.95):
        return {"top_1": (1.0, 0.0)}


class EvaluatorIgnoringSeed(Evaluator):
    def intervals(self, n_resamples=1000, seed=0, level=0.95):
        return {"top_1": (0.0, np.random.default_rng().random())}


class EvaluatorDrawingElsewhere(Evaluator):
    def figures(self, folder, n_resamples=1000, seed=0, level=0.95):
        return [Path(__file__)]


class EvaluatorWithoutReports:
    def reset(self):
        pass

    def update(self, outputs):
        pass

    def compute(self):
        return {}


class EvaluatorDrawing(Evaluator):
    def compute(self):
        torch.rand(1)
        return super().compute()


class ZeroShot(Reporting):
    """Share of positives that score above every negative, averaged over classes with positives."""

    classes = ("a", "b", "c")
    names = ("share", "left_out")

    def __init__(self):
        self.reset()

    def reset(self):
        self.scores, self.labels = [], []

    def update(self, outputs):
        self.scores.append(outputs["embeddings"]["cxr"] @ outputs["prompt_embeddings"]["positive"].T)
        self.labels.append(outputs["labels"])

    def compute(self):
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        shares = [self.share(scores[:, c], labels[:, c] == 1) for c in range(len(self.classes))]
        known = [share for share in shares if not np.isnan(share)]
        return {"share": float(np.mean(known)) if known else float("nan"), "left_out": float(len(shares) - len(known))}

    def share(self, scores, positive):
        return (scores[positive] > scores[~positive].max()).float().mean().item()  # NaN without positives


class ZeroShotCountingEmptyAsZero(ZeroShot):
    def share(self, scores, positive):
        return super().share(scores, positive) if positive.any() else 0.0


class ZeroShotPredicting(ZeroShot):
    """Says of embeddings alone what it says of studies."""

    stem, prompts = "toy", {}

    def update(self, outputs):
        super().update(outputs)
        self.ids, self.texts = outputs["study_id"], outputs["prompt_embeddings"]["positive"]

    def predict(self, embeddings):
        return torch.sigmoid(embeddings["cxr"] @ self.texts.T).numpy()

    def predictions(self):
        probabilities = torch.sigmoid(torch.cat(self.scores)).numpy()
        return SimpleNamespace(classes=self.classes, study_id=self.ids, probabilities=probabilities)


class ZeroShotPredictingOther(ZeroShotPredicting):
    def predict(self, embeddings):
        return 1 - super().predict(embeddings)


class ZeroShotPredictingScores(ZeroShotPredicting):
    def predict(self, embeddings):
        return (embeddings["cxr"] @ self.texts.T).numpy()


class ZeroShotScoringOthers(ZeroShotPredicting):
    def predictions(self):
        return SimpleNamespace(**{**vars(super().predictions()), "study_id": ["other"]})


class EvaluatorOfHalfAnAbility(Evaluator):
    train = None


class Dataset:
    """Twelve subjects with a 4 x 4 x 4 CT each."""

    label_names = ("a",)

    def studies(self, split):
        start = 4 * ("train", "validation", "test").index(split)
        return [self.study(start + index) for index in range(4)]

    def study(self, index, **changes):
        fields = {
            "study_id": f"study{index}",
            "subject_id": f"subject{index}",
            "scan_id": f"scan{index}",
            "images": {"ct": self.image()},
            "report": Report("Clear."),
            "labels": {"a": float(index % 2)},
        }
        return Study(**{**fields, **changes})

    def image(self, value=0.0):
        image = Image(np.full((4, 4, 4), value, dtype=np.float32))
        return SimpleNamespace(load=lambda: image, fingerprint=lambda: "0")


class DatasetShuffling(Dataset):
    def __init__(self):
        self.calls = itertools.count()

    def studies(self, split):
        return super().studies(split)[:: (-1) ** next(self.calls)]


class DatasetWithOneId(Dataset):
    def study(self, index):
        return super().study(index, study_id="same")


class DatasetWithOneSubject(Dataset):
    def study(self, index):
        return super().study(index, subject_id="same")


class DatasetWithOtherLabels(Dataset):
    def study(self, index):
        return super().study(index, labels={"a": 2.0})


class DatasetWithUnknownLabels(Dataset):
    def study(self, index):
        return super().study(index, labels={"b": 1.0})


class DatasetWithoutReports(Dataset):
    def study(self, index):
        return super().study(index, report=None)


class DatasetWithNaN(Dataset):
    def image(self, value=float("nan")):
        return super().image(value)


class DatasetNamingLabels(Dataset):
    def __init__(self):
        self.fields = {"labels": lambda study, draw: 1.0}


class DatasetDrawing(Dataset):
    def __init__(self):
        ages = itertools.count()
        self.fields = {"age": lambda study, draw: next(ages)}


class DatasetSeeding(Dataset):
    def __init__(self):
        np.random.seed(0)
