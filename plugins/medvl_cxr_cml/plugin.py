"""What this plugin offers. Imports specs only: discovery loads neither torch nor monai."""

from __future__ import annotations

from functools import partial

from medvl_core.hookspecs import hookimpl
from medvl_core.specs import DatasetSpec, EvaluatorSpec, LossSpec, Metric, TextSourceSpec

MEDVL_API = "1.0"
_APACHE = "Apache-2.0"


@hookimpl
def medvl_losses() -> list[LossSpec]:
    """The metric objective."""
    return [
        LossSpec(
            name="cluster_triplet",
            factory="medvl_cxr_cml.cluster_triplet:ClusterTriplet",
            summary="Triplet loss on clusters of the image embeddings, from a Student-t mixture over a bank",
            source="arXiv:2507.19398",
            license=_APACHE,
            tiny={"embed_dim": 16, "n_clusters": 2, "bank_size": 8, "refit_every": 3},
            modalities=("cxr",),
        )
    ]


@hookimpl
def medvl_text_sources() -> list[TextSourceSpec]:
    """Captions made from labels."""
    return [
        TextSourceSpec(
            name="meta_label_captions",
            factory="medvl_cxr_cml.captions:MetaLabelCaptions",
            summary="Captions from positive labels: 'Edema is present. Mass is present.'",
            source="arXiv:2507.19398",
            license=_APACHE,
            produces="label_prompts",
        )
    ]


@hookimpl
def medvl_evaluators() -> list[EvaluatorSpec]:
    """The map of the latent space."""
    return [
        EvaluatorSpec(
            name="latent_map",
            factory="medvl_cxr_cml.latent_map:LatentMap",
            summary="Map of the image embeddings by cluster and by label, and how much the two share",
            source="arXiv:2507.19398",
            license=_APACHE,
            tiny={"classes": ("Atelectasis", "Cardiomegaly"), "n_clusters": 4},
            task="latent_map",
            metrics=(Metric(name="latent_map/adjusted_mutual_information", unit="AMI"),),
        )
    ]


@hookimpl
def medvl_datasets() -> list[DatasetSpec]:
    """Public chest X-ray sets on disk."""
    radiographs = partial(DatasetSpec, license=_APACHE, modalities=("cxr",), has=("labels",))
    return [
        radiographs(
            name="cxr_lt",
            factory="medvl_cxr_cml.cxr_lt:build_cxr_lt",
            summary="CXR-LT 2024 on MIMIC-CXR-JPG: 40 long-tailed labels, 12 rare",
            source="arXiv:2506.07984",
            data_license="PhysioNet Credentialed Health Data License 1.5.0",
            url="https://physionet.org/content/cxr-lt-iccv-workshop-cvamd/2.0.0/",
        ),
        radiographs(
            name="chexpert",
            factory="medvl_cxr_cml.chexpert:build_chexpert",
            summary="CheXpert: 14 labels with a policy for the uncertain ones",
            source="arXiv:1901.07031",
            data_license="Stanford University Dataset Research Use Agreement",
            url="https://stanfordmlgroup.github.io/competitions/chexpert/",
        ),
        radiographs(
            name="nih_chestxray14",
            factory="medvl_cxr_cml.nih:build_nih_chestxray14",
            summary="NIH ChestX-ray14, all or any part of it: 14 findings",
            source="arXiv:1705.02315",
            data_license="no restrictions on use, attribution requested",
            url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        ),
        radiographs(
            name="padchest",
            factory="medvl_cxr_cml.padchest:build_padchest",
            summary="PadChest: findings from Spanish reports, as many as are frequent enough",
            source="arXiv:1901.07441",
            data_license="PadChest Dataset Research Use Agreement",
            url="https://bimcv.cipf.es/bimcv-projects/padchest/",
        ),
    ]
