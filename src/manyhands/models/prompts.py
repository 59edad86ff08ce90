"""Classes as texts: the prompt of each class, encoded once by a frozen text encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhands.errors import RecipeError

INSTALL = "pip install 'manyhands[text]'"
CLASS = "{class}"


def prompts_of(template: str | tuple[str, ...], names: Sequence[str]) -> list[str]:
    """Return the prompt of each class, and the empty one that means no label.

    Args:
        template: A text in which ``{class}`` stands for the name of a class, or one text for each class.
        names: The names of the classes; none where images have no labels, and the text is that of all images.

    Raises:
        ValueError: There are not as many texts as classes, or the template gives two classes the same text.
    """
    if isinstance(template, tuple):
        if len(template) != max(len(names), 1):
            raise ValueError(f"prompts has {len(template)} texts, but there are {len(names)} classes")
        texts = list(template)
    else:
        if names and CLASS not in template:
            raise ValueError(f"prompts is {template!r}, which is the same for every class; write {CLASS} in it")
        texts = [template.replace(CLASS, name) for name in names] or [template.replace(CLASS, "").strip()]
    return [*texts, ""] if names else texts


@torch.no_grad()
def encoded(folder: Path, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the tokens of prompts, (N, L), and what the text encoder of a pipeline makes of them, (N, L, D).

    Args:
        folder: The folder of the pipeline, with text_encoder and tokenizer.
        prompts: The texts.
    """
    transformers = _transformers()
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        with _quiet(transformers.utils.logging):
            encoder = transformers.CLIPTextModel.from_pretrained(
                folder / "text_encoder", local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise RecipeError(f"method.model.folder: {folder}: its text encoder cannot be loaded: {error}") from None
    length = encoder.config.max_position_embeddings
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return tokens, encoder.eval()(tokens)[0]


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Load without a progress bar of its own among our lines."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise RecipeError(
            f"method.model: a model that is told classes by a text needs transformers: {INSTALL}"
        ) from None
    return transformers
