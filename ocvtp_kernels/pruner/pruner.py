"""OCPruner: from reference tokens to kept tokens in one readable module."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from ocvtp_kernels import checks
from ocvtp_kernels.dtypes import in_autocast
from ocvtp_kernels.ops.argmax_gather import gather_tokens, select_ids
from ocvtp_kernels.ops.arguments import check_final_tokens, check_importance
from ocvtp_kernels.ops.slot_argmax import slot_topk
from ocvtp_kernels.ops.slot_attention import check_slot_mask
from ocvtp_kernels.ops.slot_attention.reference import log_attention
from ocvtp_kernels.pruner.checkpoint import (
    PLACE_MEAN,
    check_state,
    infer_config,
    read_checkpoint,
    write_checkpoint,
)
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.pruner.freezing import Freezable
from ocvtp_kernels.pruner.modules import (
    MLP,
    SlotAttention,
    SlotPrior,
    drawing_for,
    without_place_mean,
)

PADDINGS = ("importance", "random")


class Pruned(NamedTuple):
    """What a pruner keeps."""

    tokens: Tensor  # [B, T, C] rows of the final tokens
    ids: Tensor  # [B, T] int64, ascending, distinct


class Picks(NamedTuple):
    """What a pruner's slots pick, before gaps are filled; ``resolve_picks`` makes ids of it."""

    picks: Tensor  # [B, K, top_k] int64, a slot's best first
    peak: Tensor  # [B, K], each slot's highest log-attention
    token_score: Tensor  # [B, N], a token's highest log-attention: fills gaps without importance


for _type in (Pruned, Picks):
    # So that an exported pruner can be saved.
    _register_namedtuple(_type, serialized_type_name=f"ocvtp_kernels.{_type.__name__}")


class OCPruner(Freezable):
    """The object-centric pruner of arXiv 2511.20439: one slot per token to keep.

    Slots compete for the reference tokens by Slot Attention; each slot keeps the token it attends
    to most. Parameters carry the authors' names, so their checkpoints load unchanged.

    With ``config.enc_place_mean`` it has a buffer ``place_mean`` ``[N, C_in]``, zeros until it is
    loaded: the mean of training images' tokens at each place, less the mean over places. It is
    taken off the reference tokens before anything else, frozen or not, and images of another N
    are refused.

    Args:
        config: shapes and rules.
        noise_seed: seed of the slots' initial noise. Fixed, the same image always keeps the same
            tokens, alone or in a batch; None draws fresh noise on every call, as the authors do.
        device, dtype: where and as what the parameters are made; torch's defaults if None.

    Raises:
        TypeError, ValueError: ``noise_seed`` is no whole number of 64 bits.
    """

    place_mean: Tensor | None

    def __init__(
        self,
        config: PrunerConfig,
        *,
        noise_seed: int | None = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        dim = config.slot_dim
        with drawing_for(device):
            self.encode_project = MLP(
                config.enc_in_dim, config.enc_dims, config.enc_ln, config.enc_dropout
            )
            self.initializ = SlotPrior(dim, noise_seed)
            self.aggregat = SlotAttention(
                config.agg_num_iter,
                dim,
                config.agg_ffn_dim,
                config.agg_dropout,
                config.agg_trunc_bp,
            )
            shape = (config.num_places, config.enc_in_dim)
            place_mean = torch.zeros(shape) if config.enc_place_mean else None
            self.register_buffer(PLACE_MEAN, place_mean)
        for name, parameter in self.named_parameters():
            if name.endswith(("bias", "bias_ih", "bias_hh")):
                nn.init.zeros_(parameter)
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        config: PrunerConfig | None = None,
        *,
        noise_seed: int | None = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> OCPruner:
        """Builds a pruner from a checkpoint, ready for inference (``eval``).

        Args:
            path: the authors' ``.pth`` (read with ``weights_only=True``, without its decoder)
                or a ``.safetensors`` written by `save_checkpoint`.
            config: shapes and rules; if None the file's own, and without one inferred from the
                shapes, with the published values for the rest (see `infer_config`).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no weights, or names or shapes do not fit the config (all
                of them are named).
        """
        state, own_config = read_checkpoint(path)
        try:
            config = config or own_config or infer_config(state)
            pruner = cls(config, noise_seed=noise_seed, device=device, dtype=dtype)
            check_state(state, pruner.state_dict())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        pruner.load_state_dict(state)
        return pruner.eval()

    def save_checkpoint(self, path: str | Path) -> None:
        """Writes weights and config atomically to ``path``, a ``.safetensors`` file."""
        write_checkpoint(path, self.state_dict(), self.config)

    def sample_slots(self, batch: int, num_slots: int) -> Tensor:
        """Initial slots ``mean + noise * exp(logstd)``: [batch, num_slots, D].

        With a noise seed, all images start from the same slots. Mean and logstd of a frozen pruner
        are those of `freeze`.

        Raises:
            ValueError, TypeError: a number is none, or too small.
        """
        checks.require_at_least("batch", batch, 0)
        checks.require_at_least("num_slots", num_slots, 1)
        slots: Tensor = self.initializ(batch, num_slots, self._prior)
        return slots

    def attend(
        self,
        reference_tokens: Tensor,
        slots_init: Tensor | None = None,
        *,
        num_slots: int | None = None,
        slot_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Slot Attention in plain PyTorch: differentiable, never folded.

        Args:
            reference_tokens: ``[B, N, C_in]``, the dtype and device of the parameters.
            slots_init: ``[B, K, D]``; sampled if None.
            num_slots: K where slots are sampled; ``config.init_num`` if None.
            slot_mask: bool ``[B, K]``, False leaves a slot out; one live slot per image at least.

        Returns:
            slots ``[B, K, D]`` and the last iteration's attention ``[B, K, N]``, whose sum over
            slots is 1 for every token.

        Raises:
            ValueError, TypeError: an argument does not fit; the message names it.
        """
        check_reference_tokens(reference_tokens, self.config, self.initializ.mean)
        default = self.config.init_num
        slots_init = self._initial_slots(reference_tokens, slots_init, num_slots, default)
        if slot_mask is not None:
            check_slot_mask(slot_mask, "slots_init", slots_init)
        slots, logits = self._compete(reference_tokens, slots_init, slot_mask)
        return slots, logits.softmax(dim=1)

    def forward(
        self,
        reference_tokens: Tensor,
        final_tokens: Tensor,
        budget: int | None = None,
        importance: Tensor | None = None,
        slots_init: Tensor | None = None,
        num_slots: int | None = None,
        top_k: int = 1,
        padding: str = "importance",
        places: Tensor | None = None,
    ) -> Pruned:
        """Keeps exactly ``budget`` final tokens of each image.

        Args:
            reference_tokens: ``[B, N, C_in]``, what the decision is made on (vision encoder layer
                8, CLS removed), in the dtype (any under autocast) and on the device of the
                parameters.
            final_tokens: ``[B, N, C]``, what is kept, any dtype.
            budget: T, 1 to N; ``config.init_num`` if None.
            importance: ``[B, N]`` floats, higher fills the gap first when two slots pick one
                token; None falls back to each token's highest attention over slots.
            slots_init: ``[B, K, D]`` initial slots; sampled if None.
            num_slots: K where slots are sampled; ``budget // top_k`` (at least 1) if None.
            top_k: tokens a slot picks.
            padding: "importance", or "random" to fill the gap at random by the noise seed.
            places: int64 ``[B, N]``, of tokens that are not all of an image: the rows of the place
                mean that are theirs; None: they are all, in order.

        Returns:
            tokens ``[B, T, C]`` and ids int64 ``[B, T]``, ascending and distinct. With more
            distinct picks than the budget, the slots with the smallest peak attention lose
            theirs. NaN never beats a number: an image of NaN keeps the tokens that importance
            ranks first, or the lowest ids.

        Raises:
            ValueError, TypeError: an argument does not fit; the message names it.
        """
        check_reference_tokens(reference_tokens, self.config, self._in_use(), places)
        batch, num_tokens, _ = reference_tokens.shape
        check_final_tokens(final_tokens, "reference_tokens", reference_tokens)
        check_importance(importance, "reference_tokens", reference_tokens)
        budget = self.config.init_num if budget is None else budget
        checks.require_budget(budget, num_tokens)
        checks.require_top_k(top_k, num_tokens)
        checks.require_one_of("padding", padding, PADDINGS)
        default = max(1, budget // top_k)
        slots_init = self._initial_slots(reference_tokens, slots_init, num_slots, default)
        if padding == "random":
            importance = self.initializ.scores(batch, num_tokens)
        if self._folded is not None:
            tokens = self._without_place_mean(reference_tokens, places)
            arguments = (tokens, final_tokens, self._folded, slots_init, importance)
            return Pruned(*torch.ops.ocvtp.prune(*arguments, budget, top_k))
        _, logits = self._compete(reference_tokens, slots_init, places=places)
        ids = select_ids(log_attention(logits.detach()), importance, budget, top_k)
        return Pruned(gather_tokens(final_tokens, ids), ids)

    def pick(
        self,
        reference_tokens: Tensor,
        num_slots: int | None = None,
        slots_init: Tensor | None = None,
        top_k: int = 1,
    ) -> Picks:
        """The part of `forward` that needs no importance: what each slot picks.

        ``torch.ops.ocvtp.resolve_picks(picks, peak, importance or token_score, budget)`` makes
        the ids of `forward` of them. A frozen pruner's is ``torch.ops.ocvtp.prune_picks``.

        Args:
            reference_tokens, num_slots, slots_init, top_k: as `forward`, whose default of
                ``num_slots`` is ``budget // top_k``; here ``config.init_num``.

        Raises:
            ValueError, TypeError: an argument does not fit; the message names it.
        """
        check_reference_tokens(reference_tokens, self.config, self._in_use())
        checks.require_top_k(top_k, reference_tokens.shape[1])
        default = self.config.init_num
        slots_init = self._initial_slots(reference_tokens, slots_init, num_slots, default)
        if self._folded is not None:
            tokens = self._without_place_mean(reference_tokens)
            return Picks(*torch.ops.ocvtp.prune_picks(tokens, self._folded, slots_init, top_k))
        _, logits = self._compete(reference_tokens, slots_init)
        scores = log_attention(logits.detach())
        return Picks(*slot_topk(scores, top_k), token_score=scores.amax(dim=1))

    def _without_place_mean(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        mean = self.place_mean
        return without_place_mean(tokens, mean if mean is None or places is None else mean[places])

    def _compete(
        self,
        tokens: Tensor,
        slots_init: Tensor,
        slot_mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Slots and logits in plain PyTorch."""
        like = self.initializ.mean
        tokens = self._without_place_mean(tokens, places)
        tokens = for_layers("reference_tokens", tokens, like)
        slots_init = for_layers("slots_init", slots_init, like)
        slots, logits = self.aggregat(self.encode_project(tokens), slots_init, slot_mask)
        return slots, logits

    def _initial_slots(
        self, tokens: Tensor, slots_init: Tensor | None, num_slots: int | None, default: int
    ) -> Tensor:
        if num_slots is not None:
            checks.require_at_least("num_slots", num_slots, 1)
        if slots_init is None:
            count = default if num_slots is None else num_slots
            if self._slots is not None and 1 <= count <= self._slots.shape[1]:
                return self._slots[:, :count].expand(tokens.shape[0], -1, -1)
            return self.sample_slots(tokens.shape[0], count)
        check_slots("slots_init", slots_init, tokens.shape[0], num_slots, self.config)
        require_dtype_device("slots_init", slots_init, "reference_tokens", tokens)
        return slots_init


def for_layers(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Tokens or slots as layers take them.

    Those of inference mode are copied where autograd has to keep them. Autocast lets any dtype in,
    and a LayerNorm none but its parameters', or half precision with those in float32.

    Args:
        name: the tensor's, for errors.
        like: a parameter of the layers.

    Raises:
        TypeError: the parameters are in one half precision and autocast in the other, which no
            LayerNorm takes on a CPU.
    """
    if in_autocast(like.device):
        autocast = torch.get_autocast_dtype(like.device.type)
        if like.is_cpu and {like.dtype, autocast} == {torch.float16, torch.bfloat16}:
            raise TypeError(
                f"{name}: expected parameters in {autocast} or wider under autocast to {autocast} "
                f"on a CPU, got {like.dtype}"
            )
        if like.dtype != torch.float32 or tensor.dtype == torch.float64:
            tensor = tensor.to(like.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and tensor.is_inference():
        return tensor.clone()
    return tensor


def check_reference_tokens(
    tokens: Tensor, config: PrunerConfig, parameter: Tensor, places: Tensor | None = None
) -> None:
    """Raises ValueError or TypeError unless ``tokens`` fit a pruner with such parameters."""
    checks.require_rank("reference_tokens", tokens, "B, N, C")
    checks.require_floating("reference_tokens", tokens)
    checks.require_nonempty("reference_tokens", tokens, 1, "token")
    checks.require_size("reference_tokens", tokens, 2, config.enc_in_dim, "enc_in_dim")
    if places is not None:
        checks.require_rank("places", places, "B, N")
        if places.dtype != torch.int64:
            raise TypeError(f"places: expected dtype torch.int64, got {places.dtype}")
        for dim in (0, 1):
            checks.require_size("places", places, dim, tokens.shape[dim], "reference_tokens")
    elif config.enc_place_mean:
        checks.require_size("reference_tokens", tokens, 1, config.num_places, "the place mean")
    require_dtype_device("reference_tokens", tokens, "the parameters", parameter)


def check_slots(
    name: str, slots: Tensor, batch: int, num_slots: int | None, config: PrunerConfig
) -> None:
    """Raises ValueError or TypeError unless ``slots`` are floats ``[batch, K, D]``."""
    checks.require_rank(name, slots, "B, K, D")
    checks.require_floating(name, slots)
    checks.require_size(name, slots, 0, batch, "reference_tokens")
    checks.require_size(name, slots, 2, config.slot_dim, "init_dim")
    checks.require_nonempty(name, slots, 1, "slot")
    if num_slots is not None:
        checks.require_size(name, slots, 1, num_slots, "num_slots")


def require_dtype_device(name: str, tensor: Tensor, owner: str, like: Tensor) -> None:
    """Raises ValueError on another device and, outside autocast, TypeError on another dtype."""
    if in_autocast(like.device):
        checks.require_same_device(name, tensor, owner, like)
    else:
        checks.require_same_dtype_device(name, tensor, owner, like)
