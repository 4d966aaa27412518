"""Templates of published weights: the loaders name their files, and the page offers to download them."""

from __future__ import annotations

from .source import IMAGE, MODEL, NOTE, PROMPT, RESULT, SAMPLE, Group, Model, Template, node

HUB = "https://huggingface.co"
GEMMA = Model(
    "gemma_2_2b_it_elm_bf16.safetensors",
    f"{HUB}/Comfy-Org/PixelDiT/resolve/main/text_encoders/gemma_2_2b_it_elm_bf16.safetensors",
    "text_encoders",
)
DC_AE = Model(
    "dc-ae-f32c32-sana-1.1.safetensors",
    f"{HUB}/mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers/resolve/main/diffusion_pytorch_model.safetensors",
    "vae",
)
WAN = Model(
    "wan_2.1_vae.safetensors",
    f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/vae/wan_2.1_vae.safetensors",
    "vae",
)


def original(repository: str, file: str) -> Model:
    """A transformer as NVlabs publishes it."""
    url = f"{HUB}/Efficient-Large-Model/{repository}/resolve/main/checkpoints/{file}"
    return Model(file, url, "diffusion_models")


SPRINT = original("Sana_Sprint_1.6B_1024px", "Sana_Sprint_1.6B_1024px.pth")
SANA_1_5 = original("SANA1.5_1.6B_1024px", "SANA1.5_1.6B_1024px.pth")
SANA_4K = original("Sana_1600M_4Kpx_BF16", "Sana_1600M_4Kpx_BF16.pth")
VIDEO = original("SANA-Video_2B_480p", "SANA_Video_2B_480p.pth")

DOWNLOADS = (
    "**Files**: the page offers them when you open this. A browser saves DC-AE as "
    "*diffusion_pytorch_model.safetensors*: "
    "rename it. They go into these folders of *models*, then press R:\n"
)
CAT = "a cyberpunk cat with a neon sign that says Sana"


def loaders(transformer: Model, vae: Model) -> dict[str, dict]:
    return {
        "1": node("SanaLoadTransformer", "Load Model", model_name=transformer.name),
        "2": node("SanaLoadTextEncoder", "Load Gemma", encoder_name=GEMMA.name),
        "3": node("SanaLoadVAE", "Load VAE", vae_name=vae.name),
    }


def links(transformer: Model, vae: Model) -> dict[str, Model]:
    return {"1": transformer, "2": GEMMA, "3": vae}


def file_list(*models: Model) -> str:
    return DOWNLOADS + "\n".join(f"- {model.directory}: [{model.name}]({model.url})" for model in models)


def groups(
    latent: str, prompts: tuple[str, ...], samples: tuple[str, ...], decode: str, save: str
) -> tuple[Group, ...]:
    """Loaders, prompts and sampling above; note, size and result below."""
    return (
        Group("1  Model", MODEL, 0, {0: ("1", "2", "3")}),
        Group("About this workflow", RESULT, 1, {0: (NOTE,)}),
        Group("2  Prompt", PROMPT, 0, {1: prompts}),
        Group("3  Size", IMAGE, 1, {1: (latent,)}),
        Group("4  Sample", SAMPLE, 0, {2: samples}),
        Group("5  Result", RESULT, 0, {3: (decode, save)}),
    )


def templates() -> dict[str, Template]:
    return {
        "sana_sprint_1.6b_text_to_image": sprint(),
        "sana_1.5_negative_prompt": negative_prompt(),
        "sana_4k_tiled": four_k(),
        "sana_video_easycache": easycache(),
        "sana_video_compiled": compiled(),
    }


def sprint() -> Template:
    return Template(
        "SANA-Sprint 1.6B text to image",
        {
            **loaders(SPRINT, DC_AE),
            "4": node("SanaEncodePrompt", "Prompt", clip=("2", 0), text=CAT),
            "5": node("SanaEmptyLatent", "Size"),
            "6": node("SanaSCMSample", "Sample", model=("1", 0), positive=("4", 0), latent_image=("5", 0)),
            "7": node("VAEDecode", "Decode", samples=("6", 0), vae=("3", 0)),
            "8": node("SaveImage", images=("7", 0), filename_prefix="Sana"),
        },
        groups("5", ("4",), ("6",), "7", "8"),
        "# SANA-Sprint 1.6B\n\nAn image of 1024 × 1024 in two steps.\n\n" + file_list(SPRINT, GEMMA, DC_AE),
        models=links(SPRINT, DC_AE),
        demo=False,
    )


def guided(transformer: Model, side: int, decode: dict, **sampling) -> dict[str, dict]:
    """Text to image with a negative prompt, for SANA that is not Sprint."""
    negative = "blurry, low quality, deformed, watermark, text"
    led = {"model": ("1", 0), "positive": ("4", 0), "negative": ("5", 0), "latent_image": ("6", 0)}
    return {
        **loaders(transformer, DC_AE),
        "4": node("SanaEncodePrompt", "Prompt", clip=("2", 0), text=CAT),
        "5": node("SanaEncodePrompt", "Negative Prompt", clip=("2", 0), text=negative, instruction="none"),
        "6": node("SanaEmptyLatent", "Size", width=side, height=side),
        "7": node("SanaFlowSample", "Sample", **led, steps=20, cfg=4.5, **sampling),
        "8": decode,
        "9": node("SaveImage", images=("8", 0), filename_prefix="Sana"),
    }


def negative_prompt() -> Template:
    return Template(
        "SANA 1.5 with negative prompt",
        guided(SANA_1_5, 1024, node("VAEDecode", "Decode", samples=("7", 0), vae=("3", 0))),
        groups("6", ("4", "5"), ("7",), "8", "9"),
        "# SANA 1.5\n\n20 steps with guidance (*cfg* 4.5). The negative prompt is encoded without instruction.\n\n"
        + file_list(SANA_1_5, GEMMA, DC_AE),
        models=links(SANA_1_5, DC_AE),
        demo=False,
    )


def four_k() -> Template:
    decode = node("VAEDecodeTiled", "Decode In Tiles", samples=("7", 0), vae=("3", 0), tile_size=1024, overlap=0)
    return Template(
        "SANA 4K decoded in tiles",
        guided(SANA_4K, 4096, decode),
        groups("6", ("4", "5"), ("7",), "8", "9"),
        "# 4096 × 4096\n\n*Decode In Tiles* gives the pixels of an untiled decode in 2.1 GiB instead of 26: no "
        "seams, "
        "and *overlap* is not needed.\n\n" + file_list(SANA_4K, GEMMA, DC_AE),
        models=links(SANA_4K, DC_AE),
        demo=False,
    )


def video(title: str, faster: dict, note: str) -> Template:
    """Text to video with the 480p model, which ``faster`` (node 5) changes."""
    words = "A golden retriever runs along a beach at sunset, waves rolling in behind it, filmed from the side."
    led = {"model": ("5", 0), "positive": ("4", 0), "negative": ("4", 1), "latent_image": ("6", 0)}
    return Template(
        title,
        {
            **loaders(VIDEO, WAN),
            "4": node("SanaEncodeVideoPrompt", "Prompt", clip=("2", 0), prompt=words),
            "5": faster,
            "6": node("SanaEmptyVideoLatent", "Size And Length", vae=("3", 0)),
            "7": node("SanaFlowSample", "Sample", **led),
            "8": node("VAEDecode", "Decode", samples=("7", 0), vae=("3", 0)),
            "9": node("SanaSaveVideo", images=("8", 0)),
        },
        groups("6", ("5", "4"), ("7",), "8", "9"),
        note + file_list(VIDEO, GEMMA, WAN),
        models=links(VIDEO, WAN),
        demo=False,
    )


def easycache() -> Template:
    node_5 = node("EasyCache", model=("1", 0), reuse_threshold=0.1, start_percent=0.05)
    return video(
        "SANA-Video faster with EasyCache",
        node_5,
        "# EasyCache\n\nSkips steps that would change little. At NVIDIA's setting, *reuse_threshold* 0.10: the first "
        "3 of "
        "50 steps are always computed (*start_percent* 0.05). Lower is closer to the full result, higher is "
        "faster.\n\n",
    )


def compiled() -> Template:
    return video(
        "SANA-Video compiled with TorchCompileModel",
        node("TorchCompileModel", model=("1", 0)),
        "# torch.compile\n\nThe first run compiles for minutes; every later one with this size is faster. Needs a "
        "C++ "
        "compiler, and Triton for a graphics card.\n\n",
    )
