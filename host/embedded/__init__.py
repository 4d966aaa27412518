"""Our nodes without ComfyUI: one model on the device at a time, and an executor of API-format graphs."""
