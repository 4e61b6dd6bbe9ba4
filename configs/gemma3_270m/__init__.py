"""The recipe's three stages at a size for two cores or one GPU, on google/gemma-3-270m."""
