"""OCAutoencoder: the pruner with the decoder it is trained with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ocvtp_kernels import checks
from ocvtp_kernels.pruner.checkpoint import (
    DECODER_PREFIX,
    PLACE_MEAN,
    check_state,
    read_checkpoint,
    write_checkpoint,
)
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.modules import drawing_for, without_place_mean
from ocvtp_kernels.pruner.pruner import (
    OCPruner,
    check_reference_tokens,
    check_slots,
    for_layers,
    require_dtype_device,
)
from ocvtp_kernels.training.decoder import RandomDecoder, draw_visible


class Reconstructed(NamedTuple):
    """Outputs of an autoencoder."""

    slots: Tensor  # [B, K, D]
    attention: Tensor  # [B, K, N] of the last slot iteration; sums to 1 over slots
    decoder_attention: Tensor  # [B, K, N] of the decoder's last layer; sums to 1 over slots
    reconstruction: Tensor  # [B, N, C_in]


class Draws(NamedTuple):
    """The random draws of one training step, on the CPU, a row an image."""

    noise: Tensor  # [B, K, D] float32, of the initial slots
    visible: Tensor  # [B, N] bool, which tokens the decoder sees


class OCAutoencoder(nn.Module):
    """Reference tokens to slots and back: what an OC-pruner is trained as (arXiv 2511.20439).

    Parameters have the authors' names, the decoder's under ``decode``, so their state dict loads
    strictly. In training mode slots start from fresh noise and the decoder sees a few tokens of
    each image; in evaluation mode it sees all. The slot iterations run on the fused, differentiable
    ops.

    Args:
        config: shapes and rules, of the pruner and of the decoder.
        noise_seed: seed of the slots' initial noise in evaluation, one for all images, as
            `OCPruner` has it; None draws it afresh there too.
        device, dtype: where and as what the parameters are made.

    Raises:
        ValueError: the decoder's widths do not fit one another or the pruner's.
    """

    place_mean: Tensor | None

    def __init__(
        self,
        config: PrunerConfig,
        *,
        noise_seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        with drawing_for(device):
            pruner = OCPruner(config, noise_seed=noise_seed)
            self.encode_project = pruner.encode_project
            self.initializ = pruner.initializ
            self.aggregat = pruner.aggregat
            self.register_buffer(PLACE_MEAN, pruner.place_mean)
            self.decode = RandomDecoder(config)
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        config: PrunerConfig | None = None,
        *,
        noise_seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> OCAutoencoder:
        """Builds an autoencoder from a checkpoint that holds the decoder too, in training mode.

        Args:
            path: the authors' ``.pth``, or a ``.safetensors`` written by `save_checkpoint`.
            config: shapes and rules; if None the file's own.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file has no config and none is given, or names or shapes do not fit
                the config (all of them are named).
        """
        state, own_config = read_checkpoint(path, with_decoder=True)
        config = config or own_config
        if config is None:
            raise ValueError(f"config: expected one, as {path} has none of its own")
        try:
            model = cls(config, noise_seed=noise_seed, device=device, dtype=dtype)
            check_state(state, model.state_dict())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        model.load_state_dict(state)
        return model

    def forward(
        self,
        reference_tokens: Tensor,
        num_slots: int | None = None,
        slots_init: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Reconstructed:
        """Reconstructs the reference tokens from slots.

        With ``generator`` one step is ``forward(tokens, K, **draw(B, K, generator)._asdict())``.
        Dropout, where the config has any, draws from torch's own generator.

        Args:
            reference_tokens: ``[B, N, C_in]``, N the config's ``pos_resolut``, in the dtype (any
                under autocast) and on the device of the parameters.
            num_slots: K where slots are sampled; ``config.init_num`` if None.
            slots_init: ``[B, K, D]``; sampled, ``mean + noise * exp(logstd)``, if None.
            generator: on the CPU, so that every device draws the same; torch's own if None.
            noise: float ``[B, K, D]`` on any device, in place of drawn noise.
            visible: bool ``[B, N]`` on any device, False hides a token from the decoder; in
                training drawn if None (see `draw_visible`), in evaluation all True.

        Raises:
            ValueError, TypeError: an argument does not fit; the message names it.
        """
        like = self.initializ.mean
        check_reference_tokens(reference_tokens, self.config, like)
        batch, num_tokens, _ = reference_tokens.shape
        checks.require_size(
            "reference_tokens", reference_tokens, 1, self.decode.num_tokens, "pos_resolut"
        )
        _check_generator(generator)
        if visible is None and self.training:
            visible = draw_visible(batch, num_tokens, generator)
        if visible is not None:
            visible = _to_device(visible, reference_tokens.device)
        if slots_init is None:
            slots_init = self._sample_slots(batch, num_slots, generator, noise)
        elif noise is not None:
            raise ValueError("noise: expected None where slots_init is given")
        else:
            check_slots("slots_init", slots_init, batch, num_slots, self.config)
            require_dtype_device("slots_init", slots_init, "the parameters", like)
        reference_tokens = for_layers("reference_tokens", reference_tokens, like)
        encoded = self.encode_project(without_place_mean(reference_tokens, self.place_mean))
        slots, attention = self.aggregat.aggregate(
            encoded, for_layers("slots_init", slots_init, like)
        )
        reconstruction, decoder_attention = self.decode(reference_tokens, slots, visible)
        return Reconstructed(slots, attention, decoder_attention, reconstruction)

    def draw(
        self, batch: int, num_slots: int | None = None, generator: torch.Generator | None = None
    ) -> Draws:
        """Makes the random draws of a training step of ``batch`` images, as `forward` does.

        Processes that share a batch draw alike for all of it, and each takes its rows.

        Args:
            batch: B, the images.
            num_slots: K; ``config.init_num`` if None.
            generator: on the CPU; torch's own if None.
        """
        _check_generator(generator)
        visible = draw_visible(batch, self.decode.num_tokens, generator)
        return Draws(self._draw_noise(batch, self._count(num_slots), generator), visible)

    def pruner(self, noise_seed: int | None = 0) -> OCPruner:
        """The pruner alone, with copies of the present weights, ready for inference."""
        like = self.initializ.mean
        # The pruner draws weights before they are copied; torch's own generator must not advance.
        with torch.random.fork_rng(devices=[]):
            pruner = OCPruner(
                self.config, noise_seed=noise_seed, device=like.device, dtype=like.dtype
            )
        state = self.state_dict()
        pruner.load_state_dict({k: v for k, v in state.items() if not k.startswith(DECODER_PREFIX)})
        return pruner.eval()

    def save_checkpoint(self, path: str | Path) -> None:
        """Writes weights, the decoder's too, and config to ``path``, a ``.safetensors`` file.

        `OCPruner.from_checkpoint` reads it without the decoder.
        """
        write_checkpoint(path, self.state_dict(), self.config)

    def _sample_slots(
        self,
        batch: int,
        num_slots: int | None,
        generator: torch.Generator | None,
        noise: Tensor | None,
    ) -> Tensor:
        mean = self.initializ.mean
        count = self._count(num_slots)
        if noise is None:
            if not self.training and self.initializ.noise_seed is not None:
                seeded: Tensor = self.initializ(batch, count)
                return seeded
            noise = self._draw_noise(batch, count, generator)
        else:
            check_slots("noise", noise, batch, num_slots, self.config)
        return mean + _to_device(noise, mean.device).to(mean.dtype) * self.initializ.logstd.exp()

    def _draw_noise(self, batch: int, num_slots: int, generator: torch.Generator | None) -> Tensor:
        shape = (batch, num_slots, self.config.slot_dim)
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    def _count(self, num_slots: int | None) -> int:
        count = self.config.init_num if num_slots is None else num_slots
        checks.require_at_least("num_slots", count, 1)
        return count


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator: expected one on the CPU, got one on {generator.device}")


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies to the device without a synchronization, which takes pinned memory."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
