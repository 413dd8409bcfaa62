"""decord loaded before torch breaks torch's matrix products in the same process (it brings NVBLAS along). The package
decodes in processes of their own; tests decode in theirs, so torch comes first."""

import torch  # noqa: F401
