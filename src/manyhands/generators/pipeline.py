"""A diffusers pipeline for a U-Net with classes, or on latents. A copy is in the folder of the weights.

DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)(class_labels=[0, 1, 2])
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel


class ImagePipeline(DiffusionPipeline):
    """Samples one image for each class label; the class after the last one means no label.

    For a U-Net without classes, pass one 0 for each image.
    """

    _optional_components = ["vae"]  # noqa: RUF012 # as in diffusers

    def __init__(self, unet: UNet2DModel, scheduler: DDIMScheduler, vae: AutoencoderKL | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)

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
        size, channels, known = (self.unet.config[name] for name in ("sample_size", "in_channels", "num_class_embeds"))
        labels = torch.as_tensor(class_labels, device=self.device) if known else None
        no_labels = None if labels is None else torch.full_like(labels, known - 1)
        x = torch.randn(len(class_labels), channels, size, size, generator=generator, device=self.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            out = self.unet(x, t, class_labels=labels).sample
            if guidance_scale != 1 and labels is not None:
                unconditional = self.unet(x, t, class_labels=no_labels).sample
                out = torch.lerp(unconditional, out, guidance_scale)
            step = self.scheduler.step(out, t, x, eta=eta, use_clipped_model_output=True, generator=generator)
            x = step.prev_sample
        if self.vae is not None:
            x = self.vae.decode(x / self.vae.config.scaling_factor).sample
        images = (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=self.numpy_to_pil(images) if output_type == "pil" else images)
