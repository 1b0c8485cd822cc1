"""Features in two dimensions, to look at.

Shapes: N samples, D feature width.
"""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Projection = Literal["pca", "tsne"]


def check_projection(how: Projection | None) -> None:
    """Raise ModuleNotFoundError if what projects so is missing."""
    if how == "tsne" and find_spec("sklearn") is None:
        raise ModuleNotFoundError(
            "projection tsne needs scikit-learn: pip install 'lit-foundry[digits]', or take pca."
        )


def projected(features: Tensor, how: Projection) -> Tensor:
    """Return features, (N, D), in the plane, (N, 2) float64; the same each time.

    Args:
        features: Of samples; each is divided by its length first, as neighbours compare angles.
        how: Onto the two principal components of the samples, or by t-SNE, which keeps neighbours
            together and says nothing of distances beyond.

    Source: van der Maaten and Hinton, Visualizing Data using t-SNE, 2008.
        https://jmlr.org/papers/v9/vandermaaten08a.html
    """
    unit = torch.nn.functional.normalize(features.double().cpu(), dim=1)
    if how == "tsne" and len(unit) > 3:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(unit) - 1) / 3)
        found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit.numpy())
        return torch.from_numpy(found).double()
    centred = unit - unit.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * axes[:2].sum(1, keepdim=True).sign()  # of two directions, always the same
    plane = centred @ axes.T
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))
