"""The linear probe: fitting, folds and the evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from medvl_core.protocols import Evaluator
from medvl_evaluation.evaluators.linear_probe import LinearProbe
from medvl_evaluation.evaluators.probe import Fitting, fit_probe
from medvl_evaluation.evaluators.probe_folds import Plan
from medvl_evaluation.predictions import Predictions
from medvl_evaluation.splits.cross_validation import pool_folds
from tests.evaluation.evaluator_data import outputs, part

CLASSES = ("Nodule", "Hernia", "Effusion")
QUICK = {"learning_rate": 0.1, "epochs": 60}


def probe(batch=None, **options) -> LinearProbe:
    made = LinearProbe(CLASSES, "cxr", **{"fitting": QUICK, **options})
    made.update(batch or outputs(120))
    return made


@pytest.mark.parametrize("exclusive", [False, True])
def test_fit_approaches_the_minimum_that_scikit_learn_finds(exclusive):
    batch = outputs(300, signal=0.4, exclusive=exclusive)
    x, y = batch["embeddings"]["cxr"], batch["labels"].float()
    fitting = Fitting(exclusive=exclusive, learning_rate=0.3, weight_decay=0.0, epochs=1500, patience=1500)
    ours = fit_probe((x, y), (x, y), fitting)
    scores = ours.scores(x)
    if exclusive:
        oracle = LogisticRegression(C=1e6, max_iter=10_000).fit(x, y.argmax(1))
        ours_p = torch.tensor(scores).softmax(1)
        np.testing.assert_allclose(ours_p, oracle.predict_proba(x), atol=0.01)
    else:
        for c in range(3):
            oracle = LogisticRegression(C=1e6, max_iter=10_000).fit(x, y[:, c])
            np.testing.assert_allclose(1 / (1 + np.exp(-scores[:, c])), oracle.predict_proba(x)[:, 1], atol=0.01)


def test_unknown_labels_are_left_out_of_the_fit():
    """Labels of studies that are unknown for a class do not move it: the same as training that class without them."""
    batch = outputs(80)
    x, y = batch["embeddings"]["cxr"], batch["labels"].float()
    y[40:, 0] = torch.nan
    fitting = Fitting(learning_rate=0.3, weight_decay=0.0, epochs=800, patience=800)
    masked = fit_probe((x, y), (x, y), fitting).scores(x)[:, 0]
    alone = fit_probe((x[:40], y[:40, :1]), (x[:40], y[:40, :1]), fitting).scores(x)[:, 0]
    np.testing.assert_allclose(masked, alone, atol=0.15, rtol=0.02)


def test_it_stops_early_and_keeps_the_best_state():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 30, generator=rng), torch.randint(0, 2, (40, 1), generator=rng).float()
    held = torch.randn(200, 30, generator=rng), torch.randint(0, 2, (200, 1), generator=rng).float()
    stopped = fit_probe((x, y), held, Fitting(learning_rate=0.1, patience=5))
    assert stopped.epochs < 20
    again = fit_probe((x, y), held, Fitting(learning_rate=0.1, epochs=max(stopped.epochs, 1), patience=200))
    assert stopped.epochs == 0 or torch.equal(stopped.weight, again.weight)


def test_thresholds_lie_between_scores_of_validation():
    batch = outputs(60, signal=10)
    x, y = batch["embeddings"]["cxr"], batch["labels"].float()
    made = fit_probe((x, y), (x, y), Fitting(learning_rate=0.1))
    scores = made.scores(x)
    assert ((scores >= made.thresholds) == y.numpy()).all()
    assert not np.isin(made.thresholds, scores).any()
    y[:, 1] = 0
    assert fit_probe((x, y), (x, y), Fitting()).thresholds[1] == 0


def by_hand(made: LinearProbe, batch: dict, exclusive: bool) -> dict[str, float]:
    labels, rows = batch["labels"].numpy(), []
    for fold in made._folds()[1.0]:
        y, s, d = labels[fold.rows], fold.scores, fold.decided
        rows.append(
            {
                "auroc_macro": roc_auc_score(y, s, average="macro"),
                "auroc_weighted": roc_auc_score(y, s, average="weighted"),
                "auroc_micro": roc_auc_score(y, s, average="micro"),
                "auprc_macro": average_precision_score(y, s, average="macro"),
                "auprc_weighted": average_precision_score(y, s, average="weighted"),
                "auprc_micro": average_precision_score(y, s, average="micro"),
                "accuracy": accuracy_score(y.argmax(1), s.argmax(1)) if exclusive else (y == d).mean(),
                "f1_macro": f1_score(y, d, average="macro"),
            }
        )
    return {f"linear_probe_100/{name}": np.mean([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("exclusive", [False, True])
def test_metrics_are_the_mean_over_folds_as_scikit_learn_has_them(exclusive):
    batch = outputs(120, signal=0.4, exclusive=exclusive)
    made = probe(batch, exclusive=exclusive)
    assert isinstance(made, Evaluator)
    values = made.compute()
    assert values == pytest.approx(by_hand(made, batch, exclusive), abs=1e-9)
    assert list(values) == [metric.name for metric in made.metrics]
    summary = made.tables(50)["linear_probe_summary"].set_index("metric")
    folds = made.tables(50)["linear_probe_folds"]
    for name in ("auroc_macro", "f1_macro"):
        assert summary.loc[name, "mean"] == pytest.approx(values[f"linear_probe_100/{name}"])
        assert summary.loc[name, "sd"] == pytest.approx(folds[name].std())
        low, high = made.intervals(50)[f"linear_probe_100/{name}"]
        assert (summary.loc[name, "low"], summary.loc[name, "high"]) == (low, high)
        assert low < values[f"linear_probe_100/{name}"] < high


def test_folds_are_70_10_20_and_keep_subjects_whole():
    batch = outputs(200)
    subjects = np.array(batch["subject_id"])
    draws = list(Plan("k_fold", (1.0,), 5, 0.125, 0).draws(subjects, batch["labels"].numpy(), 200, 1.0))
    assert sorted(np.concatenate([test for _, test in draws])) == list(range(200))
    for drawn, test in draws:
        assert not set(subjects[drawn]) & set(subjects[test])
    table = probe(batch).tables(5)["linear_probe_folds"]
    shares = table[["n_train", "n_validation", "n_test"]].to_numpy() / 200
    np.testing.assert_allclose(shares, [[0.7, 0.1, 0.2]] * 5, atol=0.03)


def test_fractions_are_nested_and_of_their_size():
    batch = outputs(400)
    subjects, labels = np.array(batch["subject_id"]), batch["labels"].numpy()
    plan = Plan("k_fold", (0.2, 0.5, 1.0), 5, 0.2, 3)
    draws = (plan.draws(subjects, labels, 400, fraction) for fraction in plan.fractions)
    for (few, _), (half, _), (whole, test) in zip(*draws, strict=True):
        assert set(few) < set(half) < set(whole)
        assert len(few) == pytest.approx(0.2 * len(whole), abs=8)
        assert labels[few].mean(0) == pytest.approx(labels[whole].mean(0), abs=0.1)
        assert not set(subjects[whole]) & set(subjects[test])


def test_scheme_rest_tests_all_that_was_not_drawn():
    batch = outputs(100)
    made = probe(batch, scheme="rest", fractions=(0.2,), folds=3)
    for fold in made._folds()[0.2]:
        assert len(fold.rows) + fold.n_train + fold.n_validation == 100
        assert fold.n_train + fold.n_validation == pytest.approx(20, abs=2)
    assert len({tuple(fold.rows) for fold in made._folds()[0.2]}) == 3
    assert set(made.compute()) == {metric.name for metric in made.metrics}


def test_scheme_train_learns_elsewhere_and_tests_every_study():
    made = probe(scheme="train", fractions=(0.1, 1.0), folds=2, validation=0.2)
    with pytest.raises(ValueError, match="has nothing to learn from; set train to a loader"):
        made.compute()
    made.learn([part(outputs(200, seed=7, who="q"), rows) for rows in (slice(0, 90), slice(90, 200))])
    values = made.compute()
    assert values["linear_probe_100/auroc_macro"] > 0.95
    assert all(len(fold.rows) == 120 for folds in made._folds().values() for fold in folds)
    made.learn([outputs(200, seed=7, signal=0.0, who="q")])
    assert made.compute()["linear_probe_100/auroc_macro"] < values["linear_probe_100/auroc_macro"] - 0.1
    made.reset()
    made.update(outputs(120))
    assert made.compute()["linear_probe_100/auroc_macro"] < 0.9


def test_patient_on_both_sides_is_refused():
    made = probe(scheme="train")
    made.learn([outputs(60, who="q") | {"subject_id": ["p7", *["q"] * 59]}])
    with pytest.raises(ValueError, match=r"subject_id 'p7' \(1 such\) is among the studies to learn from and"):
        made.compute()


def test_predictions_are_held_out_means_of_logits():
    batch = outputs(100, exclusive=True)
    made = LinearProbe(CLASSES, "cxr", scheme="train", fractions=(0.3,), folds=4, exclusive=True, fitting=QUICK)
    made.learn([part(batch, slice(0, 60))])
    made.update(part(batch, slice(60, 100)))
    scored = made.predictions()
    total = {study: [] for study in batch["study_id"]}
    for fold in made._folds()[0.3]:
        for row, scores in zip(fold.rows, fold.scores, strict=True):
            total[batch["study_id"][60 + row]].append(scores)
    assert set(scored.study_id) == {study for study, found in total.items() if found}
    for study, scores in zip(scored.study_id, scored.scores, strict=True):
        np.testing.assert_allclose(scores, np.mean(total[study], axis=0))
    np.testing.assert_allclose(scored.probabilities.sum(axis=1), 1)
    assert set(made.tables(5)) == {"linear_probe_folds", "linear_probe_summary", "linear_probe_30_predictions"}


def test_predictions_of_several_probes_are_ranks_within_each():
    made = probe(outputs(300, signal=0.5))
    folds, labels = made._folds()[1.0], outputs(300, signal=0.5)["labels"].numpy()
    folds[0].scores[:] += 50.0  # an offset of one probe changes no area, neither its own nor that of the file
    scored = made.predictions()
    ids = outputs(300)["study_id"]
    parts = [
        Predictions([ids[i] for i in fold.rows], [ids[i] for i in fold.rows], CLASSES, labels[fold.rows], fold.scores)
        for fold in folds
    ]
    pooled = pool_folds(parts).sorted(CLASSES)
    np.testing.assert_allclose(scored.sorted(CLASSES).scores, pooled.scores)
    area = roc_auc_score(scored.labels, scored.scores, average="macro")
    assert area == pytest.approx(made.compute()["linear_probe_100/auroc_macro"], abs=0.03)


def test_probabilities_of_exclusive_classes_tell_what_each_probe_decided():
    made = probe(outputs(100, exclusive=True), exclusive=True)
    scored = made.predictions()
    np.testing.assert_allclose(scored.probabilities.sum(axis=1), 1)
    for fold in made._folds()[1.0]:
        np.testing.assert_array_equal(scored.probabilities[fold.rows].argmax(1), fold.decided.argmax(1))


@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_predictions_of_overlapping_draws_are_mean_ranks(fraction):
    made = probe(outputs(100), scheme="rest", fractions=(0.3, 0.6), folds=4)
    scored, ids = made.predictions(fraction), outputs(100)["study_id"]
    total = {study: [] for study in ids}
    for fold in made._folds()[fraction]:
        for row, scores in zip(fold.rows, fold.scores, strict=True):
            below = (fold.scores < scores).mean(0) + 0.5 * (fold.scores == scores).mean(0)
            total[ids[row]].append(below)
    assert set(scored.study_id) == {study for study, found in total.items() if found}
    for study, scores in zip(scored.study_id, scored.scores, strict=True):
        np.testing.assert_allclose(scores, np.mean(total[study], axis=0))


def test_random_labels_give_chance():
    chance = {}
    for seed in range(8):
        made = probe(outputs(120, signal=0.0, seed=seed))
        for name, value in made.compute().items():
            chance.setdefault(name, []).append((value, made.chance()[name]))
    for name in ("auroc_macro", "auroc_micro", "auprc_macro", "auprc_weighted"):
        found, expected = np.mean(chance[f"linear_probe_100/{name}"], axis=0)
        assert found == pytest.approx(expected, abs=0.08 if name == "auroc_micro" else 0.05), name


@pytest.mark.parametrize("exclusive", [False, True])
def test_chance_of_decisions_is_that_of_a_constant_answer(exclusive):
    batch = outputs(120, exclusive=exclusive)
    made = probe(batch, exclusive=exclusive)
    labels, found = batch["labels"].numpy(), []
    for fold in made._folds()[1.0]:
        y = labels[fold.rows]
        if exclusive:
            guess = np.full(len(y), y.sum(0).argmax())
            true = y.argmax(1)
            found.append((accuracy_score(true, guess), f1_score(true, guess, average="macro", zero_division=0)))
        else:
            accuracy = np.mean([max(column.mean(), 1 - column.mean()) for column in y.T])
            found.append((accuracy, f1_score(y, np.ones_like(y), average="macro")))
    names = [f"linear_probe_100/{name}" for name in ("accuracy", "f1_macro")]
    assert [made.chance()[name] for name in names] == pytest.approx(np.mean(found, axis=0), abs=1e-12)


def test_same_seed_same_numbers_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    assert probe().compute() == probe().compute()
    assert probe(seed=1).compute() != probe().compute()
    assert torch.equal(before, torch.get_rng_state())


def test_figure(tmp_path):
    (path,) = probe(fractions=(0.5, 1.0), folds=2).figures(tmp_path)
    assert path.name == "linear_probe.png"
    assert path.stat().st_size > 5000


def test_class_without_positives_in_some_folds_is_left_out_there():
    batch = outputs(120)
    batch["labels"][:, 2] = 0
    batch["labels"][:2, 2] = 1
    values = probe(batch).compute()
    assert np.isfinite(list(values.values())).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "loo"}, "choose 'k_fold', 'rest' or 'train'"),
        ({"fractions": (0.0, 1.0)}, "give shares above 0 and at most 1"),
        ({"fractions": ()}, "give shares above 0"),
        ({"scheme": "rest"}, "every fraction is below 1"),
        ({"folds": 1}, "give two folds or more"),
        ({"validation": 0.0}, "a share between 0 and 1"),
        ({"train": []}, "train is given but scheme is 'k_fold'"),
        ({"fitting": {"epochs": 0}}, "epochs is 0; it must be positive"),
        ({"classes": ("a",), "exclusive": True}, "one class alone is always right"),
        ({"prefix": "A"}, "it names files"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(**{"classes": CLASSES, "image": "cxr", **options})


def test_outputs_that_do_not_fit():
    with pytest.raises(ValueError, match="learns from the evaluated studies alone"):
        probe().learn([outputs()])
    with pytest.raises(ValueError, match="exactly one class per study"):
        probe(exclusive=True)
    with pytest.raises(ValueError, match=r"labels have shape \(60, 2\) for 3 classes"):
        probe(outputs(classes=2))
    with pytest.raises(ValueError, match="patients leave"):
        probe(outputs(6)).compute()


@pytest.mark.parametrize(
    ("unknown", "message"), [(0, "none of the 8 studies to fit to"), (1, "none of the 8 studies to stop by")]
)
def test_nothing_known_to_fit_to_or_to_stop_by_is_refused(unknown, message):
    parts = [(torch.randn(8, 4), torch.ones(8, 2)) for _ in range(2)]
    parts[unknown][1].fill_(torch.nan)
    with pytest.raises(ValueError, match=message):
        fit_probe(*parts, Fitting())


def test_parts_of_epochs_are_refused():
    with pytest.raises(ValueError, match=r"epochs is 1\.5; it must be a whole number"):
        Fitting(epochs=1.5)
