"""The zero-shot evaluator, its prompts and its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from medvl_core.protocols import Evaluator
from medvl_evaluation.evaluators.prompts import embed_prompts, prompts_from_file, prompts_from_templates
from medvl_evaluation.evaluators.zero_shot import ZeroShot
from medvl_evaluation.metrics import auprc, auroc, chance_auprc

CLASSES = ("Nodule", "Hernia", "Effusion")
N, E = 40, 12


def outputs(signal: float = 1.0, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    labels = (rng.random((N, 3)) < [0.5, 0.3, 0.2]).astype(float)
    positive = np.eye(3, E)
    image = signal * (2 * labels - 1) @ positive + 0.7 * rng.standard_normal((N, E)) * (signal < 10)
    labels[rng.random((N, 3)) < 0.1] = np.nan
    ids = [f"{i:02}" for i in range(N)]
    return {
        "embeddings": {"cxr": normalize(torch.tensor(image, dtype=torch.float32), dim=1)},
        "prompt_embeddings": {"positive": torch.tensor(positive), "negative": torch.tensor(-positive)},
        "labels": torch.tensor(labels),
        "study_id": ids,
        "subject_id": [f"p{i // 2}" for i in range(N)],
    }


def part(batch: dict, rows: slice) -> dict:
    cut = {name: batch[name][rows] for name in ("labels", "study_id", "subject_id")}
    return batch | cut | {"embeddings": {"cxr": batch["embeddings"]["cxr"][rows]}}


def evaluator(batch: dict | None = None, **options) -> ZeroShot:
    made = ZeroShot(CLASSES, "cxr", **options)
    made.update(batch or outputs())
    return made


class Tower:
    """Texts → vectors that depend on every letter, of unequal length unless normalised."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str], *, normalise: bool) -> torch.Tensor:
        self.calls.append(texts)
        seeds = [sum(i * ord(c) for i, c in enumerate(text, 1)) for text in texts]
        rows = torch.stack([torch.randn(E, generator=torch.Generator().manual_seed(s)) * (1 + s % 5) for s in seeds])
        return normalize(rows, dim=1) if normalise else rows


def test_it_is_an_evaluator_and_names_its_metrics():
    made = evaluator()
    areas = [f"{area}_{how}" for area in ("auroc", "auprc") for how in ("macro", "weighted", "micro")]
    assert isinstance(made, Evaluator)
    assert list(made.compute()) == [metric.name for metric in made.metrics] == [*areas, "classes_left_out"]
    assert list(made.intervals(20)) == list(made.chance()) == areas


def test_perfect_embeddings():
    values = evaluator(outputs(signal=100)).compute()
    assert values.pop("classes_left_out") == 0
    assert set(values.values()) == {1.0}


def test_split_updates_equal_one_and_reset_forgets():
    batch, made = outputs(), ZeroShot(CLASSES, "cxr")
    made.update(
        part(outputs(seed=5), slice(0, 9))
        | {"prompt_embeddings": {"positive": torch.ones(3, E), "negative": torch.ones(3, E)}}
    )
    made.reset()
    for rows in (slice(0, 1), slice(1, 30), slice(30, N)):
        made.update(part(batch, rows))
    assert made.compute() == evaluator(batch).compute()
    assert made.intervals(30) == evaluator(batch).intervals(30)


def test_scores_are_the_probability_of_the_positive_prompt():
    batch, tower = outputs(), Tower()
    del batch["prompt_embeddings"]
    made = evaluator(batch, embed_text=tower, logit_scale=10.0)
    image = batch["embeddings"]["cxr"].double()
    texts = [[side.format(name) for side in ("{} is present.", "{} is not present.")] for name in CLASSES]
    for c, pair in enumerate(texts):
        logits = 10.0 * image @ tower(pair, normalise=True).double().T
        table = made.tables(2)["zero_shot_predictions"]
        probabilities = table[table["class"] == CLASSES[c]]["probability"]
        np.testing.assert_allclose(probabilities, logits.softmax(1)[:, 0].numpy(), atol=1e-6)


def test_probabilities_are_the_softmax_over_both_prompts():
    batch = outputs()
    made = evaluator(batch, logit_scale=3.0)
    image = normalize(batch["embeddings"]["cxr"].double(), dim=1)
    for c in range(3):
        pair = torch.stack([batch["prompt_embeddings"][side][c].double() for side in ("positive", "negative")])
        expected = torch.softmax(3.0 * image @ normalize(pair, dim=1).T, dim=1)[:, 0]
        np.testing.assert_allclose(made.probabilities()[:, c], expected, rtol=1e-5)
    np.testing.assert_array_equal(made.predict(batch["embeddings"]), made.probabilities())  # to the last bit
    for ask in (lambda one: one.probabilities(), lambda one: one.predict(batch["embeddings"])):
        with pytest.raises(ValueError, match="cosines are no probabilities; build it with scoring='softmax'"):
            ask(evaluator(scoring="cosine"))


def test_cosine_scoring_reads_the_positive_prompt_alone():
    batch = outputs()
    made = evaluator(batch, scoring="cosine")
    np.testing.assert_allclose(made.scores(), batch["embeddings"]["cxr"][:, :3].numpy(), atol=1e-6)


def test_logit_scale_changes_no_area():
    one, many = evaluator(logit_scale=1.0).compute(), evaluator(logit_scale=100.0).compute()
    assert one == pytest.approx(many, abs=1e-12)


@pytest.mark.parametrize("average", ["after_normalisation", "before_normalisation"])
def test_order_of_averaging_and_normalising(average):
    templates = ("{} is present.", "There is {} here.", "Signs of {}.")
    prompts, tower = prompts_from_templates(CLASSES, templates, ("No {}.",)), Tower()
    made = embed_prompts(prompts, tower, average)
    assert len(tower.calls) == 1
    assert made["positive"].shape == made["negative"].shape == (3, E)
    for c, name in enumerate(CLASSES):
        rows = tower([t.format(name) for t in templates], normalise=False).double()
        if average == "after_normalisation":
            rows = rows / rows.norm(dim=1, keepdim=True)
        mean = rows.mean(0)
        torch.testing.assert_close(made["positive"][c].double(), mean / mean.norm(), atol=1e-6, rtol=0)
    other = embed_prompts(
        prompts, tower, {"after_normalisation": "before_normalisation"}.get(average, "after_normalisation")
    )
    assert (other["positive"] - made["positive"]).abs().max() > 0.01
    torch.testing.assert_close(other["negative"], made["negative"])


def test_averaging_scores_is_the_mean_of_the_cosines_of_single_prompts():
    templates = ("{} is present.", "There is {} here.", "Signs of {}.")
    batch, tower = {key: value for key, value in outputs().items() if key != "prompt_embeddings"}, Tower()
    made = evaluator(batch, embed_text=tower, positive=templates, prompt_average="scores", logit_scale=2.0)
    image = batch["embeddings"]["cxr"].double()
    for c, name in enumerate(CLASSES):
        single = [image @ tower([t.format(name)], normalise=True)[0].double() for t in templates]
        negative = image @ tower([f"{name} is not present."], normalise=True)[0].double()
        np.testing.assert_allclose(made.scores()[:, c], 2 * (torch.stack(single).mean(0) - negative), atol=1e-6)
    embeddings = evaluator(batch, embed_text=tower, positive=templates, logit_scale=2.0)
    assert np.abs(embeddings.scores() - made.scores()).max() > 0.01


def test_prefix_tells_two_of_a_kind_apart():
    made = evaluator(prefix="ct_zero_shot")
    names = {f"ct_zero_shot/{metric.name}" for metric in evaluator().metrics}
    assert set(made.compute()) == names
    assert set(made.intervals(20)) | set(made.chance()) <= names
    assert set(made.tables(2)) == {"ct_zero_shot_per_class", "ct_zero_shot_predictions"}


def test_embedding_that_is_not_finite_names_the_study():
    batch = outputs()
    batch["embeddings"]["cxr"][7, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^07: its cxr embedding is not finite"):
        evaluator(batch)


def test_prompts_file_may_hold_different_numbers_of_prompts(tmp_path):
    content = {
        name: {"positive": [f"{name} 1", f"{name} 2"][: 1 + i % 2], "negative": [f"no {name}"]}
        for i, name in enumerate(CLASSES)
    }
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content | {"Other": {}}))
    assert prompts_from_file(path, CLASSES[::-1])["positive"] == (
        ("Effusion 1",),
        ("Hernia 1", "Hernia 2"),
        ("Nodule 1",),
    )
    made = ZeroShot(CLASSES, "cxr", embed_text=Tower(), prompts_file=path)
    made.update({key: value for key, value in outputs().items() if key != "prompt_embeddings"})
    assert made.embed_text.calls == []
    made.compute()
    assert made.embed_text.calls == [
        ["Nodule 1", "Hernia 1", "Hernia 2", "Effusion 1", "no Nodule", "no Hernia", "no Effusion"]
    ]
    path.write_text(json.dumps(content | {"Hernia": {"positive": ["Hernia"], "negative": []}}))
    with pytest.raises(ValueError, match=r"prompts.json: class 'Hernia' has \[\] as negative prompts"):
        prompts_from_file(path, CLASSES)


def test_prompts_file_may_hold_templates(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"positive": ["There is {}."], "negative": ["No {}.", "{} is absent."]}))
    prompts = prompts_from_file(path, CLASSES)
    assert prompts == prompts_from_templates(CLASSES, ["There is {}."], ["No {}.", "{} is absent."])
    assert prompts["negative"][1] == ("No Hernia.", "Hernia is absent.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "holds a list; give an object"),
        ("{", "not a JSON file"),
        ('{"positive": ["There is."], "negative": ["No {}."]}', "positive templates are"),
        ('{"Nodule": "x"}', "class 'Nodule' has None as positive prompts"),
    ],
)
def test_unusable_prompts_file(tmp_path, text, message):
    (tmp_path / "prompts.json").write_text(text)
    with pytest.raises(ValueError, match=rf"prompts\.json: .*{message}"):
        prompts_from_file(tmp_path / "prompts.json", CLASSES)


def test_class_without_positives_is_left_out_and_counted():
    batch = outputs()
    batch["labels"][:, 1] = 0
    values = evaluator(batch).compute()
    areas = auroc(batch["labels"].numpy(), evaluator(batch).scores())
    assert values["classes_left_out"] == 1
    assert values["auroc_macro"] == pytest.approx((areas[0] + areas[2]) / 2)
    table = evaluator(batch).tables(20)["zero_shot_per_class"]
    assert table["n_positive"][1] == 0
    assert np.isnan(table.loc[1, ["auroc", "auroc_low", "auroc_high", "auprc", "auprc_chance"]].astype(float)).all()


def test_chance_is_half_and_the_expected_average_precision():
    batch = outputs()
    labels = batch["labels"].numpy()
    chance = evaluator(batch).chance()
    assert chance["auroc_macro"] == chance["auroc_micro"] == 0.5
    counts = [(int((y == 1).sum()), int((~np.isnan(y)).sum())) for y in labels.T]
    assert chance["auprc_macro"] == pytest.approx(np.mean([chance_auprc(*pair) for pair in counts]))
    assert chance["auprc_micro"] == pytest.approx(chance_auprc(*np.sum(counts, axis=0).tolist()))


def test_random_embeddings_average_to_chance():
    chance = evaluator().chance()
    found = [evaluator(outputs(signal=0.0, seed=s) | {"labels": outputs()["labels"]}).compute() for s in range(60)]
    for name, expected in chance.items():
        assert np.mean([values[name] for values in found]) == pytest.approx(expected, abs=0.03), name


def test_tables_agree_with_the_metrics():
    batch, made = outputs(), evaluator()
    tables = made.tables(40, seed=1)
    per_class, scored = tables["zero_shot_per_class"], tables["zero_shot_predictions"]
    assert per_class["class"].tolist() == list(CLASSES)
    np.testing.assert_allclose(per_class["auprc"], auprc(batch["labels"].numpy(), made.scores()))
    assert per_class["auroc"].mean() == pytest.approx(made.compute()["auroc_macro"])
    assert (per_class[["n_positive", "n_negative", "n_unknown"]].sum(axis=1) == N).all()
    assert per_class["auroc"].between(per_class["auroc_low"], per_class["auroc_high"]).all()
    np.testing.assert_array_equal(scored["score"].to_numpy().reshape(N, 3), made.scores())
    np.testing.assert_array_equal(scored["label"].to_numpy().reshape(N, 3), batch["labels"].numpy())
    np.testing.assert_allclose(scored["probability"], 1 / (1 + np.exp(-scored["score"])), atol=1e-12)
    assert scored["study_id"].tolist()[:4] == ["00", "00", "00", "01"]
    cosines = evaluator(scoring="cosine").tables(2)["zero_shot_predictions"]
    assert cosines["probability"].isna().all()


def test_intervals_stay_between_0_and_1():
    made = evaluator(outputs(signal=0.8))
    bounds = made.tables(100)["zero_shot_per_class"].filter(regex="_(low|high)$")
    assert ((bounds >= 0) & (bounds <= 1)).all(axis=None)
    assert (bounds == 1).any(axis=None), "no bound was clipped: choose a stronger signal"


def test_figures_with_an_undefined_class_and_odd_names(tmp_path):
    batch = outputs()
    batch["labels"][:, 1] = 1
    made = ZeroShot(("Nodule $x$", "Hernia", "An effusion with a name that needs several lines in its panel"), "cxr")
    made.update(batch)
    paths = made.figures(tmp_path, n_resamples=20)
    assert [path.name for path in paths] == [f"zero_shot_{n}.png" for n in ("roc", "precision_recall", "per_class")]
    for path in paths:
        with Image.open(path) as image:
            assert (0x0B, 0x53, 0x94) in {colour for _, colour in image.convert("RGB").getcolors(2**24)}


def test_missing_text_tower_says_what_to_set():
    batch = outputs()
    del batch["prompt_embeddings"]
    with pytest.raises(ValueError, match="no text tower for its prompts; set embed_text"):
        evaluator(batch).compute()


def test_prompt_embeddings_may_not_change_midway():
    made = evaluator()
    with pytest.raises(ValueError, match="prompt_embeddings changed between updates"):
        made.update(outputs() | {"prompt_embeddings": {"positive": torch.ones(3, E), "negative": -torch.ones(3, E)}})
    with pytest.raises(ValueError, match=r"\{'positive': 2, 'negative': 3\} rows for 3 classes"):
        evaluator(outputs() | {"prompt_embeddings": {"positive": torch.ones(2, E), "negative": torch.ones(3, E)}})


def test_outputs_that_do_not_fit():
    with pytest.raises(ValueError, match=r"labels have shape \(40, 2\) for 3 classes"):
        evaluator(outputs() | {"labels": torch.zeros(N, 2)})
    with pytest.raises(ValueError, match="ZeroShot needs labels, and the dataset gives none"):
        evaluator(outputs() | {"labels": None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ()}, r"classes is \(\)"),
        ({"classes": ("a", "a")}, "different names"),
        ({"classes": "Nodule"}, "give a list"),
        ({"scoring": "dot"}, "choose 'softmax' or 'cosine'"),
        ({"prompt_average": "none"}, "choose one of .'after_normalisation', 'before_normalisation', 'scores'"),
        ({"prefix": "Zero shot"}, "prefix is 'Zero shot'; it names files"),
        ({"positive": ("present",)}, "positive templates are"),
        ({"negative": "no {}"}, "negative templates are 'no {}'; give a list"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ZeroShot(**({"classes": CLASSES, "image": "cxr"} | options))


def test_groups_of_classes_have_areas_intervals_and_chance_of_their_own():
    made = evaluator(class_groups={"base": ["Nodule", "Effusion"], "rare": ["Hernia"]})
    labels = outputs()["labels"].numpy()
    areas = auroc(labels, made.scores())
    values = made.compute()
    assert values["auroc_macro_base"] == pytest.approx((areas[0] + areas[2]) / 2)
    assert values["auroc_macro_rare"] == pytest.approx(areas[1])
    low, high = made.intervals(50)["auroc_macro_rare"]
    row = made.tables(50)["zero_shot_per_class"].set_index("class").loc["Hernia"]
    assert (low, high) == pytest.approx((row["auroc_low"], row["auroc_high"]))
    assert made.chance()["auroc_macro_base"] == 0.5
    assert {metric.name for metric in made.metrics} == set(values)


@pytest.mark.parametrize("groups", [{"rare": ["Hernai"]}, {"rare": []}, {"Not a name": ["Hernia"]}])
def test_groups_that_name_no_class_are_refused(groups):
    with pytest.raises(ValueError, match=r"class group 'rare' names|prefix is 'Not a name'"):
        ZeroShot(CLASSES, "cxr", class_groups=groups)


def test_a_label_that_is_none_names_its_study_and_class():
    batch = outputs()
    batch["labels"] = batch["labels"].clone()
    batch["labels"][2, 1] = 2
    scorer = ZeroShot(tuple("abcdefgh"[: batch["labels"].shape[1]]), "cxr")
    with pytest.raises(ValueError, match=rf"{batch['study_id'][2]}: label 'b' is 2; use 1, 0 or NaN"):
        scorer.update(batch)
