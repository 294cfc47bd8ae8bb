"""The training loop: one process or several, on the CPU or on GPUs; resuming is bitwise exact."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor
from tqdm import tqdm

from ocvtp_kernels.pruner.checkpoint import check_state
from ocvtp_kernels.pruner.config import PrunerConfig
from ocvtp_kernels.training import checkpoints
from ocvtp_kernels.training.autoencoder import Draws, OCAutoencoder, Reconstructed
from ocvtp_kernels.training.config import SHARES, TrainConfig
from ocvtp_kernels.training.data import (
    Split,
    estimate_place_mean,
    keyed_generator,
    keyed_seed,
    prefetch,
)
from ocvtp_kernels.training.features import FeatureFolder
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.health import (
    FEW_DISTINCT,
    HEADER,
    Health,
    read_health,
    slot_figures,
)
from ocvtp_kernels.training.log import Log, Row
from ocvtp_kernels.training.start import start_as_kmeans

# Images, or a row an image.
Rows = TypeVar("Rows", list[int], Tensor)
# Losses are read from the device every so many steps, so that no step synchronizes.
STEPS_TO_LOG = 20


class Diverged(RuntimeError):
    """The loss is not finite any more."""


class Trainer:
    """A training run in a folder, see `TrainConfig`.

    Random numbers are drawn on the CPU for the whole batch of all processes, by generators keyed by
    seed and step: results do not depend on the number of processes (except for dropout, keyed by
    process too), and a checkpoint needs no generator state.

    Validation is the training objective on held-out images, with the same masks and noise in every
    epoch and without dropout. Without masks the decoder could copy its input. Beside the loss it
    tells of every K whether its slots are of use (`Health`), and warns where they are not.

    Where the pruner has a place mean, it is that of the training split, from the first step on.

    Args:
        features: the tokens to train on.
        folder: of the run.
        config: its settings.
        pruner: what is trained.
        is_fresh: begin anew, and remove what the folder has of an earlier run.

    Raises:
        FileNotFoundError: a shard of the features is missing.
        ValueError: a shard is not what the manifest says; the folder has a run of other settings or
            features, or a damaged one, or is not of a run; there are fewer images in a batch than
            processes.
    """

    def __init__(
        self,
        features: FeatureFolder,
        folder: RunFolder,
        config: TrainConfig,
        pruner: PrunerConfig,
        *,
        is_fresh: bool = False,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=config.mixed_precision
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.features, self.folder, self.config, self.pruner = features, folder, config, pruner
        self.split = Split(features, config.batch_size, config.seed, config.limit)
        if self.split.batch_size < self.world:
            raise ValueError(
                f"batch_size: expected an image for each of {self.world} processes, got "
                f"{self.split.batch_size}"
            )
        self.loss = config.loss()
        self.identity = {
            "train": config.as_json(),
            "pruner": json.loads(pruner.to_json()),
            "data": self.split.identity(features),
        }
        self.on_main_process(features.verify)
        self.on_main_process(lambda: folder.prepare(self.identity, is_fresh))
        self._build()
        self._restore()

    @property
    def total(self) -> int:
        """Steps of the whole run, if it does not end early."""
        return self.config.epochs * self.split.steps

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self.total or self.bad_epochs >= self.config.patience

    def run(self) -> None:
        """Trains to the end, and leaves the best weights in ``best.safetensors``.

        Raises:
            Diverged: the loss is not finite; the last checkpoint stays.
        """
        self.began = time.monotonic() - self.seconds
        with tqdm(
            total=self.total,
            initial=self.step,
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            while not self.is_finished:
                self._train_epoch(bar)
                val_loss = self._validate()
                self._log(val_loss)
                self._log_health(bar)
                self._update_best(val_loss)
                self._checkpoint()
                bar.set_postfix(validation=f"{val_loss:.4g}", best=f"{self.best:.4g}")
        self.accelerator.wait_for_everyone()

    def on_main_process(self, work: Callable[[], object]) -> None:
        """Does something on the main process while the others wait.

        Raises:
            Exception: the work's, on every process, so that none waits for one that has ended.
        """
        from accelerate.utils import broadcast_object_list

        outcome: list[Exception | None] = [None]
        if self.accelerator.is_main_process:
            try:
                work()
            except Exception as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if outcome[0] is not None:
            raise outcome[0]

    def _build(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(self.config.seed, "weights"))
            self.model = OCAutoencoder(self.pruner)
        if self.config.start == "kmeans":
            start_as_kmeans(self.model)
        self.model.to(self.accelerator.device)
        self.named = dict(self.model.named_parameters())
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in self.named.items():
            key = SHARES.get(name.split(".")[0])
            share = 1.0 if key is None else getattr(self.config, key)
            groups.setdefault(share, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": owned, "share": share} for share, owned in groups.items()],
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
        )

    def _restore(self) -> None:
        self.step, self.bad_epochs, self.seconds = 0, 0, 0.0
        self.best, self.best_epoch, log_size, health_size = float("inf"), 0, 0, 0
        snapshot = checkpoints.load_snapshot(self.folder.checkpoints, self._check_snapshot)
        if snapshot is not None:
            state = snapshot.state
            self.model.load_state_dict(snapshot.model)
            checkpoints.restore_optimizer(self.optimizer, self.named, snapshot.optimizer)
            self.step, self.bad_epochs = state["step"], state["bad_epochs"]
            self.seconds = state["seconds"]
            log_size, health_size = state["log_bytes"], state["health_bytes"]
            if state["best_epoch"]:
                self.best, self.best_epoch = state["best"], state["best_epoch"]
        elif self.pruner.enc_place_mean:
            self.on_main_process(self._set_place_mean)
        self.accelerator.wait_for_everyone()
        self.rows: list[tuple[int, int, float, float]] = []
        self.losses: list[Tensor] = []
        self.health: list[Health] = []
        self._warned: set[int] = set()
        self.on_main_process(lambda: self._restore_files(log_size, health_size))
        # After the weights are in: distributed training copies those of the first process, and its
        # place mean.
        self.trained, self.stepper = self.accelerator.prepare(self.model, self.optimizer)

    def _check_snapshot(self, snapshot: checkpoints.Snapshot) -> None:
        """Raises ValueError unless a snapshot is of this model."""
        check_state(snapshot.model, self.model.state_dict())
        checkpoints.check_optimizer(self.named, snapshot.optimizer)

    def _set_place_mean(self) -> None:
        mean = estimate_place_mean(self.features, self.split.train)
        self.model.place_mean.copy_(mean)  # type: ignore[union-attr]

    def _restore_files(self, log_size: int, health_size: int) -> None:
        checkpoints.sweep(self.folder.checkpoints, self.step)
        self.log = Log(self.folder.log, log_size)
        self.health_log = Log(self.folder.health, health_size, HEADER, read_health)

    def _local(self, images: Rows) -> Rows:
        """This process' rows of a batch."""
        return images[self.rank :: self.world]

    def _local_draws(self, draws: Draws) -> dict[str, Tensor]:
        return {name: self._local(draw) for name, draw in draws._asdict().items()}

    def _losses(self, out: Reconstructed, tokens: Tensor) -> Tensor:
        """The loss of each image, in float32."""
        target = self.config.target_scale * tokens
        return cast(Tensor, self.loss(out.reconstruction.float(), target, out.attention.float()))

    def _train_epoch(self, bar: tqdm) -> None:
        end = (self.step // self.split.steps + 1) * self.split.steps
        self.trained.train()
        images = (self._local(self.split.batch(step)) for step in range(self.step, end))
        for tokens in prefetch(self.features, images):
            self._train_step(tokens)
            bar.update()
            if len(self.losses) >= STEPS_TO_LOG and self.step < end:
                self._log()
            if self.step % self.config.checkpoint_every == 0 and self.step < end:
                self._log()
                self._checkpoint()

    def _train_step(self, tokens: Tensor) -> None:
        config, seed, step = self.config, self.config.seed, self.step
        generator = keyed_generator(seed, "step", step)
        drawn = torch.randint(len(config.slots), (), generator=generator, device="cpu")
        num_slots = config.slots[int(drawn)]
        draws = self.model.draw(self.split.batch_size, num_slots, generator)
        lr = config.lr_at(step, self.split.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        tokens = self._to_device(tokens)
        devices = [tokens.device] if tokens.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(keyed_seed(seed, "dropout", step, self.rank))
            out = self.trained(tokens, **self._local_draws(draws))
            loss = self._losses(out, tokens).sum() / self.split.batch_size
            # Gradients are averaged over processes, whose shares of the batch may differ.
            self.accelerator.backward(loss * self.world)
        self.accelerator.clip_grad_norm_(self.trained.parameters(), config.grad_clip)
        self.stepper.step()
        self.stepper.zero_grad()
        self.step += 1
        self.losses.append(loss.detach())
        self.rows.append((self.step, num_slots, lr, time.monotonic() - self.began))

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss over the validation split and over all K; ``health`` gets the rest by K."""
        self.model.eval()
        size, images = self.split.batch_size, self.split.val
        batches = [images[first : first + size] for first in range(0, len(images), size)]
        device, counts = self.accelerator.device, self.config.slots
        total = torch.zeros(len(batches), dtype=torch.float64, device=device)
        # Sums over images, of what `Health` has of a K.
        figures = torch.zeros(len(counts), 5, dtype=torch.float64, device=device)
        owned = [batch for batch in batches if len(batch) > self.rank]
        for index, tokens in enumerate(prefetch(self.features, map(self._local, owned))):
            tokens = self._to_device(tokens)
            for place, num_slots in enumerate(counts):
                generator = keyed_generator(self.config.seed, "validation", index, num_slots)
                draws = self._local_draws(self.model.draw(len(owned[index]), num_slots, generator))
                with self.accelerator.autocast():
                    out = self.model(tokens, **draws)
                    zeroed = self._without_slots(out, tokens, draws["visible"])
                loss = self._losses(out, tokens).double()
                total[index] += loss.sum()
                rest = slot_figures(out.attention.float(), self.features.grid)
                losses = torch.stack([loss, self._losses(zeroed, tokens).double()], dim=1)
                figures[place] += torch.cat([losses, rest], dim=1).sum(dim=0)
        summed: Tensor = self.accelerator.reduce(total, "sum")
        means: Tensor = self.accelerator.reduce(figures, "sum") / len(images)
        epoch = self.step // self.split.steps
        # By K, as one may be among them twice.
        by_count = dict(zip(counts, means.tolist(), strict=True))
        self.health = [Health(epoch, count, *row) for count, row in by_count.items()]
        return summed.sum().item() / (len(images) * len(counts))

    def _without_slots(self, out: Reconstructed, tokens: Tensor, visible: Tensor) -> Reconstructed:
        """The same, decoded from slots of zeros. One is enough, as all would be alike."""
        zeros = torch.zeros_like(out.slots[:, :1])
        reconstruction, _ = self.model.decode(tokens, zeros, visible.to(tokens.device))
        return out._replace(reconstruction=reconstruction)

    def _update_best(self, val_loss: float) -> None:
        if val_loss < self.best:
            self.best, self.best_epoch = val_loss, self.step // self.split.steps
            self.bad_epochs = 0
            if self.accelerator.is_main_process:
                self.model.save_checkpoint(self.folder.best)
        else:
            self.bad_epochs += 1

    def _log(self, val_loss: float | None = None) -> None:
        """Writes the pending rows; the last one gets the validation loss, if given."""
        if not self.losses:
            return
        losses = self.accelerator.reduce(torch.stack(self.losses), "sum").tolist()
        rows = [
            Row(step, (step - 1) // self.split.steps + 1, num_slots, loss, lr, None, seconds)
            for (step, num_slots, lr, seconds), loss in zip(self.rows, losses, strict=True)
        ]
        rows[-1] = rows[-1]._replace(val_loss=val_loss)
        for row in rows:
            if not all(map(torch.isfinite, torch.tensor([row.loss, row.val_loss or 0.0]))):
                raise Diverged(f"step {row.step}: expected a finite loss, got {row.loss}")
        if self.accelerator.is_main_process:
            self.log.append(rows)
        self.losses, self.rows = [], []

    def _log_health(self, bar: tqdm) -> None:
        """Writes and prints what the last validation told, and warns once of a K that collapsed."""
        if not self.accelerator.is_main_process:
            return
        self.health_log.append(self.health)
        for row in self.health:
            bar.write(str(row), file=sys.stderr)
            if row.distinct < FEW_DISTINCT and row.num_slots not in self._warned:
                self._warned.add(row.num_slots)
                warnings.warn(
                    f"{self.folder.health}: epoch {row.epoch}: K {row.num_slots}: expected slots"
                    f" that pick at least {FEW_DISTINCT} K distinct tokens, got {row.distinct:.2f}"
                    " K; try a lower slots_lr and encode_lr, or the start kmeans",
                    stacklevel=2,
                )

    def _checkpoint(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            **self.identity,
            "step": self.step,
            "best": self.best if self.best_epoch else None,
            "best_epoch": self.best_epoch,
            "bad_epochs": self.bad_epochs,
            "log_bytes": self.log.size,
            "health_bytes": self.health_log.size,
            "seconds": time.monotonic() - self.began,
        }
        tensors = checkpoints.optimizer_tensors(self.optimizer, self.named)
        snapshot = checkpoints.Snapshot(self.model.state_dict(), tensors, state)
        checkpoints.save_snapshot(self.folder.checkpoints, self.step, snapshot)

    def _to_device(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.accelerator.device, non_blocking=True).float()
