"""From prompts to pixels: text -> captions; noise and references -> latents -> denoised latents -> video.

Legend: B videos of a batch, C latent channels, T latent frames, h x w latent pixels, F frames, H x W pixels.
"""
from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import opensora.models  # noqa: F401  registers the models
import opensora.schedulers  # noqa: F401  registers the samplers
from opensora.datasets.references import collect_references_batch
from opensora.models.layers.attention import check_backend_fits
from opensora.models.layers.token_split import TokenRanks, TokenSplit
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.models.vae.vae import OpenSoraVAE
from opensora.parallel import ALONE, Mesh, group_size
from opensora.registry import MODELS, SCHEDULERS, build_module
from opensora.schedulers.rf import RFLOW
from opensora.schedulers.rf.rectified_flow import RectifiedFlow
from opensora.utils.config import check_keys
from opensora.utils.inference_config import DTYPES, InferenceConfig
from opensora.utils.mask_strategy import append_generated, apply_mask_strategy, mask_or_none
from opensora.utils.resolution_info import prepare_multi_resolution_info
from opensora.utils.sample_request import SampleRequest
from opensora.utils.stopwatch import Stopwatch
from opensora.utils.weights import local_path

logger = logging.getLogger(__name__)

SamplingContext = Callable[[nn.Module, int], AbstractContextManager[Any]]  # (transformer, number of steps)


@dataclass(frozen=True)
class DenoisingRun:
    """What `sampling_context` gave for a run, and which of the run's videos is meant."""

    context: Any
    row: int


@dataclass(frozen=True)
class Sample:
    """video: [3, F, H, W], about -1 to 1 (not clamped), fp32, on the CPU.  runs: one per clip.

    seconds: this sample's share of its batch's time, by stage (text, denoise, decode) and in total.
    """

    video: Tensor
    runs: list[DenoisingRun]
    seconds: dict[str, float]


class Pipeline:
    """The models of a config, on one device, and the way through them.

    mesh: ranks that make the same videos do so together, each with all models: tokens and rows are shared in
    denoising, frames in decoding, and what comes out is the same on all.
    """

    def __init__(self, config: InferenceConfig, scheduler: RFLOW, model: nn.Module, vae: OpenSoraVAE,
                 text_encoder: T5Encoder, mesh: Mesh = ALONE) -> None:
        self.config, self.scheduler, self.device = config, scheduler, config.torch_device
        self.model, self.vae, self.text_encoder = model, vae, text_encoder
        self.mesh = mesh
        self.latent_size = vae.get_latent_size((config.clip_frames, *config.size))  # (T, h, w)
        check_mesh(config, mesh)
        if self.token_ranks is not None:
            T, h, w = model.patch_grid(self.latent_size)
            TokenSplit.of(T, h * w, model.config.num_heads, self.token_ranks)  # raises where it cannot be
        text_encoder.y_embedder = model.y_embedder
        if not config.offload:
            for part in (model, vae, text_encoder):
                part.to(self.device)

    @classmethod
    def load(cls, config: InferenceConfig,
             check: Callable[[nn.Module, int], object] = lambda model, num_steps: None,
             mesh: Mesh = ALONE) -> Pipeline:
        """Build what the config names.

        check: called with transformer and number of steps, before the larger text encoder is loaded.

        Raises ValueError, FileNotFoundError or ImportError for keys, weights and packages that are not there,
        and for models that do not fit one another, or the mesh.
        """
        check_modules(config)
        scheduler = build_module(config.scheduler, SCHEDULERS)
        model = build_module(config.model, MODELS).to(config.torch_dtype).eval()
        check_backend_fits(model.config.attention_backend, config.torch_device, config.torch_dtype)
        check(model, scheduler.num_sampling_steps)
        if config.compile:
            model.compile_blocks()
        vae = build_module(config.vae, MODELS).to(config.torch_dtype).eval()
        text_encoder = build_module(_text_encoder_config(config, mesh), MODELS)
        if isinstance(text_encoder, T5Encoder) and text_encoder.ranks is not None:
            mesh.keepers.append(text_encoder)
        check_fit(model, vae, text_encoder)
        return cls(config, scheduler, model, vae, text_encoder, mesh)

    @torch.no_grad()
    def generate(
        self, requests: Sequence[SampleRequest],
        sampling_context: SamplingContext = lambda model, num_steps: nullcontext(),
        progress: Callable[[int, int, Any], None] = lambda step, steps, context: None,
    ) -> list[Sample]:
        """One sample per request, made as a batch.

        sampling_context: entered around every denoising run.  progress: called after each step with the step,
        the number of steps, and what `sampling_context` gave.
        """
        stopwatch = Stopwatch(self.device)
        with stopwatch("total"):
            with stopwatch("text"), self.in_use(self.text_encoder):
                captions = self.encode_texts(requests)
            with self.in_use(self.vae):
                references = self.encode_references(requests)
            strategies = [request.mask_strategy for request in requests]
            clips: list[Tensor] = []
            runs: list[list[DenoisingRun]] = []
            for clip in range(self.config.loop):
                if clip > 0:
                    with self.in_use(self.vae):
                        references, strategies = self.continue_clip(
                            clips[-1], requests, references, strategies, clip)
                    clips[-1] = clips[-1].cpu()
                z, mask = self.start_clip(requests, references, strategies, clip)
                with self.in_use(self.model), stopwatch("denoise"):
                    z, run = self.denoise(z, captions[clip], mask, requests, clip, sampling_context, progress)
                with stopwatch("decode"), self.in_use(self.vae):
                    clips.append(self.vae.decode(z.to(self.vae.dtype), self.config.clip_frames,
                                                 self.mesh.video))
                runs.append(run)
            overlap = self.config.overlap_frames if len(clips) > 1 else 0
            parts = [clip[:, :, overlap if i else 0 :].cpu().float() for i, clip in enumerate(clips)]
            videos = torch.cat(parts, dim=2)
        seconds = {stage: value / len(requests) for stage, value in stopwatch.seconds.items()}
        runs_by_video = zip(*runs, strict=True)
        return [Sample(video, list(own), seconds) for video, own in zip(videos, runs_by_video, strict=True)]

    def encode_texts(self, requests: Sequence[SampleRequest]) -> list[tuple[Tensor, Tensor]]:
        """Per clip: embeddings [2B, 1, L, C_text], conditional rows first, then null ones; mask [B, L]."""
        encoded: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}  # clips mostly share their texts
        clips = list(zip(*(request.texts for request in requests), strict=True))
        for texts in clips:
            if texts not in encoded:
                text = self.text_encoder.encode(list(texts))
                null = self.text_encoder.null(len(texts)).to(self.device)
                encoded[texts] = torch.cat([text["y"], null]), text["mask"]
        return [encoded[texts] for texts in clips]

    def encode_references(self, requests: Sequence[SampleRequest]) -> list[list[Tensor]]:
        """Per request its references as latents [C, T_ref, h, w]."""
        references = []
        for request in requests:
            with self.seeded(request.random_seed(0, "reference")):
                references += collect_references_batch([request.reference_path], self.vae, self.config.size)
        return references

    def continue_clip(
        self, last: Tensor, requests: Sequence[SampleRequest], references: list[list[Tensor]],
        strategies: list[str], clip: int,
    ) -> tuple[list[list[Tensor]], list[str]]:
        """References and strategies of a clip that goes on where `last` [B, 3, F, H, W] ended."""
        continued = []
        for row, request in enumerate(requests):
            with self.seeded(request.random_seed(clip, "continue")):
                (own,), (strategy,) = append_generated(
                    self.vae, last[row : row + 1], [references[row]], [strategies[row]], clip,
                    self.config.condition_frame_length, self.config.condition_frame_edit)
            continued.append((own, strategy))
        return [own for own, _ in continued], [strategy for _, strategy in continued]

    def first_clip(
        self, requests: Sequence[SampleRequest],
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """What `denoise` takes of the first clip: z, captions, mask."""
        with self.in_use(self.text_encoder):
            captions = self.encode_texts(requests)[0]
        with self.in_use(self.vae):
            references = self.encode_references(requests)
        z, mask = self.start_clip(requests, references, [each.mask_strategy for each in requests], clip=0)
        return z, captions, mask

    def start_clip(self, requests: Sequence[SampleRequest], references: list[list[Tensor]],
                   strategies: list[str], clip: int) -> tuple[Tensor, Tensor | None]:
        """Noise with the given frames in it, [B, C, T, h, w], and the frame mask, [B, T]; None: none given.

        A frame that an edit ratio of 1 leaves free is noise like any other.
        """
        noise = self.noise(requests, clip)
        z = noise.clone()
        mask = apply_mask_strategy(z, references, strategies, clip, self.config.align)
        if mask is not None:
            z = torch.where((mask == 1)[:, None, :, None, None], noise, z)
        return z, mask_or_none(mask)

    def noise(self, requests: Sequence[SampleRequest], clip: int) -> Tensor:
        """[B, C, T, h, w], fp32.  Drawn on the CPU, each sample by its own seed: the same in every batch."""
        draws = [
            torch.randn(self.vae.out_channels, *self.latent_size,
                        generator=torch.Generator().manual_seed(request.random_seed(clip, "noise")))
            for request in requests
        ]
        return torch.stack(draws).to(self.device)

    def denoise(
        self, z: Tensor, captions: tuple[Tensor, Tensor], mask: Tensor | None,
        requests: Sequence[SampleRequest], clip: int, sampling_context: SamplingContext,
        progress: Callable[[int, int, Any], None],
    ) -> tuple[Tensor, list[DenoisingRun]]:
        """z: noise and given frames [B, C, T, h, w].  mask: [B, T].  Returns latents, each video's run."""
        y, y_mask = captions
        rows = len(z)
        # a frame that joins midway is noised with a fresh draw: alone, so that it is the same in every batch
        alone = mask is not None and bool(((mask > 0) & (mask < 1)).any())
        latents, runs = [], []
        for group in torch.arange(rows, device=self.device).split(1 if alone else rows):
            sizes = prepare_multi_resolution_info(
                self.config.multi_resolution, len(group), self.config.size, self.config.clip_frames,
                self.config.fps, self.device, torch.float32)  # bf16 would round 854 pixels to 856
            with self.seeded(requests[int(group[0])].random_seed(clip, "joining")), self.sharing_tokens(), \
                    sampling_context(self.model, self.scheduler.num_sampling_steps) as context:
                both = torch.cat([group, group + rows])  # conditional and null captions
                latents.append(self.scheduler.denoise(
                    self.model, z[group], y[both], y_mask[group], self.device, sizes,
                    None if mask is None else mask[group], self.scheduler.cfg_scale,
                    lambda step, steps, context=context: progress(step, steps, context), self.mesh.cfg))
            runs += [DenoisingRun(context, row) for row in range(len(group))]
        return torch.cat(latents), runs

    @contextmanager
    def in_use(self, part: nn.Module | T5Encoder) -> Iterator[None]:
        """With `offload`, a model is on the device only as long as it is used."""
        if self.config.offload:
            part.to(self.device)
        try:
            yield
        finally:
            if self.config.offload:
                part.to("cpu")

    @property
    def token_ranks(self) -> TokenRanks | None:
        return None if self.mesh.sp is None else TokenRanks(self.mesh.sp, self.config.sp_attention)

    @contextmanager
    def sharing_tokens(self) -> Iterator[None]:
        """The transformer's ranks are those of the mesh; afterwards it holds none of its groups."""
        self.model.token_ranks = self.token_ranks
        try:
            yield
        finally:
            self.model.token_ranks = None

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Draws from torch's global generators depend on `seed`; afterwards those of the CPU and of the
        pipeline's device are as they were before."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def check_modules(config: InferenceConfig) -> None:
    """Raise ValueError or FileNotFoundError for unknown types and keys, and for missing local weights."""
    allowed = {"vae": (OpenSoraVAE,), "text_encoder": (), "model": None, "scheduler": (RectifiedFlow,)}
    for name, further in allowed.items():
        values, registry = getattr(config, name), SCHEDULERS if name == "scheduler" else MODELS
        builder = registry.get(values.get("type") or "")
        if builder is None:
            build_module({"type": values.get("type")}, registry)  # raises, naming near types
        if further is not None:  # the transformer checks its own keys
            parameters = [p for f in (builder, *further) for p in inspect.signature(f).parameters.values()]
            keys = {p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
            check_keys(values, {"type", *keys}, name)
        if source := values.get("from_pretrained"):
            try:
                local_path(source)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{name}: {error}") from error
        elif name in ("model", "vae"):
            logger.warning("%s.from_pretrained is not set: weights are random, and so is what they make",
                           name)


def check_mesh(config: InferenceConfig, mesh: Mesh) -> None:
    """Raise ValueError for a mesh of other sizes than the config's."""
    sizes = (("sp_size", config.sp_size, mesh.sp), ("cfg_size", config.cfg_size, mesh.cfg))
    for key, asked, group in sizes:
        if asked not in (None, group_size(group)):
            raise ValueError(f"{key}={asked}; allowed: {group_size(group)}, for here every process makes "
                             "videos of its own")


def check_fit(model: nn.Module, vae: OpenSoraVAE, text_encoder: T5Encoder) -> None:
    """Raise ValueError where the transformer was made for another autoencoder or text encoder."""
    pairs = (("latent channels of vae", vae.out_channels, model.config.in_channels),
             ("width of text_encoder", text_encoder.output_dim, model.config.caption_channels),
             ("text_encoder.model_max_length", text_encoder.model_max_length, model.config.model_max_length))
    for key, value, allowed in pairs:
        if value != allowed:
            raise ValueError(f"{key}={value}; allowed: {allowed}, which the transformer was made for")


def _text_encoder_config(config: InferenceConfig, mesh: Mesh) -> dict[str, Any]:
    device, allowed = config.text_encoder.get("device"), str(config.torch_device)
    if device not in (None, allowed):
        raise ValueError(f"text_encoder.device={device!r}; allowed: {allowed!r}, as of device (with "
                         "offload=True a model is there only as long as it is used)")
    options = {**config.text_encoder, "device": "cpu" if config.offload else config.torch_device}
    if options["type"] == "t5":
        options["ranks"] = mesh.video
    if isinstance(dtype := options.get("dtype"), str):
        if dtype not in DTYPES:
            raise ValueError(f"text_encoder.dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
        options["dtype"] = DTYPES[dtype]
    return options
