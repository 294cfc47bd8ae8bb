from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ocvtp_kernels import OCPruner
from ocvtp_kernels.training import AreaWeightedMSE, OCAutoencoder
from ocvtp_kernels.training.config import TrainConfig
from ocvtp_kernels.training.data import keyed_generator
from ocvtp_kernels.training.folder import RunFolder
from ocvtp_kernels.training.log import read_log
from ocvtp_kernels.training.loop import Diverged, Trainer
from ocvtp_kernels.training.run import train
from ocvtp_kernels.training.start import start_as_kmeans
from tests.cases import random_tokens
from tests.training.cases import tiny_config
from tests.training.runs import features, write_features

SETTINGS = {"epochs": 3, "batch_size": 4, "slots": (2, 3), "warmup_epochs": 1}


def short_run(tmp_path: Path, name: str = "run", **changes: object) -> Trainer:
    folder = features(write_features(tmp_path / "features"))
    config = TrainConfig(**{**SETTINGS, **changes})  # type: ignore[arg-type]
    return train(folder, tmp_path / name, config, tiny_config(), command="ocvtp train --well")


def test_leaves_what_it_promises(tmp_path: Path) -> None:
    trainer = short_run(tmp_path)
    output = tmp_path / "run"
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md",
        "best.safetensors",
        "checkpoints",
        "health.csv",
        "log.csv",
        "loss.png",
        "pruner.safetensors",
        "run.json",
    ]
    rows = read_log(output / "log.csv")
    assert [row.step for row in rows] == list(range(1, trainer.total + 1))
    assert {row.num_slots for row in rows} == {2, 3}
    steps = trainer.split.steps
    assert [row.step for row in rows if row.val_loss is not None] == [steps, 2 * steps, 3 * steps]
    assert min(row.val_loss for row in rows if row.val_loss is not None) == pytest.approx(
        trainer.best, rel=1e-8
    )
    pruner = OCPruner.from_checkpoint(output / "pruner.safetensors")
    assert pruner.config == tiny_config()
    whole = OCAutoencoder.from_checkpoint(output / "best.safetensors").state_dict()
    assert all(torch.equal(whole[key], value) for key, value in pruner.state_dict().items())
    card = (output / "README.md").read_text()
    for text in ("ocvtp train --well", "made up", f"{trainer.best:.6g}", torch.__version__):
        assert text in card


def test_validation_is_on_images_not_trained_on(tmp_path: Path) -> None:
    trainer = short_run(tmp_path, epochs=1)
    seen = {image for step in range(trainer.total) for image in trainer.split.batch(step)}
    assert seen <= set(trainer.split.train)
    assert not seen & set(trainer.split.val) and trainer.split.val


def test_validation_is_the_mean_over_its_images_and_slots(tmp_path: Path) -> None:
    trainer = short_run(tmp_path, epochs=1, target_scale=2.0)
    images = trainer.split.val
    assert len(images) <= trainer.split.batch_size
    tokens = torch.stack([trainer.features[image] for image in images]).float()
    losses = []
    for num_slots in (2, 3):
        generator = keyed_generator(0, "validation", 0, num_slots)
        draws = trainer.model.draw(len(images), num_slots, generator)
        with torch.no_grad():
            out = trainer.model.eval()(tokens, noise=draws.noise, visible=draws.visible)
        losses.append(AreaWeightedMSE()(out.reconstruction, 2 * tokens, out.attention).item())
    assert trainer._validate() == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_validation_draws_alike_whenever_it_is_asked(tmp_path: Path) -> None:
    trainer = short_run(tmp_path)
    before = torch.get_rng_state()
    first = trainer._validate()
    assert first == trainer._validate()
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_does_not_touch_torch_own_generator(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    short_run(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_a_step_is_the_update_by_hand(tmp_path: Path) -> None:
    folder = features(write_features(tmp_path / "features"))
    changes = {"epochs": 1, "start_lr": 1e-3, "target_scale": 2.0, "encode_lr": 0.5}
    config = TrainConfig(**{**SETTINGS, **changes})  # type: ignore[arg-type]
    trainer = Trainer(folder, RunFolder(tmp_path / "run"), config, tiny_config())
    model = OCAutoencoder(tiny_config())
    model.load_state_dict(trainer.model.state_dict())
    images = trainer.split.batch(0)
    tokens = torch.stack([folder[image] for image in images])
    trainer.began = 0.0
    trainer.trained.train()
    trainer._train_step(tokens)
    num_slots = trainer.rows[0][1]

    encode = list(model.encode_project.parameters())
    others = [p for p in model.parameters() if all(p is not own for own in encode)]
    groups = [{"params": encode, "lr": 5e-4}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01)
    generator = keyed_generator(0, "step", 0)
    torch.randint(2, (), generator=generator)
    out = model(tokens.float(), **model.draw(4, num_slots, generator)._asdict())
    loss = AreaWeightedMSE()(out.reconstruction, 2 * tokens.float(), out.attention)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert trainer.losses[0].item() == pytest.approx(loss.item(), rel=1e-6)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_what_has_no_share_of_the_learning_rate_stays(tmp_path: Path) -> None:
    trainer = short_run(tmp_path, slots_lr=0.0, encode_lr=0.0, start="kmeans")
    fresh = Trainer(
        trainer.features,
        RunFolder(tmp_path / "fresh"),
        trainer.config,
        tiny_config(),
    ).model.state_dict()
    for name, value in trainer.model.state_dict().items():
        is_pruner = not name.startswith("decode.")
        assert torch.equal(value, fresh[name]) == is_pruner, name


def test_started_as_kmeans_slots_become_the_mean_of_what_they_own() -> None:
    model = OCAutoencoder(tiny_config())
    start_as_kmeans(model)
    slots, dim = model.aggregat, 4
    tokens, init = random_tokens(2, 5, dim), random_tokens(2, 3, dim, seed=1)

    def normed(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (dim,))

    new, logits = slots(tokens, init)
    state = init
    for _ in range(slots.num_iter):
        cosine = torch.nn.functional.cosine_similarity(
            normed(state)[:, :, None], normed(tokens)[:, None], dim=-1
        )
        share = (32 * cosine).softmax(dim=1)
        mean = share @ normed(tokens) / (share.sum(-1, keepdim=True) + 1e-5)
        update = torch.sigmoid(torch.tensor(-3.0))
        state = (1 - update) * torch.tanh(0.4 * mean) + update * state
    torch.testing.assert_close(logits.softmax(dim=1), share, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(new, state, rtol=1e-3, atol=1e-4)


def test_stops_early(tmp_path: Path) -> None:
    # Steps too small to change a float32 loss by much, and then none.
    trainer = short_run(tmp_path, epochs=40, lr=1e-30, start_lr=0.0, end_lr=0.0, patience=2)
    assert trainer.step == 3 * trainer.split.steps and trainer.best_epoch == 1


def test_learning_rate() -> None:
    config = TrainConfig()
    assert config.lr_at(0, 100) == 1e-6
    assert config.lr_at(200, 100) == pytest.approx((1e-6 + 1e-3) / 2)
    assert config.lr_at(400, 100) == 1e-3
    assert config.lr_at(2999, 100) == pytest.approx(1e-8)
    middle = 400 + 2599 / 2
    assert config.lr_at(round(middle), 100) == pytest.approx(5e-4, rel=1e-2)
    short = TrainConfig(epochs=2)
    assert short.lr_at(10, 10) == 1e-3 and short.lr_at(19, 10) == pytest.approx(1e-8)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"^step \d+: expected a finite loss"):
        short_run(tmp_path, lr=1e30, epochs=6)


@pytest.mark.parametrize("power_p", [0.0, 1.0])
def test_other_losses(tmp_path: Path, power_p: float) -> None:
    trainer = short_run(tmp_path, power_p=power_p, epochs=1)
    assert math.isfinite(trainer.best) and trainer.loss.power_p == power_p


def test_bfloat16(tmp_path: Path) -> None:
    trainer = short_run(tmp_path, mixed_precision="bf16")
    assert math.isfinite(trainer.best)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_going_on_with_other_settings_is_refused(tmp_path: Path) -> None:
    short_run(tmp_path)
    with pytest.raises(ValueError, match=r"^output: .*\(lr 0\.001 there, 0\.01 now"):
        short_run(tmp_path, lr=1e-2)
    finished = short_run(tmp_path, checkpoint_every=7)
    assert finished.step == finished.total


def test_going_on_with_other_features_is_refused(tmp_path: Path) -> None:
    short_run(tmp_path)
    write_features(tmp_path / "features", count=25)
    config = TrainConfig(**SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other features"):
        train(features(tmp_path / "features"), tmp_path / "run", config, tiny_config())


def test_fresh_begins_anew(tmp_path: Path) -> None:
    short_run(tmp_path, lr=1e-2)
    folder = features(tmp_path / "features")
    config = TrainConfig(**SETTINGS)  # type: ignore[arg-type]
    train(folder, tmp_path / "run", config, tiny_config(), is_fresh=True)
    short_run(tmp_path, "other")
    for name in ("best.safetensors", "pruner.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"^output: expected an empty folder"):
        short_run(tmp_path)
    assert (tmp_path / "run" / "README.md").read_text() == "mine"
