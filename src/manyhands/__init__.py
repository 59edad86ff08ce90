"""Manyhands trains one image generator across parties that may not pool their images.

The public names are those of ``__init__.pyi``; each is imported when it is first used, since PyTorch takes seconds.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
