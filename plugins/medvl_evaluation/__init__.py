"""Layer over imaging: metrics, evaluators, splits, the evaluation folder and its page, inference."""
