"""Training the pruner: the autoencoder it is a part of, its start and its loss."""

from ocvtp_kernels.training.autoencoder import Draws, OCAutoencoder, Reconstructed
from ocvtp_kernels.training.config import published_shapes
from ocvtp_kernels.training.decoder import RandomDecoder
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.loss import AreaWeightedMSE
from ocvtp_kernels.training.start import start_as_kmeans

__all__ = [
    "AreaWeightedMSE",
    "Draws",
    "FeatureFolder",
    "OCAutoencoder",
    "RandomDecoder",
    "Reconstructed",
    "published_shapes",
    "start_as_kmeans",
]
