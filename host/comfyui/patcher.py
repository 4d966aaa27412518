"""The ModelPatcher of a SANA model."""

from __future__ import annotations

from functools import cache

from . import packed, traps


@cache
def sana_patcher_class(plain: type) -> type:
    """One of ComfyUI's patchers that tells of LoRAs that do not fit, and saves packed weights however it is loaded."""

    class SanaPatcher(plain):
        def add_patches(self, patches, *args, **kwargs):
            traps.tell_of_patches(self, patches)
            return super().add_patches(patches, *args, **kwargs)

        def model_state_dict_for_saving(self, model=None, prefix=""):
            usual = super().model_state_dict_for_saving
            return packed.state_for_saving(self, usual, self.model if model is None else model, prefix)

    SanaPatcher.__name__ = SanaPatcher.__qualname__ = plain.__name__
    return SanaPatcher
