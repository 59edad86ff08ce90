"""A diffusers pipeline for networks with classes or latents, transformers and flows. A copy is in their folder.

DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)(class_labels=[0, 1, 2])
"""

from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    UNet2DModel,
)


class ImagePipeline(DiffusionPipeline):
    """Samples one image for each class label; the class after the last one means no label.

    For a network without classes, pass one 0 for each image. A flow is sampled by Euler's method, without clipping.
    """

    _optional_components = ["unet", "transformer", "vae"]  # noqa: RUF012 # as in diffusers

    def __init__(
        self,
        scheduler: DDIMScheduler | FlowMatchEulerDiscreteScheduler,
        unet: UNet2DModel | None = None,
        transformer: DiTTransformer2DModel | None = None,
        vae: AutoencoderKL | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Return PIL images, or an array (N, H, W, C) in [0, 1] for any other output type."""
        config = (self.unet or self.transformer).config
        labels, no_labels = self._labels(class_labels)
        shape = len(class_labels), config["in_channels"], config["sample_size"], config["sample_size"]
        x = torch.randn(shape, generator=generator, device=self.device)
        is_flow = isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler)
        options = {} if is_flow else {"eta": eta, "use_clipped_model_output": True}
        self._set_timesteps(num_inference_steps, is_flow)
        for t in self.progress_bar(self.scheduler.timesteps):
            at = t - 1 if is_flow else t  # a flow counts from 1, networks count from 0
            out = self._predict(x, at, labels)
            if guidance_scale != 1 and no_labels is not None:
                out = torch.lerp(self._predict(x, at, no_labels), out, guidance_scale)
            x = self.scheduler.step(out, t, x, generator=generator, **options).prev_sample
        if self.vae is not None:
            x = self.vae.decode(x / self.vae.config.scaling_factor).sample
        images = (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(images) if output_type == "pil" else images)

    def _set_timesteps(self, steps: int, is_flow: bool) -> None:
        whole = self.scheduler.config["num_train_timesteps"]
        if is_flow:
            self.scheduler.set_timesteps(sigmas=[round(whole * (1 - i / steps)) / whole for i in range(steps)])
        else:
            self.scheduler.set_timesteps(steps)

    def _labels(self, class_labels: Sequence[int]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the labels, and as many that mean no label; a U-Net without classes has neither."""
        if self.unet is not None and not self.unet.config["num_class_embeds"]:
            return None, None
        none = self.unet.config["num_class_embeds"] - 1 if self.unet else self.transformer.config["num_embeds_ada_norm"]
        labels = torch.as_tensor(class_labels, device=self.device)
        return labels, torch.full_like(labels, none)

    def _predict(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        if self.unet is not None:
            return self.unet(x, t, class_labels=labels).sample
        return self.transformer(x, timestep=t.expand(len(x)).to(x.device), class_labels=labels).sample
