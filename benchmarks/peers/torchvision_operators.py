"""Makes torchvision work with a torch of another build (CPU, CUDA): declares its operators.

Its compiled operators do not load in this case, and without them its Python code does not import.
The parts used here and by timm's models need none of them.
"""

import torch

_NAMES = (
    "nms qnms roi_align qroi_align _roi_align_backward ps_roi_align _ps_roi_align_backward "
    "roi_pool qroi_pool _roi_pool_backward ps_roi_pool _ps_roi_pool_backward deform_conv2d "
    "_deform_conv2d_backward"
)
_library = None  # declarations last as long as this does


def declare() -> None:
    """Makes `import torchvision` possible."""
    global _library
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _library = torch.library.Library("torchvision", "DEF")
        for name in _NAMES.split():
            _library.define(f"{name}(Tensor a) -> Tensor")
