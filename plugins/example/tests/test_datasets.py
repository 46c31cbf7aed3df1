import torch
from medvl_example.datasets import Balls


def test_each_study_has_images_report_label_and_age():
    (study,) = Balls(n_subjects=1, shape=(16, 16, 16)).studies("test")
    ct, cxr = (study.images[name].load().array for name in ("ct", "cxr"))
    assert ct.shape == (16, 16, 16)
    assert cxr.ndim == 2
    assert ("no nodule" in study.report.findings.lower()) == (study.labels["Lung nodule"] == 0)
    assert Balls.fields["age"](study, None) == torch.tensor(study.metadata["age"])


def test_ages_follow_the_seed():
    ages = {Balls(n_subjects=1, seed=seed).studies("test")[0].metadata["age"] for seed in (0, 0, 1)}
    assert len(ages) == 2
