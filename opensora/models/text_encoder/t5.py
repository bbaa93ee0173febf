"""T5 captions: text -> token embeddings for the video transformer.  B captions, L tokens, C channels."""
from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel
from transformers.utils import logging as transformers_logging

from opensora.models.text_encoder.caption_cleaning import text_preprocessing
from opensora.models.text_encoder.shardformer import sharded_where_wanted
from opensora.parallel import collectives
from opensora.registry import MODELS
from opensora.utils.weights import packaged_path

__all__ = ["T5Encoder", "text_preprocessing"]

logger = logging.getLogger(__name__)
ALLOWED = "a local folder in Hugging Face layout (tokenizer, config.json, weights) or a hub id such as " \
          "DeepFloyd/t5-v1_1-xxl"


@MODELS.register_module("t5")
class T5Encoder:
    """T5 encoder and its tokenizer.  Not an nn.Module: the null caption belongs to the transformer.

    from_pretrained: local folder or hub id with tokenizer and encoder (config key
    `text_encoder.from_pretrained`).
    model_max_length: L; shorter captions are padded to it, longer ones cut with a warning (published: 300).
    clean_caption: clean captions as in training (`text_preprocessing`); False takes them as they are.
    shardformer: run the encoder through the optional package colossalai: its fused kernels, and its policy of
    tensor parallelism on `ranks`, which have the same captions, and then each a part of the weights.  None:
    where it is installed and there are ranks.  Where it cannot be used, each process has all weights, with a
    warning.
    Set `y_embedder` to the transformer's caption embedder before asking for `null`.
    Raises FileNotFoundError where the weights cannot be had, ValueError for values that cannot work.
    """

    def __init__(
        self,
        from_pretrained: str | None = None,
        model_max_length: int = 120,
        device: str | torch.device = "cuda",
        dtype: torch.dtype = torch.float,
        cache_dir: str | None = None,
        shardformer: bool | None = None,
        local_files_only: bool = False,
        clean_caption: bool = True,
        ranks: ProcessGroup | None = None,
    ) -> None:
        if model_max_length < 1:
            raise ValueError(f"text_encoder.model_max_length={model_max_length}; allowed: 1 or more tokens")
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={str(device)!r} for the text encoder, but CUDA is not available; "
                             "allowed here: cpu")
        where = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        self._source, self._shardformer, self._device = (from_pretrained, dtype, where), shardformer, device
        self.model_max_length = model_max_length
        self.clean_caption = clean_caption
        self.y_embedder: nn.Module | None = None
        self.join(ranks)

    @classmethod
    def from_parts(
        cls,
        model: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        model_max_length: int,
        clean_caption: bool = True,
    ) -> T5Encoder:
        """Encoder around a model built elsewhere, such as a new one that is to be trained."""
        self = cls.__new__(cls)
        self.model, self.tokenizer, self.ranks = model, tokenizer, None
        self.model_max_length, self.clean_caption, self.y_embedder = model_max_length, clean_caption, None
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> T5Encoder:
        """Itself: the EMA of a training objective needs no second encoder of billions of frozen weights."""
        return self

    @property
    def output_dim(self) -> int:
        return self.model.config.d_model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def to(self, device: str | torch.device) -> T5Encoder:
        """Move the weights; `y_embedder` stays with its transformer."""
        self.model.to(device)
        return self

    def leave(self) -> None:
        """Give up the weights, and with them the process group of the ranks that hold them together."""
        self.model = self.ranks = None

    def join(self, ranks: ProcessGroup | None) -> None:
        """Load the weights, or with these ranks each a part of them."""
        model, together = sharded_where_wanted(self._load, self._shardformer, ranks)
        self.ranks = ranks if together else None
        self.model = model.eval().to(self._device)

    def _load(self) -> T5EncoderModel:
        self.tokenizer, model = _load(*self._source)
        return model

    def tokenize(self, text: list[str]) -> tuple[Tensor, Tensor]:
        """Captions, cleaned if so chosen -> ids [B, L] and mask [B, L] (1 token, 0 padding), on the CPU."""
        if isinstance(text, str):
            raise TypeError(f"text={text[:40]!r} is one string; allowed: a list of captions")
        text = [text_preprocessing(t) for t in text] if self.clean_caption else list(text)
        tokens = self.tokenizer(
            text, max_length=self.model_max_length, padding="max_length", truncation=True,
            return_attention_mask=True, add_special_tokens=True, return_tensors="pt",
        )
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        for i in mask.all(dim=1).nonzero().flatten().tolist():  # full rows: exactly fitting or cut
            self._warn_if_cut(text[i])
        return ids, mask

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [B, L] -> embeddings [B, L, C], with gradients where they are on."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        with collectives.one() if self.ranks is not None else nullcontext():
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    @torch.no_grad()
    def encode(self, text: list[str]) -> dict[str, Tensor]:
        """Captions -> {"y": [B, 1, L, C], "mask": [B, L]}, detached, on the encoder's device."""
        ids, mask = self.tokenize(text)
        return {"y": self.embed(ids, mask)[:, None], "mask": mask.to(self.device)}

    def null(self, n: int) -> Tensor:
        """The null caption of classifier-free guidance, n times: [n, 1, L, C]."""
        if self.y_embedder is None:
            raise RuntimeError("the null caption is the transformer's: "
                               "set text_encoder.y_embedder = model.y_embedder first")
        return self.y_embedder.y_embedding[None].repeat(n, 1, 1)[:, None]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and weights in the layout that `from_pretrained` reads.

        Raises RuntimeError where this process has a part of them alone.
        """
        if self.ranks is not None:
            raise RuntimeError("several ranks hold the text encoder's weights together; "
                               "set text_encoder.shardformer=False to save them")
        self.tokenizer.save_pretrained(folder)
        with _NoProgressBars():
            self.model.save_pretrained(folder)

    def _warn_if_cut(self, text: str) -> None:
        length = len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if length > self.model_max_length:
            start = text if len(text) <= 60 else f"{text[:60]}..."
            logger.warning("caption %r has %d tokens; what follows the first %d is ignored",
                           start, length, self.model_max_length)


class _NoProgressBars:
    """transformers draws a bar for every load and save; a library should not."""

    def __enter__(self) -> None:
        self.shown = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *error: object) -> None:
        if self.shown:
            transformers_logging.enable_progress_bar()


def _load(
    source: str | None, dtype: torch.dtype, where: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, T5EncoderModel]:
    key, allowed = f"text_encoder.from_pretrained={source!r}", f"allowed: {ALLOWED}"
    if not source:
        raise ValueError(f"{key}; {allowed}")
    path = Path(packaged_path(source)).expanduser()
    if path.is_dir():
        source = str(path)
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{key} has no config.json; {allowed}")
    elif path.exists() or source.count("/") > 1 or source[0] in "./~":
        raise FileNotFoundError(f"{key} is no folder; {allowed}")
    try:
        with _NoProgressBars():
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
            # 4.56 renamed it; earlier ones stand beside colossalai (constraints/colossalai.txt)
            version = tuple(map(int, transformers.__version__.split(".")[:2]))
            kind = "dtype" if version >= (4, 56) else "torch_dtype"
            model, info = T5EncoderModel.from_pretrained(
                source, **{kind: dtype}, output_loading_info=True, **where)
    except Exception as error:  # OSError, ValueError, KeyError, and errors of safetensors and of the hub
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise FileNotFoundError(f"{key} could not be loaded ({reason}); {allowed}") from error
    # transformers fills absent weights with random ones and only logs it
    if absent := sorted(info["missing_keys"]):
        names = ", ".join(absent[:3])
        raise ValueError(f"{key} lacks {len(absent)} weights of a T5 encoder, such as {names}")
    # in fp16 transformers keeps some layers in fp32, which would overflow
    return tokenizer, model if dtype == torch.float16 else model.to(dtype)
