import pytest
import torch
from medvl_example.evaluators import PairCosine


def test_cosine_and_chance_by_hand():
    evaluator = PairCosine("cxr", "report")
    cxr, report = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    ids = {"study_id": ["a", "b"], "subject_id": ["a", "b"]}
    evaluator.update({"embeddings": {"cxr": cxr, "report": report}, **ids})
    assert evaluator.compute() == {"cxr_to_report/cosine": pytest.approx(0.9)}
    assert evaluator.chance() == {"cxr_to_report/cosine": pytest.approx(0.3)}
    assert evaluator.tables()["pair_cosine_cxr_to_report"]["cosine"].tolist() == pytest.approx([1.0, 0.8])
