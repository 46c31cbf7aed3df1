"""Student-t mixture pseudo-labels, cluster triplets, meta-label captions, chest X-ray datasets."""
