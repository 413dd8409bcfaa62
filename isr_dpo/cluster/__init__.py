"""What a step or the preflight asks of Kubernetes. Nothing else of this package imports its client."""
