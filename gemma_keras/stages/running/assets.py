"""What a stage starts from: the tokenizer and the model that its configuration names."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from keras_hub.models import Backbone

from gemma_keras import builtin
from gemma_keras.adapters.inject import initial_adapter_params
from gemma_keras.builtin.tokenizer import train_tokenizer
from gemma_keras.config.errors import UserError, require
from gemma_keras.config.sections import DataConfig
from gemma_keras.config.stages import AnsweringConfig, EvaluateConfig, ModelStage, PipelineSftConfig, TrainingConfig
from gemma_keras.config.writing import write_whole
from gemma_keras.data.pools.collecting import find_origins, training_texts
from gemma_keras.data.prepare import check
from gemma_keras.data.progress import print_progress
from gemma_keras.inference.chat import ChatModel
from gemma_keras.models.architecture import Architecture
from gemma_keras.models.families.registry import get_architecture
from gemma_keras.models.forward import Params, build_backbone, initial_params
from gemma_keras.models.gguf_file import open_gguf
from gemma_keras.models.gguf_tokenizer import sentencepiece_model
from gemma_keras.models.loading import Shardings, describe_weights, load_params
from gemma_keras.models.quantization import quantize_params
from gemma_keras.models.stacking import stack_params
from gemma_keras.models.weight_checks import is_padded, require_known_format, require_no_more_tokens
from gemma_keras.models.weight_sharding import param_sharding
from gemma_keras.planning.plans import inference_plan, plan_for
from gemma_keras.text.folder_templates import folder_template, template_of
from gemma_keras.text.foreign_template import ForeignTemplate
from gemma_keras.text.templates import AUTO, Template, get_template
from gemma_keras.text.tokenizer import Tokenizer
from gemma_keras.training.program import TrainProgram


def resolve_data(data: DataConfig, template: Template | None = None, dry_run: bool = False) -> DataConfig:
    """The data section, checked, with the builtin corpus in the place of an empty root.

    Args:
        template: the one in whose form the data is prepared.
        dry_run: whether a dry run is something that the stage can make.

    Raises:
        UserError: something is wrong that can be told before the corpora are read.
    """
    check(data)
    require(
        dry_run or not data.system_prompts.dry_run,
        "config.data.system_prompts.dry_run is set, but this stage makes no dry run; give it to scripts.prepare_data.",
    )
    used = template.name if template else data.template
    data = dataclasses.replace(data, root=data.root or str(builtin.CORPUS), template=used)
    find_origins(data, Path(data.root), lambda line: None)  # so that a missing corpus costs no training of a tokenizer
    return data


def resolve_tokenizer(config: ModelStage, workdir: Path) -> Tokenizer:
    """The tokenizer that is named, lies beside the weights, is builtin, or is trained on the text corpora, in this order.

    A tokenizer trained here is kept in `<workdir>/tokenizer` and used again when the stage is resumed. That of a GGUF file is
    written there under another name, for it follows from the file: it binds a workdir to no configuration.
    """
    path = workdir / "tokenizer" / "tokenizer.model"
    if config.tokenizer.path:
        return Tokenizer(config.tokenizer.path)
    if Path(config.model.weights).is_file():
        return _of_gguf(config.model.weights, path.with_name("gguf.model"))
    if config.model.weights:
        return Tokenizer(_beside_weights(Path(config.model.weights)))
    if not config.data.root:
        return Tokenizer(builtin.TOKENIZER)
    if not path.exists():
        print_progress(f"training a tokenizer of {config.tokenizer.vocabulary_size} pieces")
        train_tokenizer(training_texts(config.data), config.tokenizer.vocabulary_size, path)
    return Tokenizer(path)


def resolve_template(config: ModelStage, tell: Callable[[str], None] = print_progress) -> Template | ForeignTemplate:
    """The chat template that is named, else that of the weights' folder or GGUF file, else `gemmalm_zh`.

    The folder's keeps its own text, even where it is named. `tell` gets a line where another one is named.

    Raises:
        UserError: the files of the folder are damaged.
    """
    named, folder = config.data.template, config.model.weights
    own = _own_template(folder) if folder else None
    if own is None:
        return get_template(named)
    if named in (AUTO, own.name):
        return own
    kind = own.name if isinstance(own, Template) else "none of ours"
    tell(
        f"config.data.template={named} is used, though the chat template of {folder} is another one ({kind}); "
        "--config.data.template=auto uses that one"
    )
    return get_template(named)


def _own_template(weights: str) -> Template | ForeignTemplate | None:
    if Path(weights).is_file():
        return template_of(weights, open_gguf(weights).metadata.get("tokenizer.chat_template", ""), {})
    return folder_template(weights)


def with_spans(template: Template | ForeignTemplate) -> Template:
    """A template, for a stage that has to know which tokens are the model's.

    Raises:
        UserError: it is none of ours.
    """
    if isinstance(template, ForeignTemplate):
        raise UserError(
            f"{template.name} is none of ours, so there is no telling which tokens are the model's; name the one to use "
            "with --config.data.template (gemma is Google's)."
        )
    return template


def load_trainable_params(config: TrainingConfig, program: TrainProgram) -> tuple[Params, Params]:
    """Loads or draws the weights of a program, each where the program wants it: those that are trained, and the frozen ones.

    Without adapters all weights are trainable, in float32; otherwise the base is frozen, in `model.dtype`.
    """
    backbone, mesh = program.backbone, program.plan.mesh
    places = _places(mesh)
    if config.model.weights:
        dtype = config.model.dtype if program.matrices else "float32"
        base = load_weights(backbone, config.model.weights, dtype, places)
    else:
        plain = build_backbone(backbone.architecture, config.model.dtype) if program.matrices else backbone
        base = place_params(initial_params(plain, config.train.seed), mesh)
    base = stack_params(base, places)
    if not program.matrices:
        return base, {}
    adapters = place_params(initial_adapter_params(program.matrices, config.train.seed), mesh)
    return stack_params(adapters, places), base


def _places(mesh: Mesh | None, *, in_use: bool = False) -> Shardings | None:
    """Where weights lie on a mesh, stored as they are kept or as inference uses them; None without a mesh."""
    return functools.partial(param_sharding, mesh, in_use=in_use) if mesh is not None else None


def load_weights(backbone: Backbone, folder: str, dtype: str, places: Shardings | None) -> Params:
    """The weights of a folder, each where `places` says or on the default device; tells how far it is."""
    progress = ByteProgress("loading weights")
    return load_params(
        backbone, backbone.architecture, folder, dtype, shardings=places, progress=progress, tell=print_progress
    )


def place_params(params: Params, mesh: Mesh | None) -> Params:
    """Weights that every process has alike, divided over a mesh."""
    if mesh is None:
        return params
    return {
        path: jax.make_array_from_callback(
            value.shape, param_sharding(mesh, path, value.shape), np.asarray(value).__getitem__
        )
        for path, value in params.items()
    }


class ByteProgress:
    """Prints `what` with gigabytes done and in all, every few seconds; nothing where it is quicker than that."""

    def __init__(self, what: str, seconds: float = 5.0):
        self.what, self.seconds = what, seconds
        self.printed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.printed > self.seconds:
            self.printed = time.monotonic()
            print_progress(f"{self.what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB")


def load_chat_model(config: AnsweringConfig | PipelineSftConfig, workdir: Path) -> ChatModel:
    """The model in `model.weights`, over all devices, as it answers fastest, or to be evaluated, for whole rows as training.

    Raises:
        UserError: no weights are named, they cannot be read, or no template of their folder serves.
    """
    if not config.model.weights:
        raise UserError("config.model.weights is empty; give the folder or GGUF file of the model to talk to.")
    template = resolve_template(config)
    if isinstance(template, ForeignTemplate):
        template.check()
    tokenizer = resolve_tokenizer(config, workdir)
    architecture, devices = resolve_architecture(config, tokenizer), jax.devices()
    backbone = build_backbone(architecture, config.model.dtype)
    if isinstance(config, EvaluateConfig):
        plan = plan_for(config, architecture, devices, remat="none")
    else:
        plan = inference_plan(config, architecture, devices)
    places = _places(plan.mesh, in_use=not isinstance(config, EvaluateConfig))
    params = load_weights(backbone, config.model.weights, config.model.dtype, places)
    if config.inference.weights == "int8":
        params = quantize_params(params)
    return ChatModel(
        tokenizer=tokenizer, backbone=backbone, params=params, template=template, plan=plan,
        inference=config.inference,
    )  # fmt: skip


def count(params: Params) -> int:
    """Number of weights."""
    return sum(jnp.size(array) for array in params.values())


def _of_gguf(weights: str, path: Path) -> Tokenizer:
    """The tokenizer in a GGUF file, as the SentencePiece model that exports copy."""
    model = sentencepiece_model(open_gguf(weights))
    if not path.exists() or path.read_bytes() != model:
        write_whole(path, model)
    return Tokenizer(path)


def _beside_weights(folder: Path) -> Path:
    require(
        folder.is_dir(),
        f"model.weights={folder} is no folder or file; give a Hugging Face or Keras preset folder or a GGUF file.",
    )
    for path in (folder / "tokenizer.model", folder / "assets" / "tokenizer" / "vocabulary.spm"):
        if path.exists():
            return path
    if not (folder / "config.json").exists():
        require_known_format(folder, "config.json")
    raise UserError(
        f"model.weights={folder} has no tokenizer.model (nor a preset's assets/tokenizer/vocabulary.spm); "
        "give the model file with --config.tokenizer.path."
    )


def resolve_architecture(config: ModelStage, tokenizer: Tokenizer) -> Architecture:
    """The shape of the named weights, or the named shape with the tokenizer's vocabulary.

    Raises:
        UserError: weights and tokenizer do not belong together, or rows are longer than the model's context.
    """
    architecture = _named_or_stored(config, tokenizer)
    in_rows = isinstance(config, TrainingConfig | EvaluateConfig)
    if in_rows and config.data.sequence_length > architecture.max_position:
        raise UserError(
            f"data.sequence_length={config.data.sequence_length} is above the {architecture.max_position} positions of "
            f"{architecture.name}; lower it."
        )
    return architecture


def _named_or_stored(config: ModelStage, tokenizer: Tokenizer) -> Architecture:
    if not config.model.weights:
        return get_architecture(config.model.architecture).replace(vocabulary_size=tokenizer.vocabulary_size)
    architecture = describe_weights(config.model.weights)
    rows, pieces = architecture.vocabulary_size, tokenizer.vocabulary_size
    if is_padded(rows, pieces):
        require_no_more_tokens(Path(config.model.weights), pieces)
        print_progress(
            f"{config.model.weights} has {rows - pieces} more rows of embeddings than {tokenizer.path} has pieces: "
            "they are kept, and never generated"
        )
        return architecture.replace(surplus_rows=rows - pieces)
    if pieces != rows:
        raise UserError(
            f"The tokenizer {tokenizer.path} has {pieces} pieces, the weights {config.model.weights} have {rows} "
            "embeddings; give the tokenizer of these weights."
        )
    return architecture
