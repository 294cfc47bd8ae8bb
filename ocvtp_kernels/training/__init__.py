"""Training the pruner: the autoencoder it is a part of, and its loss."""

from ocvtp_kernels.training.autoencoder import Draws, OCAutoencoder, Reconstructed
from ocvtp_kernels.training.decoder import RandomDecoder
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.loss import AreaWeightedMSE

__all__ = [
    "AreaWeightedMSE",
    "Draws",
    "FeatureFolder",
    "OCAutoencoder",
    "RandomDecoder",
    "Reconstructed",
]
