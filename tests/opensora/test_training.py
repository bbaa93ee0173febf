"""Training resumes where it stopped, writes whole files, and learns."""
import csv

import pytest
import torch
from torch import nn

from opensora.datasets.latents import LatentDataset, check_shards, write_shard
from opensora.datasets.shapes import sample_scene
from opensora.models.stdit.stdit3 import STDiT3, STDiT3Config
from opensora.models.text_encoder.new_t5 import new_t5
from opensora.models.vae.vae import OpenSoraVAE
from opensora.schedulers.rf.rectified_flow import RectifiedFlow
from opensora.training.crops import chunk_batch, frame_batch
from opensora.training.diffusion_objective import DiffusionObjective, LatentBatches, Stage
from opensora.training.loop import LoopConfig, TrainingRun
from opensora.training.optimizers import build_optimizers, learning_rate_factor
from opensora.training.vae_init import start_as_downscaler, start_temporal

SPATIAL = dict(
    in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=2, sample_size=32,
    block_out_channels=(8, 8, 16, 16),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)
TEMPORAL = dict(filters=16, num_res_blocks=1, channel_multipliers=(1, 1, 1, 1), num_groups=2)


class Line(nn.Module):
    """y = w x + b, to be fitted to y = 3x - 1."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return {"loss": (self.linear(x) - (3 * x - 1)).square().mean()}


def train_line(folder, steps, **options):
    torch.manual_seed(0)
    module = Line()
    config = LoopConfig(steps=steps, lr=0.05, warmup=1, dtype="fp32", log_every=5, ckpt_every=5, **options)
    run = TrainingRun(module, module, lambda index: torch.randn(16, 1), config, folder)
    run.run()
    return module


def test_the_loop_learns_a_line(tmp_path):
    module = train_line(tmp_path, 300)
    assert module.linear.weight.item() == pytest.approx(3, abs=0.05)
    assert module.linear.bias.item() == pytest.approx(-1, abs=0.05)


def test_a_stopped_and_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    unbroken = train_line(tmp_path / "a", 20, decay_fraction=0.0)
    train_line(tmp_path / "b", 10, decay_fraction=0.0)
    resumed = train_line(tmp_path / "b", 20, decay_fraction=0.0)
    for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    steps = [int(row["step"]) for row in csv.DictReader((tmp_path / "b" / "loss.csv").open())]
    assert steps == [5, 10, 15, 20]
    assert (tmp_path / "b" / "loss.png").stat().st_size > 0


def test_a_folder_that_is_further_than_asked_for_is_not_taken_for_the_result(tmp_path):
    train_line(tmp_path, 10)
    train_line(tmp_path, 10)  # done
    with pytest.raises(ValueError, match="steps=5, but .*checkpoint-10' is at step 10; allowed: as many or"):
        train_line(tmp_path, 5)


def test_a_resumed_run_learns_at_its_own_rate(tmp_path):
    first = train_line(tmp_path, 5, decay_fraction=0.0)
    module = Line()
    config = LoopConfig(steps=6, lr=0.0, warmup=0, weight_decay=0.0, decay_fraction=0.0, dtype="fp32")
    TrainingRun(module, module, lambda index: torch.randn(16, 1), config, tmp_path).run()
    assert torch.equal(module.linear.weight, first.linear.weight)


def test_a_checkpoint_of_the_earlier_format_goes_on_where_it_stopped(tmp_path):
    """One file, with which the embedded model was trained."""
    torch.manual_seed(0)
    module = Line()
    config = LoopConfig(steps=10, lr=0.05, warmup=1, dtype="fp32", decay_fraction=0.0)
    run = TrainingRun(module, module, lambda index: torch.randn(16, 1), config, tmp_path / "first")
    run.run()
    (tmp_path / "a").mkdir()
    torch.save({"step": 10, "module": module.state_dict(), "ema": run.ema.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in run.optimizers]},
               tmp_path / "a/checkpoint.pt")
    resumed = train_line(tmp_path / "a", 20, decay_fraction=0.0)
    unbroken = train_line(tmp_path / "b", 20, decay_fraction=0.0)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), unbroken.parameters(), strict=True))


def test_an_interrupted_run_saves_and_leaves_no_part_file(tmp_path):
    module = Line()

    def batches(index):
        if index == 7:
            raise KeyboardInterrupt
        return torch.randn(4, 1)

    config = LoopConfig(steps=20, lr=0.1, dtype="fp32")
    with pytest.raises(KeyboardInterrupt):
        TrainingRun(module, module, batches, config, tmp_path).run()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-7"]
    assert not list(tmp_path.glob("*.part"))


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path):
    module = Line()
    before = [p.clone() for p in module.parameters()]
    config = LoopConfig(steps=1, lr=0.1, dtype="fp32")
    TrainingRun(module, module, lambda i: torch.full((4, 1), float("inf")), config, tmp_path).run()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_the_learning_rate_rises_holds_and_falls():
    factors = [learning_rate_factor(s, steps=100, warmup=10, decay_fraction=0.5) for s in (0, 9, 50, 75, 99)]
    assert factors == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.02])


def test_muon_takes_the_matrices_of_blocks_and_nothing_else():
    model = STDiT3(STDiT3Config(depth=1, hidden_size=16, num_heads=2, caption_channels=8, model_max_length=4))
    adam, muon = build_optimizers(model, lr=1e-3, muon_lr=1e-3)
    inside = {id(p) for g in muon.param_groups for p in g["params"]}
    names = [n for n, p in model.named_parameters() if id(p) in inside]
    assert "spatial_blocks.0.attn.qkv.weight" in names
    assert not any("embedder" in n or "final" in n or "table" in n for n in names)
    total = sum(len(g["params"]) for o in (adam, muon) for g in o.param_groups)
    assert total == sum(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_a_new_autoencoder_starts_as_a_downscaler_that_keeps_colours_and_time():
    torch.manual_seed(0)
    vae = OpenSoraVAE(SPATIAL, TEMPORAL, micro_batch_size=None)
    start_as_downscaler(vae.spatial_vae.module)
    start_temporal(vae.temporal_vae)
    red = torch.zeros(1, 3, 17, 32, 32)
    red[:, 0, 8:, :, 16:] = 1.0  # from frame 8 on, the right half is red
    out = vae.decode(vae.encode(red, sample=False), 17)
    red_part, before = out[0, :, 12, :, 24].mean(1), out[0, :, 2, :, 24].mean(1)
    assert red_part[0] > red_part[1] + 0.1 and red_part[0] > red_part[2] + 0.1
    assert red_part[0] > before[0] + 0.1


def latent_folder(tmp_path, clips=6):
    texts = [sample_scene(i).caption for i in range(clips)]
    write_shard(tmp_path, 0, torch.arange(clips).view(-1, 1, 1, 1, 1).expand(-1, 4, 15, 4, 4).float(), texts)
    return texts


def test_cached_latents_come_back_with_their_captions(tmp_path):
    texts = latent_folder(tmp_path)
    dataset = LatentDataset(str(tmp_path))
    assert [dataset[i]["text"] for i in range(6)] == texts
    assert [float(dataset[i]["z"].mean()) for i in range(6)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(FileNotFoundError, match="cache_latents"):
        LatentDataset(str(tmp_path / "none"))


def test_shards_of_another_autoencoder_are_refused(tmp_path):
    write_shard(tmp_path, 0, torch.zeros(1, 4, 5, 2, 2), ["a"], made_with="one")
    check_shards(tmp_path, "one")
    with pytest.raises(ValueError, match="000000.safetensors was made with one, and this run has another"):
        check_shards(tmp_path, "another")


@pytest.mark.parametrize(("changes", "said"), [
    (dict(latent_frames=16), "latent_frames=16; allowed: 1 to 15"),
    (dict(until=100), "until=100 after 100; allowed: more"), (dict(batch=0), "batch=0; allowed: 1 or more"),
])
def test_a_later_stage_that_cannot_be_is_refused_at_the_start(tmp_path, changes, said):
    latent_folder(tmp_path)
    text_encoder = new_t5("shapes", 32, d_model=16, num_layers=1, num_heads=2, d_ff=16)
    stages = [Stage(until=100, latent_frames=5, num_frames=17, batch=2),
              Stage(**{**dict(until=200, latent_frames=15, num_frames=51, batch=2), **changes})]
    with pytest.raises(ValueError, match=said):
        LatentBatches(LatentDataset(str(tmp_path)), text_encoder, stages, 1, 32, 32, 24)


def test_crops_larger_than_a_clip_are_named():
    clips = [{"video": torch.zeros(3, 8, 32, 48)}]
    with pytest.raises(ValueError, match="batch.frames=17; allowed: up to 8"):
        chunk_batch(clips, 0, clips=1, frames=17, size=None)
    with pytest.raises(ValueError, match="batch.size=64; allowed: up to 32"):
        frame_batch(clips, 0, clips=1, frames=1, size=64)


def test_clips_can_be_chosen_by_their_captions(tmp_path):
    texts = latent_folder(tmp_path, clips=20)
    chosen = LatentDataset(str(tmp_path), captions="a .* moves")
    assert [item["text"] for item in map(chosen.__getitem__, range(len(chosen)))] == [
        text for text in texts if text.startswith("a ") and " moves" in text]
    assert 0 < len(chosen) < 20
    assert [float(chosen[i]["z"].mean()) for i in range(len(chosen))] == [
        float(i) for i, text in enumerate(texts) if text in chosen.texts]
    with pytest.raises(ValueError, match="dataset.captions='x' matches none"):
        LatentDataset(str(tmp_path), captions="x")


def test_every_clip_comes_once_an_epoch_whatever_the_number_of_ranks(tmp_path):
    latent_folder(tmp_path)
    text_encoder = new_t5("shapes", 32, d_model=16, num_layers=1, num_heads=2, d_ff=16)
    for ranks in (1, 3):
        stages = [Stage(until=100, latent_frames=5, num_frames=17, batch=2)]
        batches = LatentBatches(LatentDataset(str(tmp_path)), text_encoder, stages, ranks, 32, 32, 24)
        seen = [int(v) for index in range(3) for v in batches(index).z[:, 0, 0, 0, 0]]
        assert sorted(seen) == [0, 1, 2, 3, 4, 5]
        assert batches(0).z.shape == (2, 4, 5, 4, 4)


def test_the_objective_trains_transformer_and_text_encoder(tmp_path):
    latent_folder(tmp_path)
    torch.manual_seed(0)
    text_encoder = new_t5("shapes", 32, d_model=16, num_layers=1, num_heads=2, d_ff=16)
    model = STDiT3(STDiT3Config(depth=1, hidden_size=16, num_heads=2, caption_channels=16,
                                model_max_length=32))
    nn.init.normal_(model.final_layer.linear.weight, std=0.02)  # at zero, nothing before it has a gradient
    for layer in model.temporal_blocks[0].cross_attn, model.temporal_blocks[0].attn:
        nn.init.normal_(layer.proj.weight, std=0.02)
    objective = DiffusionObjective(model.train(), text_encoder, RectifiedFlow(use_timestep_transform=True),
                                   train_text_encoder=True, mask_ratios={"image_head": 1.0})
    stages = [Stage(until=9, latent_frames=15, num_frames=51, batch=3)]
    batch = LatentBatches(LatentDataset(str(tmp_path)), text_encoder, stages, 1, 32, 32, 24)(0)
    objective(batch)["loss"].backward()
    assert text_encoder.model.shared.weight.grad.abs().sum() > 0
    assert model.temporal_blocks[0].attn.qkv.weight.grad.abs().sum() > 0


def test_given_frames_stay_clean_and_do_not_count():
    x, noise = torch.ones(1, 1, 3, 2, 2), torch.zeros(1, 1, 3, 2, 2)
    seen = {}

    def model(x_t, t, x_mask):
        seen.update(x_t=x_t, x_mask=x_mask)
        return torch.tensor([9.0, 0.0, 0.0]).view(1, 1, 3, 1, 1).expand_as(x_t)

    mask = torch.tensor([[False, True, True]])
    loss = RectifiedFlow().training_losses(model, x, {}, noise=noise, mask=mask,
                                           t=torch.tensor([500.0]))["loss"]
    assert seen["x_t"][0, 0, :, 0, 0].tolist() == [1.0, 0.5, 0.5]
    assert loss.item() == pytest.approx(1.0)  # velocity x - noise = 1 against 0, frame 0 left out


def test_a_model_with_one_output_per_channel_trains_too():
    x = torch.ones(2, 4, 1, 2, 2)
    out = RectifiedFlow().training_losses(lambda x_t, t: torch.zeros_like(x_t), x, {},
                                          noise=torch.zeros_like(x))
    assert out["loss"].tolist() == [1.0, 1.0]


def test_recomputed_blocks_give_the_same_gradients():
    torch.manual_seed(0)
    sizes = dict(depth=1, hidden_size=16, num_heads=2, caption_channels=16, model_max_length=4)
    plain, thrifty = STDiT3(STDiT3Config(**sizes)), STDiT3(STDiT3Config(**sizes, grad_checkpoint=True))
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    thrifty.load_state_dict(plain.state_dict())
    z, size = torch.randn(1, 4, 5, 4, 4), torch.tensor([32.0])
    for model in (plain, thrifty):
        model.y_embedder.uncond_prob = 0.0
        model.train()(z, torch.tensor([500.0]), torch.ones(1, 1, 4, 16), fps=size, height=size, width=size
                      ).square().sum().backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert a.grad is None and b.grad is None or torch.allclose(a.grad, b.grad)


def test_the_average_of_an_objective_shares_the_frozen_text_encoder(tmp_path):
    text_encoder = new_t5("shapes", 32, d_model=16, num_layers=1, num_heads=2, d_ff=16)
    sizes = dict(depth=1, hidden_size=16, num_heads=2, caption_channels=16, model_max_length=32)
    model = STDiT3(STDiT3Config(**sizes))
    objective = DiffusionObjective(model, text_encoder, RectifiedFlow())
    run = TrainingRun(objective, objective, None, LoopConfig(steps=1, lr=0.1), tmp_path)
    assert run.ema.module.text is text_encoder and run.ema.module.model is not model


def test_a_step_that_was_interrupted_is_not_saved_half_done(tmp_path):
    module = Line()
    config = LoopConfig(steps=20, lr=0.1, dtype="fp32", ckpt_every=5)
    run = TrainingRun(module, module, lambda index: torch.randn(4, 1), config, tmp_path)
    step = run.optimizers[0].step

    def interrupted():
        step()
        if run.step == 7:
            raise KeyboardInterrupt

    run.optimizers[0].step = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint-5"]


def test_the_average_of_weights_is_the_exponential_one_and_survives_a_resume(tmp_path):
    def train(folder, steps):
        torch.manual_seed(0)
        module, seen = Line(), []
        config = LoopConfig(steps=steps, lr=0.05, warmup=1, dtype="fp32", decay_fraction=0.0, ema_decay=0.9)
        run = TrainingRun(module, module, lambda index: torch.randn(16, 1), config, folder)
        averaged = run.run(lambda row: seen.append(row))
        return module.linear.weight.item(), averaged.linear.weight.item()

    weights = [train(tmp_path / str(steps), steps)[0] for steps in (1, 2, 3)]
    _, average = train(tmp_path / "whole", 3)
    # the first update copies; then 0.9 of the average and 0.1 of the weights
    assert average == pytest.approx(0.9 * (0.9 * weights[0] + 0.1 * weights[1]) + 0.1 * weights[2])
    train(tmp_path / "parts", 1)
    assert train(tmp_path / "parts", 3)[1] == average


def test_a_large_gradient_is_clipped(tmp_path):
    """The first step of AdamW hides a gradient's length, so the gradient itself is looked at."""
    module, config = Line(), LoopConfig(steps=1, lr=0.1, dtype="fp32", grad_clip=0.5)
    run = TrainingRun(module, module, lambda index: torch.full((4, 1), 100.0), config, tmp_path)
    lengths = []
    run.optimizers[0].register_step_pre_hook(lambda *_: lengths.append(
        torch.cat([p.grad.flatten() for p in module.parameters()]).norm().item()))
    losses = run.train_step()
    assert losses["grad_norm"] > 100 and lengths == pytest.approx([0.5])


def test_bf16_is_where_the_products_are_and_weights_stay_fp32(tmp_path):
    seen = []

    class Watched(Line):
        def forward(self, x):
            seen.append(self.linear(x).dtype)
            return super().forward(x)

    module = Watched()
    TrainingRun(module, module, lambda i: torch.randn(4, 1), LoopConfig(steps=1, lr=0.1), tmp_path).run()
    assert seen == [torch.bfloat16] and module.linear.weight.dtype == torch.float32
