"""An epoch of RadCLIP's adapter as the bundle runs it: stored slice tokens, against slices encoded in every epoch.

``python benchmarks/bench_slice_store.py`` takes the bundle's ``train.json`` on 64 phantoms (38 to train on) with random
weights: the cost does not depend on them. Both ways read standardised data from a store; checkpoints and logs are part
of an epoch, validation is not. The token store is filled once, before; its cost is that of one encoded epoch.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from monai.bundle import ConfigWorkflow
from rounds import measure, write_results

BUNDLE = Path(__file__).resolve().parents[1] / "monai_bundles" / "radclip"


def epoch_of(folder: Path, use_store: bool, n_subjects: int) -> Callable[[], object]:
    """The bundle's trainer of the adapter, one epoch a call."""
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        bundle_root=str(BUNDLE),
        ckpt_dir=str(folder / f"models_{use_store}"),
        output_dir=str(folder / f"eval_{use_store}"),
        cache_dir=str(folder / "cache"),
        track=False,
        n_subjects=n_subjects,
        epochs=1000,  # of the schedule
        val_interval=10**6,
        prepare_workers=0,
        use_store=use_store,
        run=["$@slice_encoder.freeze()", "@fill_stores"],
    )
    workflow.initialize()
    workflow.run()
    trainer = workflow.parser.get_parsed_content("train::trainer")

    def epoch() -> None:
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    options = parser.parse_args()
    logging.getLogger("ignite").setLevel(logging.WARNING)
    n_subjects = 64
    with tempfile.TemporaryDirectory() as folder:
        peers = {
            "stored tokens": epoch_of(Path(folder), True, n_subjects),
            "slices encoded anew": epoch_of(Path(folder), False, n_subjects),
        }
        case = "adapter epoch, train.json, 32 volumes of 32 slices"
        rows = measure(case, peers, 2 if options.quick else 5, "stored tokens")
    write_results("slice_store", rows)


if __name__ == "__main__":
    main()
