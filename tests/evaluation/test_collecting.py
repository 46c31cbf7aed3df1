from __future__ import annotations

from medvl_core.protocols import AlignmentBatch
from medvl_evaluation.collecting import collect_outputs


def test_collected_outputs_come_in_eval_mode_without_gradients():
    import torch

    class Model(torch.nn.Module):
        def forward(self, batch):
            assert not self.training
            rows = torch.ones(len(batch["study_id"]), 2, requires_grad=True) * 2
            return AlignmentBatch({"cxr": rows}, rows.sum())

    batches = [{"study_id": ["a", "b"], "metadata": [{"age": 3.0}, {}]}, {"study_id": ["c"], "metadata": [{}]}]
    outputs = collect_outputs(Model().train(), batches)
    assert [output["study_id"] for output in outputs] == [["a", "b"], ["c"]]
    assert outputs[0]["metadata"] == [{"age": 3.0}, {}]
    assert outputs[0]["embeddings"]["cxr"].tolist() == [[2, 2], [2, 2]]
