"""Vision towers of Hugging Face models: tokens of two layers, without running unused layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocvtp_kernels.ops.argmax_gather import gather_tokens
from ocvtp_kernels.selectors.interface import Selected, SelectorInputs
from ocvtp_kernels.vlm.intercept import Forward, Intercepts, is_changed
from ocvtp_kernels.vlm.tower_attention import LayerAttention, split_heads
from ocvtp_kernels.vlm.tower_merging import TowerMerging, require_mergeable


class TowerType(NamedTuple):
    """The structure of a type of towers."""

    layers: str  # path of the encoder layers
    has_cls: bool
    attention: tuple[str, ...]  # paths of the module with the projections, newest version first
    rows: bool  # whether a layer can be computed for some rows alone (see `_rows_forward`)
    has_registers: bool = False

    def count_prefix(self, config: Any) -> int:
        """Tokens before the patches of a tower of this type, from its config."""
        return int(self.has_cls) + int(config.num_register_tokens if self.has_registers else 0)


_DINOV2 = TowerType("encoder.layer", True, ("attention", "attention.attention"), False)
_TOWER_TYPES = {
    "clip_vision_model": TowerType("encoder.layers", True, ("self_attn",), True),
    "siglip_vision_model": TowerType("encoder.layers", False, ("self_attn",), True),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2._replace(has_registers=True),
}
# The fields of `SelectorInputs` that a tower can fill beside tokens, see `Tower.encode`.
AVAILABLE_FIELDS = frozenset(
    {"importance", "shallow_importance", "cls_attention", "cls_token", "keys", "grid"}
)
_DEEP_FIELDS = frozenset({"importance", "cls_attention", "keys"})


class Tower:
    """A vision tower: where its layers are, and how many prefix tokens it puts before the patches.

    Attributes:
        module: the tower.
        layers: its encoder layers.
        num_prefix: tokens before the patches (CLS, registers).
        patch_size: height and width of a patch in pixels.
    """

    def __init__(self, module: nn.Module, tower_type: TowerType) -> None:
        self.module = module
        config: Any = _config_of(module)
        self.config = config
        # Early releases of transformers 5 hold CLIP's layers one level deeper, vLLM still does.
        inner: Any = getattr(module, "vision_model", module)
        # A list: slices of a ModuleList are modules, slow to make.
        self.layers: list[nn.Module] = list(inner.get_submodule(tower_type.layers))
        self.num_prefix = tower_type.count_prefix(config)
        self.patch_size = _read_pair(config.patch_size)
        self._type = tower_type

    @classmethod
    def of(cls, module: nn.Module) -> Tower:
        """The description of a tower.

        Raises:
            ValueError: it is of no known type.
        """
        name = getattr(_config_of(module), "model_type", None)
        if name not in _TOWER_TYPES:
            raise ValueError(
                f"vision tower: expected one of {', '.join(_TOWER_TYPES)}, "
                f"got {name or type(module).__name__}"
            )
        return cls(module, _TOWER_TYPES[name])

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.config.hidden_size)

    @property
    def num_heads(self) -> int:
        """Heads of its attention."""
        return int(self.config.num_attention_heads)

    @property
    def available_fields(self) -> frozenset[str]:
        """The fields of `SelectorInputs` that it can fill."""
        of_cls = frozenset() if self._type.has_cls else {"cls_attention", "cls_token"}
        return AVAILABLE_FIELDS - of_cls | {"reference_tokens", "final_tokens"}

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that it was trained on."""
        return _read_pair(self.config.image_size)

    def read_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of an image of ``pixel_values`` ``[..., H, W]``."""
        high, wide = self.patch_size
        return int(pixel_values.shape[-2] // high), int(pixel_values.shape[-1] // wide)

    def count_patches(self, pixel_values: Tensor) -> int:
        """Patches of an image of ``pixel_values`` ``[..., H, W]``."""
        return math.prod(self.read_grid(pixel_values))

    def encode(
        self,
        pixel_values: Tensor,
        reference_layer: int,
        final_layer: int | Sequence[int],
        fields: Collection[str] = (),
        *,
        on_reference_tokens: Callable[[Tensor], None] | None = None,
        row_ids: Callable[[], Tensor] | None = None,
        num_dropped: int | None = None,
        normed: bool = False,
        skip_unused_layers: bool = True,
        **kwargs: Any,
    ) -> SelectorInputs:
        """Runs the tower once.

        Args:
            pixel_values: ``[B, 3, H, W]``.
            reference_layer: index of the layer whose output the decision is made on.
            final_layer: index into ``hidden_states``, as LLaVA's ``vision_feature_layer``; of
                several, the channels are joined.
            fields: of `SelectorInputs`, to fill beside tokens. Attention, mean over heads, and
                keys, heads side by side, are those of the layer that makes the (deepest) final
                tokens; shallow importance is that of the reference layer.
            on_reference_tokens: called with the reference tokens ``[B, N, C]`` before the layers
                behind them run.
            row_ids: called for ids int64 ``[B, T]`` when the layer that makes the final tokens
                runs (see `can_compute_rows`), which then computes queries, projection and MLP for
                these tokens alone.
            num_dropped: tokens left out at the front; the prefix tokens if None.
            normed: whether the final tokens are the tower's own output, behind the norm that
                follows its last layer, which ``final_layer`` has to be.
            skip_unused_layers: whether layers behind the last one used do not run, which changes
                no bit.
            kwargs: passed on to the tower.

        Returns:
            Fields of N = prefix + patches - dropped tokens. None are: fields of attention, where
            the final tokens are the embedding; the CLS token and its attention of a tower without
            one; the grid where prefix tokens are among the N. With ``row_ids``, final tokens are
            those T alone.

        Raises:
            ValueError: ``final_layer`` is out of range, or the layer cannot be computed for
                ``row_ids`` alone.
        """
        finals = self._resolve(final_layer)
        dropped = self.num_prefix if num_dropped is None else num_dropped
        deepest = max(finals)
        intercepts, states = Intercepts(), dict[int, Tensor]()
        if skip_unused_layers:
            for layer in self.layers[max(deepest, reference_layer + 1) :]:
                intercepts.replace(layer, _pass_through)
        for index in {reference_layer + 1, *(() if normed else finals)}:
            self._store_state(intercepts, states, index)
        if on_reference_tokens is not None:
            intercepts.watch(
                self.layers[reference_layer],
                lambda _output: on_reference_tokens(states[reference_layer + 1][:, dropped:]),
            )
        taps_deep = deepest > 0 and not _DEEP_FIELDS.isdisjoint(fields)
        deep = self._tap(intercepts, deepest - 1) if taps_deep else None
        taps_shallow = "shallow_importance" in fields
        shallow = self._tap(intercepts, reference_layer) if taps_shallow else None
        if row_ids is not None:
            if not self.can_compute_rows(reference_layer, final_layer):
                raise ValueError(
                    f"row_ids: layer {deepest - 1} of this tower cannot be computed for some "
                    "rows alone"
                )
            layer = self.layers[deepest - 1]
            intercepts.replace(layer, self._rows_forward(layer, row_ids, dropped))
        with intercepts.active():
            output = self.module(pixel_values, **kwargs)
        # A tower of vLLM returns the tensor.
        own = getattr(output, "last_hidden_state", output)
        ends = [own] if normed else [states[index] for index in finals]
        skip = 0 if row_ids is not None else dropped
        final_tokens = [end[:, skip:] for end in ends]
        optional = {} if deep is None else self._attention_fields(deep, fields, dropped)
        if shallow is not None:
            optional["shallow_importance"] = shallow.received("meanq")[:, dropped:]
        if "cls_token" in fields and self._type.has_cls:
            optional["cls_token"] = ends[0][:, 0]
        if "grid" in fields and dropped == self.num_prefix:
            optional["grid"] = self.read_grid(pixel_values)
        return SelectorInputs(
            states[reference_layer + 1][:, dropped:],
            final_tokens[0] if len(finals) == 1 else torch.cat(final_tokens, dim=-1),
            **optional,
        )

    def encode_merged(
        self,
        pixel_values: Tensor,
        final_layer: int | Sequence[int],
        merges: Sequence[int],
        *,
        num_dropped: int | None = None,
        skip_unused_layers: bool = True,
        **kwargs: Any,
    ) -> Selected:
        """Runs the tower once, merging tokens in its layers.

        Args:
            pixel_values: ``[B, 3, H, W]``.
            final_layer: as `encode` has it; one.
            merges: how many tokens each layer up to the final one merges.
            num_dropped: tokens left out at the front, which never merge; the prefix tokens if None.
            skip_unused_layers: as `encode` has it.
            kwargs: passed on to the tower.

        Returns:
            Of the tokens that are not dropped: ids, merged tokens and groups.

        Raises:
            ValueError: tokens cannot merge in these layers; see `require_mergeable`.
        """
        final = self.require_mergeable(final_layer)
        dropped = self.num_prefix if num_dropped is None else num_dropped
        merging = TowerMerging(self.num_heads, max(dropped, self.num_prefix))
        intercepts, states = Intercepts(), dict[int, Tensor]()
        for index, (layer, count) in enumerate(zip(self.layers[:final], merges, strict=True)):
            intercepts.replace(layer, merging.forward(layer, count, index == 0))
        if skip_unused_layers:
            for layer in self.layers[final:]:
                intercepts.replace(layer, _pass_through)
        self._store_state(intercepts, states, final)
        with intercepts.active():
            self.module(pixel_values, **kwargs)
        tokens = merging.tokens
        ids, groups = (of[:, dropped:] - dropped for of in (tokens.ids, tokens.groups))
        return Selected(ids, states[final][:, dropped:], groups=groups)

    def require_mergeable(self, final_layer: int | Sequence[int]) -> int:
        """The number of layers that make the final tokens, in which tokens can merge.

        Raises:
            ValueError: they cannot: the tower is no CLIP or SigLIP, there are several final layers
                or none, or as `ocvtp_kernels.vlm.tower_merging.require_mergeable`.
        """
        finals = self._resolve(final_layer)
        if not self._type.rows:
            raise ValueError(
                f"model: tokens merge in towers of CLIP and SigLIP, not of "
                f'{self.config.model_type}; place="encoder" merges its output'
            )
        if len(finals) > 1 or finals[0] == 0:
            raise ValueError(
                f"vision_feature_layer: expected one layer's output where tokens merge, "
                f"got {final_layer}"
            )
        require_mergeable(self.config, self.layers[: finals[0]])
        return finals[0]

    def can_merge(self, final_layer: int | Sequence[int]) -> bool:
        """Whether `require_mergeable` finds nothing."""
        try:
            self.require_mergeable(final_layer)
        except ValueError:
            return False
        return True

    def _store_state(self, intercepts: Intercepts, states: dict[int, Tensor], index: int) -> None:
        """Makes ``states[index]`` what ``hidden_states[index]`` of the tower is."""
        if index > 0:

            def store(output: Any) -> None:
                states[index] = output[0] if isinstance(output, tuple) else output

            intercepts.watch(self.layers[index - 1], store)
            return

        def run(original: Forward, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            states[0] = hidden_states
            return original(hidden_states, *args, **kwargs)

        intercepts.replace(self.layers[0], run)

    def _tap(self, intercepts: Intercepts, layer: int) -> LayerAttention:
        paths, num_heads = self._type.attention, self.num_heads
        return LayerAttention(intercepts, self.layers[layer], paths, num_heads)

    def _attention_fields(
        self, attention: LayerAttention, fields: Collection[str], dropped: int
    ) -> dict[str, Any]:
        """The fields that the attention of the final tokens' layer fills."""
        filled: dict[str, Any] = {}
        if "importance" in fields:
            filled["importance"] = attention.received("meanq")[:, dropped:]
        if "cls_attention" in fields and self._type.has_cls:
            filled["cls_attention"] = attention.received("cls")[:, dropped:]
        if "keys" in fields:
            filled["keys"] = attention.keys[:, dropped:]
            filled["num_heads"] = self.num_heads
        return filled

    def resolve_reference(self, layer: int | None, final_layer: int | Sequence[int]) -> int:
        """The index of the reference layer, see `resolve_reference`; layers as `encode` has them.

        Raises:
            ValueError: there is no such layer.
        """
        used = max(self._resolve(final_layer)) if layer is None else None
        return resolve_reference(layer, len(self.layers), used)

    def can_compute_rows(self, reference_layer: int, final_layer: int | Sequence[int]) -> bool:
        """Whether the last layer used can be computed for some rows alone.

        It takes one final layer, a reference layer before it, and a CLIP or SigLIP that is not
        training, whose attention would drop out, with a layer and attention that nobody changed.
        """
        if not self._type.rows or self.module.training:
            return False
        finals = self._resolve(final_layer)
        if len(finals) > 1 or reference_layer >= finals[0] - 1:
            return False
        layer: Any = self.layers[finals[0] - 1]
        return not is_changed(layer, hooks=False) and not is_changed(layer.self_attn)

    def _resolve(self, final_layer: int | Sequence[int]) -> list[int]:
        """Indices into hidden_states, counted from the front."""
        count = len(self.layers) + 1
        indices = [final_layer] if isinstance(final_layer, int) else final_layer
        for index in indices:
            if not -count <= index < count:
                raise ValueError(f"final_layer: expected {-count} to {count - 1}, got {index}")
        return [index % count for index in indices]

    def _rows_forward(self, layer: Any, row_ids: Callable[[], Tensor], dropped: int) -> Forward:
        """A layer's forward for the rows ``row_ids()`` alone, which it calls when it runs."""
        attention, num_heads = layer.self_attn, self.num_heads

        def forward(
            _original: Forward, hidden_states: Tensor, *_args: Any, **_kwargs: Any
        ) -> Tensor:
            rows = row_ids() + dropped
            normed = layer.layer_norm1(hidden_states)
            mixed = F.scaled_dot_product_attention(
                split_heads(attention.q_proj(gather_tokens(normed, rows)), num_heads),
                split_heads(attention.k_proj(normed), num_heads),
                split_heads(attention.v_proj(normed), num_heads),
            )
            mixed = attention.out_proj(mixed.transpose(1, 2).flatten(2))
            kept = gather_tokens(hidden_states, rows) + mixed
            return kept + layer.mlp(layer.layer_norm2(kept))

        return forward


def _read_pair(setting: Any) -> tuple[int, int]:
    """A setting of height and width, as one number or two."""
    high, wide = (setting, setting) if isinstance(setting, int) else setting
    return high, wide


def _config_of(module: nn.Module) -> Any:
    """A tower's config, which vLLM keeps one level deeper; None where there is none."""
    inner = getattr(module, "vision_model", None)
    return getattr(module, "config", getattr(inner, "config", None))


def count_prefix(config: Any) -> int:
    """Tokens before the patches of a tower of a known type, from its config."""
    return _TOWER_TYPES[config.model_type].count_prefix(config)


def resolve_reference(layer: int | None, depth: int, used: int | None = None) -> int:
    """The index of the reference layer.

    By default it is a third of the depth, the published 8 of 24, and 3 of 5 to 8 layers, where a
    third is too shallow to tell objects from their ground.

    Args:
        layer: the one asked for, None for the default.
        depth: layers of the tower.
        used: layers that the final tokens need, behind which 3 is not sought; all if None.

    Raises:
        ValueError: there is no such layer.
    """
    if layer is None:
        layer = depth // 3
        if depth > 4:
            layer = max(layer, min(3, (depth if used is None else used) - 1))
    if not 0 <= layer < depth:
        raise ValueError(f"reference_layer: expected 0 to {depth - 1}, got {layer}")
    return layer


def _pass_through(_original: Forward, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return hidden_states
