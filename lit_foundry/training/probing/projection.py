"""Features in two dimensions, to look at.

Shapes: N samples, D feature width.
"""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Projection = Literal["pca", "tsne"]


def check_projection(how: Projection | None) -> None:
    """Raise ValueError of an unknown way, ModuleNotFoundError if what projects so is missing."""
    if how not in (None, "pca", "tsne"):
        raise ValueError(f"projection is pca, tsne or null, got {how}.")
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
    centred = unit - unit.mean(0)
    if how == "tsne" and len(unit) > 3 and centred.abs().max() > 1e-6:  # else it would crash
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(unit) - 1) / 3)
        found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit.numpy())
        return torch.from_numpy(found).double()
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    plane = centred @ (axes * largest.sign()).T  # of two directions, always the same
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))
