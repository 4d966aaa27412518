"""Our modules inside a real ComfyUI, 0.3.64 to today. The only place that imports comfy."""
