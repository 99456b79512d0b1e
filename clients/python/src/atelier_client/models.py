"""The types of docs/openapi.json, written by clients/generate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType


class TextualInversion(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    url: str
    """
    A textual inversion: s3://BUCKET/KEY, or an https:// address without a user name in it.
    """
    token: Annotated[
        str, Field(max_length=64, min_length=1, pattern="^[!-'*-9;-Z^-~]+$")
    ]
    """
    The word that stands for its vectors in the prompts; each may be named once.
    """


class ControlImage(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    url: str
    """
    What it looks at, stretched to the job's size: s3://BUCKET/KEY, or an https:// address without a user name in it.
    """


class ControlNet(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    name: Annotated[str, Field(max_length=64, min_length=1, pattern='^[a-z0-9._-]+$')]
    """
    A ControlNet of the model.
    """
    image: Annotated[ControlImage, Field(title='ControlImage')]
    scale: Annotated[float | None, Field(ge=0.0, le=2.0)] = None
    """
    How strongly it holds; null: 1.
    """
    start: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    """
    The part of the steps from which on it takes part, below end; null: 0.
    """
    end: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    """
    The part of the steps up to which it takes part; null: 1.
    """
    detect: Literal['canny'] | None = None
    """
    What is made of the image first: edges as OpenCV's Canny finds them. Only with a ControlNet for such images; null: it looks at the image itself.
    """
    low_threshold: Annotated[int | None, Field(ge=0, le=2040)] = None
    """
    Only with detect: gradients above it go on with an edge; at most high_threshold; null: 100.
    """
    high_threshold: Annotated[int | None, Field(ge=0, le=2040)] = None
    """
    Only with detect: gradients above it begin an edge; null: 200.
    """


class IpAdapter(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    name: Annotated[str, Field(max_length=64, min_length=1, pattern='^[a-z0-9._-]+$')]
    """
    An IP-Adapter of the model.
    """
    images: Annotated[list[str], Field(max_length=4, min_length=1)]
    scale: Annotated[float | None, Field(ge=0.0, le=2.0)] = None
    """
    How strongly the images are seen; null: 1.
    """


class InitImage(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    url: str
    """
    An image to start from: s3://BUCKET/KEY, or an https:// address without a user name in it.
    """


class MaskImage(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    url: str
    """
    Where init_image may be generated (white); only with it: s3://BUCKET/KEY, or an https:// address without a user name in it.
    """


Timestep = TypeAliasType("Timestep", Annotated[int, Field(ge=0, le=999)])


Sigma = TypeAliasType("Sigma", Annotated[float, Field(ge=0.0, le=10000.0)])


OriginalSizeItem = TypeAliasType(
    "OriginalSizeItem", Annotated[int, Field(ge=1, le=16384)]
)


CropsCoordsTopLeftItem = TypeAliasType(
    "CropsCoordsTopLeftItem", Annotated[int, Field(ge=0, le=16384)]
)


TargetSizeItem = TypeAliasType("TargetSizeItem", Annotated[int, Field(ge=1, le=16384)])


class StepCache(BaseModel):
    """
    Steps take over a part of an earlier one: faster, and another image. Without it none does.
    """

    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    interval: Annotated[int | None, Field(ge=2, le=10)] = None
    """
    Of a model with a UNet: of so many looks, one is complete (DeepCache).
    """
    threshold: Annotated[float | None, Field(ge=0.001, le=1.0)] = None
    """
    Of a model with a transformer: a look ends after the first block while that adds about the same, up to this part (first-block cache).
    """


class TryOnConfig(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    seed: Annotated[int | None, Field(ge=0, le=9007199254740991)] = None
    """
    Without it: 42.
    """
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    """
    Without it: 4.
    """
    cfg: Annotated[float | None, Field(ge=1.0, le=50.0)] = None
    """
    Without it: 1.
    """
    prompt: Annotated[str | None, Field(max_length=2000)] = None


Class = TypeAliasType("Class", Annotated[str, Field(max_length=64, min_length=1)])


class AutoMask(BaseModel):
    """
    In place of a mask: the clothes are found in the person's image, and everything else stays bit for bit.
    """

    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    garment: Literal['upper', 'lower', 'full', 'shoes'] | None = None
    """
    What the garments are worn on: clothes there may be changed. Without it: full, which is upper and lower.
    """
    limbs: bool | None = None
    """
    Bare arms of an upper garment, or legs of a lower one, may be changed as well.
    """
    classes: Annotated[list[Class] | None, Field(max_length=32, min_length=1)] = None
    """
    In place of garment and limbs: classes of the model's segmenter (mask_classes of GET /models). Case, spaces, - and _ do not count.
    """
    dilate_px: Annotated[int | None, Field(ge=0, le=256)] = None
    """
    By how many pixels of the result the mask is wider than what was found. Without it: a hundredth of the shorter side.
    """


class Lora(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    url: str
    """
    s3://BUCKET/KEY, or an https:// address without a user name in it.
    """
    scale: Annotated[float | None, Field(ge=-4.0, le=4.0)] = None
    """
    Without it: 1.
    """
    alpha: Annotated[float | None, Field(gt=0.0, le=65536.0)] = None
    """
    What the matrices are multiplied by, divided by their rank; for a file that does not say it. Not with config_url.
    """
    config_url: str | None = None
    """
    PEFT's adapter_config.json, for a file of its save_pretrained; without it the one next to the file is tried (s3://, or an https:// URL without a query).
    """


class Upscale(BaseModel):
    """
    The images are enlarged after they were generated, by one of the model's upscalers, before they are looked at, marked and signed.
    """

    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    factor: Literal[2, 4]
    """
    How many times as wide and as high the images become.
    """
    name: Annotated[str | None, Field(pattern='^[a-z0-9_-][a-z0-9._-]{0,63}$')] = None
    """
    One of the model's upscalers. Without it: the first that enlarges by the factor.
    """


class Watermark(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    text: Annotated[
        str, Field(max_length=120, min_length=1, pattern='^[^\\x00-\\x1f\\x7f-\\x9f]+$')
    ]
    position: Literal['top-left', 'top', 'top-right', 'left', 'center', 'right', 'bottom-left', 'bottom', 'bottom-right'] | None = (
        None
    )
    """
    Without it: bottom-right.
    """
    opacity: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    """
    Without it: 0.6.
    """
    size: Annotated[float | None, Field(ge=0.01, le=0.5)] = None
    """
    Height of a capital letter, as a part of the image's shorter side. Without it: what the function's configuration says, else what suits image and text.
    """


class Output(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    prefix: Annotated[
        str | None,
        Field(
            max_length=512,
            pattern='^((\\.{0,2}[A-Za-z0-9_=-][A-Za-z0-9._=-]*|\\.{3,}[A-Za-z0-9._=-]*)/)*$',
        ),
    ] = None
    """
    Object key prefix of the images; no part of it is . or ..
    """
    format: Literal['png', 'jpeg', 'webp'] | None = None
    metadata: Literal['full', 'minimal', 'none'] | None = None
    """
    What the files say of how they were made; without it: as the service is configured. Every image says that a model made it.
    """


class Consent(BaseModel):
    """
    On what basis the image of a person is used; kept in result.json.
    """

    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    basis: Literal['own', 'given', 'synthetic']
    """
    own: the caller is the person; given: the person has agreed; synthetic: there is no such person.
    """
    reference: Annotated[
        str,
        Field(
            max_length=256, min_length=1, pattern='^[^\\u0000-\\u001f\\u007f-\\u009f]+$'
        ),
    ]
    """
    Where the caller keeps it, such as the number of a form.
    """


class Callback(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    url: str | None = None
    """
    Gets the notifications instead of the configured backend.
    """
    metadata: dict[str, Any] | None = None


class ResultImage(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    url: str
    bucket: str
    key: str
    content_type: str
    width: int
    height: int
    bytes: int
    seed: int


class Result(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    image_urls: list[str]
    images: list[ResultImage]
    model: str
    timings_ms: dict[str, int]
    """
    Milliseconds by workflow step.
    """


class ModelState(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    name: str
    status: Literal['hot', 'unloaded', 'loading', 'failed']
    """
    unloaded: others have the memory of its device; it is loaded when a job needs it.
    """
    model_loaded: bool


class ModelVersion(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    name: str
    model_type: str
    backend: str


class ServedControlNet(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    name: str
    image: str
    """
    What kind of image it looks at, such as canny or depth.
    """


class Upscaler(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    name: str
    factor: int
    licence: str | None = None
    """
    Of its weights.
    """


class ModelDefaults(BaseModel):
    """
    What a generation gets that leaves a field out; of models that generate.
    """

    model_config = ConfigDict(
        populate_by_name=True,
    )
    steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    seed: int


class ServedModel(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    name: str
    model_type: str
    backend: str
    tasks: list[Literal['generate', 'tryon', 'edit']]
    status: Literal['hot', 'unloaded', 'loading', 'failed']
    """
    unloaded: others have the memory of its device; it is loaded when a job needs it.
    """
    model_loaded: bool
    modes: list[Literal['fp8', 'lora', 'base']] | None = None
    """
    Those whose weights are loaded; empty: the model has no modes. Absent, as the next seven, for another function that says nothing of itself.
    """
    loras: bool | None = None
    """
    Jobs may bring LoRAs.
    """
    controlnets: list[ServedControlNet] | None = None
    """
    Those that jobs may ask for; empty: the model has none.
    """
    ip_adapters: list[str] | None = None
    """
    Names of the IP-Adapters that jobs may ask for; empty: the model has none.
    """
    upscalers: list[Upscaler] | None = None
    """
    What images can be enlarged with; empty: the model has none.
    """
    mask_classes: list[str] | None = None
    """
    What the model's segmenter finds in a person's image, for auto_mask; empty: the model has none.
    """
    guidance: bool | None = None
    """
    A guidance scale above 1 and a negative prompt mean something.
    """
    side_multiple_px: int | None = None
    """
    Width and height are multiples of it.
    """
    defaults: Annotated[ModelDefaults | None, Field(title='ModelDefaults')] = None
    """
    What a generation gets that leaves a field out; of models that generate.
    """


class Error(BaseModel):
    """
    What was wrong, and what is allowed or to be done.
    """

    model_config = ConfigDict(
        populate_by_name=True,
    )
    code: str
    """
    A stable word for programs.
    """
    message: str
    field: str | None = None
    """
    The field of the request at fault, where there is one.
    """
    category: str | None = None
    """
    Of content_blocked: one word, such as nude.
    """


class Problem(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    error: Error


class Busy(Problem):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    status: Literal['busy']
    message: str
    retry_after: int
    """
    Seconds.
    """


class Accepted(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    status: Literal['accepted']
    job_id: str
    message: str


class AlreadyComplete(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    status: Literal['complete']
    job_id: str
    message: str
    result: Result


class Cancelling(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    status: Literal['cancelling']
    job_id: str
    state: Literal['queued', 'running', 'complete', 'failed', 'cancelled']
    message: str


class AlreadyEnded(Problem):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    job_id: str
    state: Literal['queued', 'running', 'complete', 'failed', 'cancelled']
    result: Result | None = None


class Preview(BaseModel):
    """
    What the first image of a running job looks like so far: the data of the event `preview` of `GET /jobs/{id}/events?previews=true`.
    """

    model_config = ConfigDict(
        populate_by_name=True,
    )
    job_id: str
    step: Annotated[int, Field(ge=1)]
    """
    The denoising step that it shows.
    """
    steps: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1, le=128)]
    """
    Of the preview, in pixels.
    """
    height: Annotated[int, Field(ge=1, le=128)]
    content_type: Literal['image/jpeg']
    image: str
    """
    The file in base64.
    """


class WebhookProgress(BaseModel):
    """
    How far a job is: best effort, never repeated, never after its end.
    """

    model_config = ConfigDict(
        populate_by_name=True,
    )
    type: Literal['inference.progress']
    job_id: str
    progress: Annotated[int, Field(ge=0, le=100)]
    """
    Percent: 0, 25, 50, 75 or 90.
    """
    metadata: dict[str, Any]


class WebhookComplete(BaseModel):
    """
    The job is done, and its record is stored.
    """

    model_config = ConfigDict(
        populate_by_name=True,
    )
    type: Literal['inference.complete']
    job_id: str
    image_urls: list[str]
    images: list[ResultImage]
    model: str
    timings_ms: dict[str, int]
    """
    Milliseconds by workflow step.
    """
    metadata: dict[str, Any]


class WebhookFailed(BaseModel):
    """
    No further attempt can help, or the job was cancelled.
    """

    model_config = ConfigDict(
        populate_by_name=True,
    )
    type: Literal['inference.failed']
    job_id: str | None
    """
    null where the job could not be read that far, and where the id is another job's.
    """
    conflicting_job_id: str | None = None
    """
    Of a conflict: the id that the request asked for, which is another job's.
    """
    error: Error
    retried: bool
    """
    The job had been tried before.
    """
    attempts: Annotated[int, Field(ge=0)]
    metadata: dict[str, Any]


class Generate(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    task: Literal['generate'] | None = None
    prompt: Annotated[str, Field(max_length=2000)]
    negative_prompt: Annotated[str | None, Field(max_length=2000)] = None
    model: Annotated[str | None, Field(pattern='^[a-z0-9_-][a-z0-9._-]{0,63}$')] = None
    lora: Annotated[list[Lora] | None, Field(max_length=8)] = None
    embeddings: Annotated[list[TextualInversion] | None, Field(max_length=8)] = None
    controlnets: Annotated[list[ControlNet] | None, Field(max_length=4)] = None
    """
    What ControlNets hold the result to; several add up. Only with a model whose manifest names some (GET /models).
    """
    ip_adapters: Annotated[list[IpAdapter] | None, Field(max_length=2)] = None
    """
    Images beside the prompt, as IP-Adapters see them; several add up. Only with a model whose manifest names some (GET /models).
    """
    init_image: InitImage | None = None
    strength: Annotated[float | None, Field(gt=0.0, le=1.0)] = None
    """
    The part of the steps that is done, from init_image on; only with it. Without a mask 0.8, else 1. It must leave a step.
    """
    mask_image: MaskImage | None = None
    mode: Literal['fp8', 'lora', 'base'] | None = None
    """
    Of a model that has modes.
    """
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    guidance_scale: Annotated[float | None, Field(ge=0.0, le=50.0)] = None
    scheduler: Literal['dpmsolver++', 'dpmsolver++-karras', 'dpmsolver++-exponential', 'dpmsolver++-beta', 'dpmsolver++-sde', 'dpmsolver++-sde-karras', 'dpmsolver++-sde-exponential', 'dpmsolver++-sde-beta', 'dpmsolver++-singlestep', 'dpmsolver++-singlestep-karras', 'dpmsolver++-singlestep-exponential', 'dpmsolver++-singlestep-beta', 'deis', 'deis-karras', 'deis-exponential', 'deis-beta', 'unipc', 'unipc-karras', 'unipc-exponential', 'unipc-beta', 'euler', 'euler-karras', 'euler-exponential', 'euler-beta', 'heun', 'heun-karras', 'heun-exponential', 'heun-beta', 'dpm2', 'dpm2-karras', 'dpm2-exponential', 'dpm2-beta', 'dpm2_a', 'dpm2_a-karras', 'dpm2_a-exponential', 'dpm2_a-beta', 'lms', 'lms-karras', 'lms-exponential', 'lms-beta', 'euler_a', 'pndm', 'ddim', 'ddpm', 'lcm', 'tcd'] | None = (
        None
    )
    """
    Also as AUTOMATIC1111, ComfyUI and diffusers write it (DPM++ 2M Karras, euler_ancestral, PNDMScheduler): case, spaces, - and _ do not count.
    """
    timesteps: Annotated[list[Timestep] | None, Field(max_length=200, min_length=1)] = (
        None
    )
    """
    In place of steps: the training timesteps themselves, each below the one before. For dpmsolver++, dpmsolver++-sde, dpmsolver++-singlestep, euler, heun, ddpm, lcm and tcd.
    """
    sigmas: Annotated[list[Sigma] | None, Field(max_length=201, min_length=2)] = None
    """
    In place of steps: the noise levels before every step and after the last, each below the one before. For euler.
    """
    eta: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    """
    How much fresh noise a step adds: 0 none. For ddim and tcd.
    """
    guidance_rescale: Annotated[float | None, Field(ge=0.0, le=1.0)] = None
    """
    How far guidance is brought back to the spread of the prediction without it. Not with init_image.
    """
    image_guidance_scale: Annotated[float | None, Field(ge=1.0, le=50.0)] = None
    """
    How far the result is led towards init_image. Only with a model that edits images (instruct-pix2pix); 1.5 without it.
    """
    clip_skip: Annotated[int | None, Field(ge=0, le=23)] = None
    """
    Last layers of the text encoder that the prompt leaves out, counted as in diffusers: AUTOMATIC1111's Clip skip is one more.
    """
    original_size: Annotated[
        list[OriginalSizeItem] | None, Field(max_length=2, min_length=2)
    ] = None
    """
    Stable Diffusion XL: [height, width] of the image before it was scaled, as if it were a training image; null: the job's size.
    """
    crops_coords_top_left: Annotated[
        list[CropsCoordsTopLeftItem] | None, Field(max_length=2, min_length=2)
    ] = None
    """
    Stable Diffusion XL: [top, left] of what was cut out of it; null: [0, 0].
    """
    target_size: Annotated[
        list[TargetSizeItem] | None, Field(max_length=2, min_length=2)
    ] = None
    """
    Stable Diffusion XL: [height, width] that it was scaled to; null: the job's size.
    """
    width: Annotated[int | None, Field(ge=64, le=2048, multiple_of=8)] = None
    height: Annotated[int | None, Field(ge=64, le=2048, multiple_of=8)] = None
    num_images: Annotated[int | None, Field(ge=1, le=4)] = None
    """
    Without it: 1.
    """
    seed: Annotated[int | None, Field(ge=-1, le=9007199254740991)] = None
    """
    Image n is generated from seed + n. -1: any, the same one each time the job is delivered.
    """
    step_cache: StepCache | None = None
    """
    Steps take over a part of an earlier one: faster, and another image. Without it none does.
    """
    upscale: Upscale | None = None
    watermark: Watermark | None = None
    output: Output | None = None
    consent: Consent | None = None
    callback: Callback | None = None
    tenant: Annotated[str | None, Field(max_length=256)] = None
    """
    Among whom SQS is fair and host.max_waiting_per_tenant counts; else user_id, else callback.metadata.user_id. It does not make another request of a job.
    """


class TryOn(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    task: Literal['tryon'] | None = None
    """
    Must be there on /infer.
    """
    person: str
    """
    s3://BUCKET/KEY, an https:// address, or data:image/png;base64, and the image.
    """
    garments: Annotated[list[str], Field(max_length=4, min_length=1)]
    mask: str | None = None
    """
    White is generated, black is kept.
    """
    auto_mask: AutoMask | None = None
    prompt: Annotated[str | None, Field(max_length=2000)] = None
    negative_prompt: Annotated[str | None, Field(max_length=2000)] = None
    mode: Literal['fp8', 'lora', 'base'] | None = None
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    guidance_scale: Annotated[float | None, Field(ge=1.0, le=50.0)] = None
    seed: Annotated[int | None, Field(ge=0, le=9007199254740991)] = None
    """
    Without it: 42.
    """
    resolution: Literal['480p', '720p', '1080p'] | None = None
    num_images: Annotated[int | None, Field(ge=1, le=4)] = None
    """
    Without it: 1.
    """
    step_cache: StepCache | None = None
    """
    Steps take over a part of an earlier one: faster, and another image. Without it none does.
    """
    upscale: Upscale | None = None
    watermark: Watermark | None = None
    output: Output | None = None
    consent: Consent | None = None
    callback: Callback | None = None
    user_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    session_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    provider: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    tenant: Annotated[str | None, Field(max_length=256)] = None
    """
    Among whom SQS is fair and host.max_waiting_per_tenant counts; else user_id, else callback.metadata.user_id. It does not make another request of a job.
    """


class Edit(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    task: Literal['edit'] | None = None
    """
    Must be there on /infer.
    """
    prompt: Annotated[str, Field(max_length=2000)]
    """
    What is to become of the images. It may call them image 1, image 2 and image 3.
    """
    images: Annotated[list[str], Field(max_length=3, min_length=1)]
    negative_prompt: Annotated[str | None, Field(max_length=2000)] = None
    model: Annotated[str | None, Field(pattern='^[a-z0-9_-][a-z0-9._-]{0,63}$')] = None
    lora: Annotated[list[Lora] | None, Field(max_length=8)] = None
    """
    Only with a model that takes LoRAs in edits: FLUX.2 klein.
    """
    mode: Literal['fp8', 'lora', 'base'] | None = None
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    guidance_scale: Annotated[float | None, Field(ge=0.0, le=50.0)] = None
    width: Annotated[int | None, Field(ge=64, le=2048, multiple_of=16)] = None
    """
    Without it: from the first image.
    """
    height: Annotated[int | None, Field(ge=64, le=2048, multiple_of=16)] = None
    """
    Without it: from the first image.
    """
    num_images: Annotated[int | None, Field(ge=1, le=4)] = None
    """
    Without it: 1.
    """
    seed: Annotated[int | None, Field(ge=-1, le=9007199254740991)] = None
    """
    Image n is generated from seed + n. -1: any, the same one each time the job is delivered.
    """
    step_cache: StepCache | None = None
    """
    Steps take over a part of an earlier one: faster, and another image. Without it none does.
    """
    upscale: Upscale | None = None
    watermark: Watermark | None = None
    output: Output | None = None
    consent: Consent | None = None
    callback: Callback | None = None
    tenant: Annotated[str | None, Field(max_length=256)] = None
    """
    Among whom SQS is fair and host.max_waiting_per_tenant counts; else user_id, else callback.metadata.user_id. It does not make another request of a job.
    """


class TryOnForm(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    user_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    session_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    provider: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    masked_user_image: bytes
    """
    PNG, JPEG or WebP.
    """
    garment_image: bytes
    """
    PNG, JPEG or WebP.
    """
    consent: Consent | None = None
    auto_mask: AutoMask | None = None
    config: TryOnConfig | None = None


class EditForm(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    prompt: Annotated[str, Field(max_length=2000)]
    """
    What is to become of the images. It may call them image 1, image 2 and image 3.
    """
    image: Annotated[list[bytes], Field(max_length=3, min_length=1)]
    """
    PNG, JPEG or WebP, in the order in which the prompt counts them.
    """
    negative_prompt: Annotated[str | None, Field(max_length=2000)] = None
    model: Annotated[str | None, Field(pattern='^[a-z0-9_-][a-z0-9._-]{0,63}$')] = None
    mode: Literal['fp8', 'lora', 'base'] | None = None
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    guidance_scale: Annotated[float | None, Field(ge=0.0, le=50.0)] = None
    width: Annotated[int | None, Field(ge=64, le=2048, multiple_of=16)] = None
    """
    Without it: from the first image.
    """
    height: Annotated[int | None, Field(ge=64, le=2048, multiple_of=16)] = None
    """
    Without it: from the first image.
    """
    num_images: Annotated[int | None, Field(ge=1, le=4)] = None
    """
    Without it: 1.
    """
    seed: Annotated[int | None, Field(ge=-1, le=9007199254740991)] = None
    """
    Image n is generated from seed + n. -1: any, the same one each time the job is delivered.
    """
    consent: Consent | None = None
    tenant: Annotated[str | None, Field(max_length=256)] = None
    """
    Among whom SQS is fair and host.max_waiting_per_tenant counts; else user_id, else callback.metadata.user_id. It does not make another request of a job.
    """


class TryOnFormJson(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    user_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    session_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    provider: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    masked_user_image: str
    """
    s3://BUCKET/KEY, an https:// address, or data:image/png;base64, and the image.
    """
    garment_image: str
    """
    s3://BUCKET/KEY, an https:// address, or data:image/png;base64, and the image.
    """
    consent: Consent | None = None
    auto_mask: AutoMask | None = None
    config: TryOnConfig | None = None


class InferForm(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    user_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    session_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    provider: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    masked_user_image: bytes
    """
    PNG, JPEG or WebP.
    """
    garment_image: bytes
    """
    PNG, JPEG or WebP.
    """
    consent: Consent | None = None
    auto_mask: AutoMask | None = None
    config: TryOnConfig | None = None
    seed: Annotated[int | None, Field(ge=0, le=9007199254740991)] = None
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    cfg: Annotated[float | None, Field(ge=1.0, le=50.0)] = None
    prompt: Annotated[str | None, Field(max_length=2000)] = None


class InferFormJson(BaseModel):
    model_config = ConfigDict(
        extra='forbid',
        populate_by_name=True,
    )
    job_id: Annotated[
        str,
        Field(
            max_length=128, min_length=1, pattern='^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$'
        ),
    ]
    """
    The caller's name for the job. The same id with the same request is a replay, with another request a conflict.
    """
    user_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    session_id: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    provider: Annotated[str | None, Field(max_length=256)] = None
    """
    Handed back as it is.
    """
    masked_user_image: str
    """
    s3://BUCKET/KEY, an https:// address, or data:image/png;base64, and the image.
    """
    garment_image: str
    """
    s3://BUCKET/KEY, an https:// address, or data:image/png;base64, and the image.
    """
    consent: Consent | None = None
    auto_mask: AutoMask | None = None
    config: TryOnConfig | None = None
    seed: Annotated[int | None, Field(ge=0, le=9007199254740991)] = None
    steps: Annotated[int | None, Field(ge=1, le=200)] = None
    cfg: Annotated[float | None, Field(ge=1.0, le=50.0)] = None
    prompt: Annotated[str | None, Field(max_length=2000)] = None


class Job(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    job_id: str
    state: Literal['sending', 'queued', 'running', 'complete', 'failed', 'cancelled']
    """
    `sending`: the job is on its way into the queue, which has not confirmed it yet; nothing is promised.
    """
    position: Annotated[int | None, Field(ge=0)]
    """
    Jobs that come before this one, where it waits in the host's own spool; elsewhere nobody knows.
    """
    progress: Annotated[int, Field(ge=0, le=100)]
    """
    Percent.
    """
    step: Annotated[int | None, Field(ge=0)]
    """
    The denoising step that is done; null while that is not known, as of a job that runs at another host.
    """
    steps: Annotated[int | None, Field(ge=0)]
    """
    Of how many.
    """
    attempt: int | None
    """
    Deliveries so far; null where only the record is known.
    """
    error: Error | None
    """
    Of the last attempt that failed.
    """
    result: Result | None


class Readiness(BaseModel):
    model_config = ConfigDict(
        populate_by_name=True,
    )
    status: Literal['hot', 'loading', 'failed']
    model_loaded: bool
    node_id: str
    model_type: str
    reason: str | None = None
    """
    Why it is not hot, in words; absent while it is.
    """
    models: Annotated[list[ModelState], Field(min_length=1)]
    """
    Each model that is served; hot when all of them are, or can be loaded in turns.
    """
