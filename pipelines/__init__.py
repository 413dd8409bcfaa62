"""The loop as a Kubeflow pipeline, and the recipes and placements it is compiled from."""
