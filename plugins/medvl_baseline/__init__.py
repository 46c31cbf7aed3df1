"""Generic components: encoders, poolings, losses, text sources, evaluators, the phantom cohort, folders of images."""
